"""A run on the disk and on the screen."""
