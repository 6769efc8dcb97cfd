"""gemel analyze: where memory is, and what sharing would free."""
