"""TensorRT engines: built from programs, with every weight an input, and kept in the device cache."""
