"""Tune hyperparameters with Optuna."""
