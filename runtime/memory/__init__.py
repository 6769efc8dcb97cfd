"""Weights in memory: segments, loaded and evicted under a budget of bytes, in this machine's memory or a device's."""
