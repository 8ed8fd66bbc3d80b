"""Metrics, intervals, calibration, label errors, and the choice among finalists."""
