"""The images that a query is retrained and judged on, as its model sees them.

======================================================  ===========================================================
``data.train``, ``data.val``                            what it gives
======================================================  ===========================================================
a folder with a folder for each class                   labelled images, for classification
a COCO json, or a folder with one in it                 images with boxes, for detection
a folder of images                                      images without labels
a video, ``package:NAME/path/file.mp4``                 frames without labels
left out                                                frames of the query's feed, unless that is a camera
======================================================  ===========================================================

Images without labels have the original model as their teacher and judge.
"""

from __future__ import annotations

from .data_sets import load_data, read_images
from .images import Boxes, Images, joined

__all__ = ["Boxes", "Images", "joined", "load_data", "read_images"]
