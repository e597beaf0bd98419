"""Folders as other projects' programs read them, and the results that those programs leave."""
