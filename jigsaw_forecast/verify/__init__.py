"""Additive statistics, metrics, climatology and baselines."""
