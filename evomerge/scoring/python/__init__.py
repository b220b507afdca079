"""Scores slices by Python functions."""
