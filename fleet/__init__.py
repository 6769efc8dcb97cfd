"""Placement of queries on a fleet of boxes: which query runs on which box, and one bundle for each box."""
