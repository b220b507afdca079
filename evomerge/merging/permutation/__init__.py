"""Permutations of hidden units that leave a model's function as it is: specifications, matching, aligned checkpoints."""
