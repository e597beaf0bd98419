"""COCO's validation images of 2014 and their captions: what text-to-image systems are scored on."""

from open_kandinsky.data.coco.folder import CAPTIONS, IMAGES, Coco, CocoCaption, CocoImage

__all__ = ["CAPTIONS", "IMAGES", "Coco", "CocoCaption", "CocoImage"]
