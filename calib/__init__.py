"""INT8 and FP16 that keep sharing: ranges from real frames, what is rounded where, and which layers cannot bear it."""
