"""Comparison of a bundle with the baseline of an earlier one."""
