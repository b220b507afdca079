"""Answers lm-eval's requests with the fewest forward passes that give the same numbers.

`encode` turns requests into token windows as `HFLM` does, `tree` lays windows that share a start into one row,
`batches` makes tensors of rows, `forward` runs them, `shortcuts` says which of this a model may be given, and `plan`
puts it together. Imports torch and lm-eval: import it where it is used.
"""
