"""Weights in memory: segments under a budget of bytes, on this machine or on a device."""
