"""ONNX Runtime: sessions, and graphs optimised once for this CPU."""
