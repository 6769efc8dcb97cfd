"""Comparison of a bundle with a baseline: a file that holds properties of an earlier bundle."""
