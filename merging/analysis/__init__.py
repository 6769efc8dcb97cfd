"""``gemel analyze``: the memory of a workload's models and layers, and the memory that sharing would free."""
