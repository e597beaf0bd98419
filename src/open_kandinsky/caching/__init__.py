"""Shards of images and captions into shards of a cache: what `precompute` does, by any number of processes."""
