"""Import this before ``onnxruntime``: it imports gemel, which turns off that ONNX Runtime reports to Microsoft."""

import gemel  # noqa: F401
