"""Forms of weights: a kernel as small integer codes times a scale, alone or as the difference to a common base."""
