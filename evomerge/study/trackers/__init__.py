"""Records of a search for tools that show experiments."""
