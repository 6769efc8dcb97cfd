"""What is in a bundle."""
