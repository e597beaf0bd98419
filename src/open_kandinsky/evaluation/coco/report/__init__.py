"""What a COCO evaluation leaves: files for programs, pages for people, and Weights & Biases."""
