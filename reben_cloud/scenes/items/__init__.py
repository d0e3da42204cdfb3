"""Products and scenes behind the Items of a STAC API: found by a search, and read by windows of their images."""
