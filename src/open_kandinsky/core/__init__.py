"""What every package here may import, and what imports none of them."""
