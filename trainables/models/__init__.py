"""Backbones, classifiers and ensembles, their weights, and what is computed from them."""
