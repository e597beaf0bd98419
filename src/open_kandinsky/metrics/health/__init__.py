"""What tells whether a training goes well, beside its loss."""
