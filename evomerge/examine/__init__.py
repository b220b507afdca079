"""Single models and recipes: their scores and gates, and the line between two of them."""
