"""What comes from outside stays harmless, and what is written stays whole."""
