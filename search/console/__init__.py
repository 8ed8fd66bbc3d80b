"""The terminal: arguments, progress, the run log, signals, formatting."""
