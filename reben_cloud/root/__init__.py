"""A dataset root: its paths, manifest, tables, and what is opened of it."""
