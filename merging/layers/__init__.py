"""Layers, their definitions and groups, and the sharing map that says which of them hold one tensor."""
