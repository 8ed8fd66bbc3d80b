"""Benchmarks of model quality: accuracy, calibration, intervals."""
