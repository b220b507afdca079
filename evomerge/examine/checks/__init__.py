"""The parts of `evomerge check`, a concern each."""
