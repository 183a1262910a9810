"""To be written: the map of this package."""
