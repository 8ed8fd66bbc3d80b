"""K-fold retraining of the finalists, and what their held-out folds tell."""
