"""Benchmarks of search quality on recorded learning curves."""
