"""Merging: the plan of a recipe, kernels and methods, candidates in memory, checkpoints on disk."""
