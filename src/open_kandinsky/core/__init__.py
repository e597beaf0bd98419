"""What every package here may import: errors."""
