"""Used by every package here; imports none of them."""
