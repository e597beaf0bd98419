"""What can be known of a training that stands still."""
