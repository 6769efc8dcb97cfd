"""File format of bundles, which the compiler writes and the runtime reads."""
