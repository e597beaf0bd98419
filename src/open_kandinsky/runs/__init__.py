"""A run of training: its folder, how its processes find each other, and what it begins with."""
