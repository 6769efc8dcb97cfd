"""Joint retraining: where it starts, what models learn from, and how they are judged."""
