"""Checks of a bundle: its contents, its speed, and its answers compared with those of its source models."""
