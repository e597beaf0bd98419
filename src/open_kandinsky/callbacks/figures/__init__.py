"""What each stage is worth by now, on its validation set and with the averaged weights."""
