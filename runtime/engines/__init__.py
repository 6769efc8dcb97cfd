"""TensorRT engines: built from programs, without weights, timed on the device that is here, and kept in its cache."""
