"""Which candidate is asked how many items."""
