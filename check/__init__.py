"""What judges a bundle: its contents, its figures, its answers beside the models it came from."""
