"""Benchmarks of speed, memory and scale; each prints a ratio."""
