"""Frames of cameras, recordings and folders, and how one becomes the input of a model."""
