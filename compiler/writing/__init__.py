"""Writing of compiled models as the files of a bundle, with a proof that no sharing of weights was lost."""
