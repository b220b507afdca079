"""Permutes hidden units, which leaves what a model computes as it is: specifications, matching, writing."""
