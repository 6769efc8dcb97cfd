"""Comparison of a bundle with a baseline: properties of an earlier bundle, kept in a file."""
