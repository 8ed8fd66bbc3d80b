"""Benchmarks: `python -m benchmarks.speed.epoch`, and so on."""
