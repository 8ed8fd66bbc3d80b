"""Benchmarks of the data audit and of near-duplicate detection."""
