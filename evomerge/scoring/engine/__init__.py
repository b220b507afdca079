"""Answers lm-eval's requests with the fewest forward passes that give the same numbers.

`encode` turns requests into token windows as `HFLM` does, `tree` lays windows that share a start into one row,
`batches` makes tensors of rows, `forward` runs them, `shortcuts` decides which of these steps a model allows, `plan`
puts them together, and `backward` takes gradients. `generation` and `greedy` write text. `resident` is lm-eval's model
class over all of it, `lm` what the other files need of it. Imports torch and lm-eval: import it where it is used.
"""
