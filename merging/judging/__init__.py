"""Judging of merged models: images that choose and images that confirm, and bounds of relative accuracy."""
