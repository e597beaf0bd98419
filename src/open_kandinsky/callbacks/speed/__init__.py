"""How fast a training goes, and what it waits for."""
