"""What is true of BigEarthNet alone: its bands, classes, names, countries, metadata files and schema."""
