"""Format of a bundle, which the compiler writes and the runtime reads."""
