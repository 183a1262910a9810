"""Let failed assertions of the shared tables explain themselves."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("golden")
