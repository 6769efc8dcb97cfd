"""Weights in memory: segments under a byte budget, on this machine or on a device."""
