"""Writing of models as the files of a bundle, with a proof that sharing survived."""
