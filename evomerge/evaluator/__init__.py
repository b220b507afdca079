"""One recipe in, scores out: a model in this process, or a pool of worker processes. Knows no study."""
