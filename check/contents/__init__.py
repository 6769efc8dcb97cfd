"""Description of a bundle's contents, as figures and as tables."""
