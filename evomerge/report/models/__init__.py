"""What commands on single models show: what they wrote, how they differ."""
