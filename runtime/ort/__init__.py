"""ONNX Runtime: sessions, and graphs that are optimised once for this CPU."""
