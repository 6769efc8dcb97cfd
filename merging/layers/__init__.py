"""Layers, their definitions and groups, and which of them hold one tensor."""
