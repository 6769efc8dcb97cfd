"""Search for stems: first layers that several models of one feed have in common, so that a frame runs them once."""

from .stem_files import add_stems

__all__ = ["add_stems"]
