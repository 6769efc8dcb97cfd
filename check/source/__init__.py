"""Comparison of a bundle's outputs and accuracy with those of the models that the bundle was compiled from."""
