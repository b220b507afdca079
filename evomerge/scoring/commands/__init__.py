"""Slices that a program of the user scores: it gets the candidate as a folder, and writes a score for each item."""
