"""TensorRT engines: built from programs without weights, timed on this machine's device, kept in the device cache."""
