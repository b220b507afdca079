"""What the tensors of a checkpoint are called, and where they are in a model of transformers."""
