"""Where samples are read from: one reader for each form at rest."""
