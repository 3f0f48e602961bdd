"""Rollout, the writers of forecasts, and the operational run."""
