"""From a recipe and the headers of its checkpoints to one job for every output tensor."""
