"""Slices that a Python function scores."""
