"""Means of items, their standard errors and confidence bounds, paired tests, predictions."""
