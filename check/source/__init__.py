"""Comparison of a bundle with the models that it was compiled from."""
