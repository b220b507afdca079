"""What the cards of models say."""
