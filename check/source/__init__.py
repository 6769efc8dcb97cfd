"""A bundle beside the models that it was compiled from."""
