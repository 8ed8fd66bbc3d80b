"""Metrics, confidence intervals, calibration and label errors, computed from predictions."""
