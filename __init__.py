"""Gemel: merge, compile and run many vision models with one copy of every shared weight."""
