"""Loop of a run: brings frames from feeds through models to sinks, and collects the statistics of a run."""
