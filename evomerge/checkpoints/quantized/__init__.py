"""The formats of quantized weights: which tensors they stand for, and how these are dequantized."""
