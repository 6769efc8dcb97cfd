"""Search for a sharing map with which every query keeps its target."""
