"""The forms that payloads take at rest, one module a form; a format knows nothing of a source."""
