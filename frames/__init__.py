"""Frames: reading cameras, recordings and folders of images, and preparing frames as inputs of models."""
