"""The arithmetic of merging: elementwise kernels, how they run, and what they read."""
