"""Candidates in memory: the source bank, the resident model, where both live, and its slopes."""
