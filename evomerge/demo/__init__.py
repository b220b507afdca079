"""The demonstration that needs no download: generated data, tiny models, then the ordinary search."""
