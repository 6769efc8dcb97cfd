"""The search for sharing that keeps every target."""
