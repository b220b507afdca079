"""Merging to a folder, tensor by tensor."""
