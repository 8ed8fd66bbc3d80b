"""Command-line arguments, progress display, signals."""
