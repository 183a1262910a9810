"""What a user can do wrong. Everything else that is raised is a bug and stays a traceback."""

from __future__ import annotations


class UserError(Exception):
    """One clear line that says what is wrong and what to do; becomes exit code ``status``.

    ``status`` is 2 for a command that cannot be meant, 1 for one that cannot be done here and now.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class UsageError(UserError):
    """The command line itself is wrong: exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=2)
