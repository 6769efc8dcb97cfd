"""Conversion of models to int8 and fp16 that keeps tensors shared: calibration on real frames, accuracy targets."""
