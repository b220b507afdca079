"""Slices that are lm-eval tasks: their files, requests, metrics, and the losses that stand in for metrics."""
