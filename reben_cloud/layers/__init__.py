"""Data that others have for the patches of a root: described, written beside it, opened and joined."""
