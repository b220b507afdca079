"""Slices that are lm-eval tasks: their files, requests, metrics and losses."""
