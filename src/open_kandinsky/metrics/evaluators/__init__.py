"""The networks whose features and distances are scored: frozen, and built from weights that somebody published."""
