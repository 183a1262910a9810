"""One module for each scenario; ``scene.py`` says what is in them."""
