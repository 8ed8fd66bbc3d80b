"""Hyperparameter search: Optuna proposes configurations, Ray Tune runs them."""
