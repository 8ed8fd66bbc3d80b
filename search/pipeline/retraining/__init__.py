"""Retraining of the finalists by k-fold, and the use of their out-of-fold predictions."""
