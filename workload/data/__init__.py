"""Data sets: the images that a query is retrained and evaluated on, resized for its model.

======================================================  ===========================================================
``data.train``, ``data.val``                            contents of the data set
======================================================  ===========================================================
a folder with a folder for each class                   labelled images, for classification
a COCO json, or a folder with one in it                 images with boxes, for detection
a folder of images                                      images without labels
a video, ``package:NAME/path/file.mp4``                 frames without labels
left out                                                frames of the query's feed, if that is a video or folder
======================================================  ===========================================================

For images without labels, the original model is the teacher, and accuracy is agreement with it.
"""

from __future__ import annotations

from .data_sets import MOST_FRAMES, Splits, list_data, load_data, read_images
from .images import Boxes, Images, joined
from .mixes import Mixer

__all__ = ["MOST_FRAMES", "Boxes", "Images", "Mixer", "Splits", "joined", "list_data", "load_data", "read_images"]
