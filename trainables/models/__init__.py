"""Backbones, heads, ensembles, and the weights they start from."""
