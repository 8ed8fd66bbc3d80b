"""Backbones, classifiers and ensembles, their pretrained weights, and what is computed from them."""
