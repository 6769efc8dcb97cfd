"""Lower precision (INT8 and FP16) that keeps sharing: calibration on real frames, conversion, and accuracy targets."""
