"""Gradients of a study's trials, and what steps along them gained."""
