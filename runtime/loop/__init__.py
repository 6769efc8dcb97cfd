"""The loop of a run: frames from feeds through models to sinks, and the figures of a run."""
