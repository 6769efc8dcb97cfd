"""The loop of a run: frames from feeds through models to sinks, and the statistics of a run."""
