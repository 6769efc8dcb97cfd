"""Judgement of a bundle: its contents, its speed, and its answers beside those of the models it came from."""
