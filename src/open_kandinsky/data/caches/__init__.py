"""Precomputed latents, embeddings and text states: how they lie on a disk, and how batches are made of them."""
