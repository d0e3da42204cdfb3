"""Datasets that are hosted already, read where they lie: an LMDB or tars at a URL, opened or indexed."""
