"""Contents of a bundle, as figures and as tables."""
