"""COCO-30K: which captions are drawn, and how pictures are cropped and resized before they are compared."""
