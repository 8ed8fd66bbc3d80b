"""What all benchmarks share: images, simulated trials, printed tables."""
