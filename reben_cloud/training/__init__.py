"""From recipes to trained folders, and what they are worth."""
