"""Writer: the part of an output behind its queue, and the writer that calls a sink."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from .events import EventKind, SinkEvent
from .sink import Sink
from .sink_counts import SinkCounts

__all__ = ["RefusedError", "SinkWriter", "Writer"]


class RefusedError(Exception):
    """Error about events that an output will never accept, so that they are not tried again."""


class Writer:
    """Destination of events, called on the thread of its queue.

    A writer that raises an OSError gets the same events again after a pause. After a :class:`RefusedError`, all events
    that the writer was given are lost. After any other exception, only the first of these events is lost.
    """

    kinds: frozenset[EventKind] = frozenset({"result"})
    """Kinds of events that the writer takes."""
    pixels = False
    """Whether the writer needs the pixels of frames."""
    polite = False
    """Whether the writer takes much processor time, so that its thread gets a lower priority."""
    depth = 10_000
    """Maximum number of events that wait for the writer."""
    most_bytes = 64 << 20
    """Maximum bytes of memory that the events which wait for the writer take."""
    batch = 1
    """Maximum number of events that the writer writes at once."""
    linger = 0.0
    """Maximum seconds that an event waits for the writer, so that several events are written at once."""

    longest_pause = 10.0
    """Maximum seconds between two attempts of the writer to write while the output fails."""

    idle_every: float | None = None
    """Seconds without an event after which :meth:`idle` is called, again and again; never if None."""
    target = ""
    """Destination of the writer's output, for messages."""

    def wants(self, event: SinkEvent) -> bool:
        """Return whether the writer takes an event. Called on the thread that runs models, so it must be quick."""
        return True

    def write(self, batch: deque[SinkEvent]) -> None:
        """Write events, and remove from the left of ``batch`` every event that was written.

        Raises:
            OSError: the events that are left cannot be written now.
            RefusedError: the events that are left will never be written.
        """
        raise NotImplementedError

    def idle(self) -> None:
        """Keep the output ready while there is nothing to write.

        Raises:
            OSError: the output does not work now.
        """

    def counts_beside(self) -> Mapping[str, SinkCounts]:
        """Return name -> counts of further queues that the writer has, as of uploads. Any thread may call this."""
        return {}

    def close(self) -> None:
        """Finish the output. Called once, after the last event."""


class SinkWriter(Writer):
    """Writer that calls the methods of a sink, one event after the other."""

    depth = 1000
    most_bytes = 256 << 20

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        names: dict[EventKind, str] = {"result": "on_result", "error": "on_error", "frame": "on_frame"}
        self.kinds = frozenset(
            kind for kind, name in names.items() if getattr(type(sink), name) is not getattr(Sink, name)
        )
        self.pixels = sink.pixels

    def write(self, batch: deque[SinkEvent]) -> None:
        while batch:
            try:
                self._tell(batch[0])
            except Exception as error:
                # Also for an OSError: the sink may have written a part of the event, so it does not get it again.
                raise _SinkError(error) from error
            batch.popleft()

    def _tell(self, event: SinkEvent) -> None:
        if event.kind == "result":
            self._sink.on_result(event.query, event.frame, event.result, event.latency_ms)
        elif event.kind == "error":
            self._sink.on_error(event.query, event.frame, event.message)
        else:
            self._sink.on_frame(event.frame, event.results)

    def close(self) -> None:
        self._sink.close()


class _SinkError(Exception):
    """Error that a sink raised for one event."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
