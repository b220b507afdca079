"""Measures what fine-tuning changed, from a sample of each tensor's elements, with numpy alone."""
