"""All outputs of a run together: every event goes to the queue of each output that wants it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...bundles.output_specs import STDOUT, OutputSpec
from ...errors import GemelError, InputError, MissingExtraError
from ...frames.frame import Frame
from ..decode.results import Result
from .events import EVENT_KINDS, EventKind, SinkEvent, without_pixels
from .queued import QueuedWriter, reason_of_output
from .run_info import RunInfo
from .sampling import Sampling
from .sink import Sink
from .sink_counts import SinkCounts
from .writer import SinkWriter, Writer

__all__ = ["OutputSink", "open_outputs"]

_log = logging.getLogger(__name__)


class OutputSink(Sink):
    """Sink that passes every event on to several outputs, each with a queue and a thread of its own.

    Args:
        info: identification of the run.
        writers: name -> writer of an output.
        sinks: further sinks. Those that are ``queued`` get a queue; the others are called at once, and left out after
            their first failure.
        patient: whether a full queue makes the run wait as long as its output makes progress.
    """

    def __init__(
        self, info: RunInfo, writers: Mapping[str, Writer], sinks: Sequence[Sink] = (), *, patient: bool = False
    ) -> None:
        self.info = info
        named = dict(writers)
        for sink in sinks:
            if sink.queued:
                named[_free_name(type(sink).__name__, named)] = SinkWriter(sink)
        self._direct = [sink for sink in sinks if not sink.queued]
        self._queues = [QueuedWriter(name, writer, patient=patient) for name, writer in named.items()]
        self._blind, self._seeing = (
            {
                kind: [each for each in self._queues if kind in each.writer.kinds and each.writer.pixels is pixels]
                for kind in EVENT_KINDS
            }
            for pixels in (False, True)
        )

    def counts(self) -> dict[str, SinkCounts]:
        """Return name -> counts of each output so far. Any thread may call this."""
        found: dict[str, SinkCounts] = {}
        for queue in self._queues:
            found[queue.name] = queue.counts()
            found |= {f"{queue.name}-{name}": counts for name, counts in queue.writer.counts_beside().items()}
        return found

    def on_result(self, query: str, frame: Frame, result: Result, latency_ms: float) -> None:
        self._tell(lambda sink: sink.on_result(query, frame, result, latency_ms))
        self._offer("result", frame, query=query, result=result, latency_ms=latency_ms)

    def on_error(self, query: str, frame: Frame, message: str) -> None:
        self._tell(lambda sink: sink.on_error(query, frame, message))
        self._offer("error", frame, query=query, message=message)

    def on_frame(self, frame: Frame, results: Mapping[str, Result]) -> None:
        self._tell(lambda sink: sink.on_frame(frame, results))
        self._offer("frame", frame, results=results)

    def close(self) -> None:
        for queue in self._queues:
            queue.finish()
        for queue in self._queues:
            queue.join()
        self._tell(lambda sink: sink.close())

    def _offer(self, kind: EventKind, frame: Frame, **content: Any) -> None:
        """Put an event into the queues of the outputs that take events of its kind."""
        # Shared by the outputs that need no pixels, so that the line of a result is made once.
        for frame_of, queues in ((without_pixels, self._blind[kind]), (_same, self._seeing[kind])):
            if queues:
                event = SinkEvent(kind, self.info, frame_of(frame), **content)
                for queue in queues:
                    queue.offer(event)

    def _tell(self, call: Callable[[Sink], None]) -> None:
        for sink in list(self._direct):
            try:
                call(sink)
            except Exception as error:  # noqa: PERF203
                self._direct.remove(sink)
                _log.warning("%s: left out from now on: %s", type(sink).__name__, reason_of_output(error))


def open_outputs(
    specs: Sequence[OutputSpec],
    queries: Mapping[str, str],
    info: RunInfo,
    sinks: Sequence[Sink] = (),
    *,
    patient: bool = False,
    sampling: Sampling | None = None,
) -> OutputSink:
    """Open the outputs of a run.

    Args:
        specs: outputs, with variables replaced.
        queries: feed of each query; the order of queries decides their colours.
        info: identification of the run.
        sinks: further sinks.
        patient: whether a full queue makes the run wait as long as its output makes progress.
        sampling: settings of all outputs ``samples`` that only the user of the run can give.

    Raises:
        InputError: another run writes to the same file.
        MissingExtraError: a package that an output needs is not installed.
    """
    writers: dict[str, Writer] = {}
    try:
        for spec in specs:
            if spec.kind is None:
                _log.warning("an output of the bundle is of a kind that this gemel does not know; it is left out")
                continue
            name = _free_name(spec.kind, writers)
            writers[name] = _writer(spec, queries, info, sampling or Sampling())
            writers[name].target = spec.target
    except BaseException:
        for writer in writers.values():
            writer.close()
        raise
    return OutputSink(info, writers, sinks, patient=patient)


def _writer(spec: OutputSpec, queries: Mapping[str, str], info: RunInfo, sampling: Sampling) -> Writer:
    """Return the writer that an output's settings ask for: to a file, videos, pictures, a web server or MQTT."""
    # Imported here, so that a run pays only for the outputs that it has.
    try:
        if spec.jsonl is not None:
            from .jsonl import JsonlWriter, StdoutWriter

            if spec.jsonl.path == STDOUT:
                return StdoutWriter()
            return JsonlWriter(Path(spec.jsonl.path).expanduser(), spec.jsonl.rotate)
        if spec.video is not None:
            from .video import VideoWriter

            return VideoWriter(spec.video, queries)
        if spec.snapshots is not None:
            from .snapshots import SnapshotWriter

            return SnapshotWriter(spec.snapshots, queries)
        if spec.samples is not None:
            from .samples import SampleWriter

            return SampleWriter(spec.samples, queries, info, sampling)
        if spec.webhook is not None:
            from .webhook import WebhookWriter

            return WebhookWriter(spec.webhook, info)
        from .mqtt import MqttWriter

        assert spec.mqtt is not None  # the only kind that is left
        return MqttWriter(spec.mqtt, info)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "paho":
            raise
        raise MissingExtraError("the output mqtt", "outputs") from error
    except GemelError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"output {spec.kind} ({spec.target}): {reason_of_output(error)}") from error


def _free_name(wanted: str, taken: Mapping[str, object]) -> str:
    """Return a name for an output, with a number at its end if another output has the name already."""
    return next(
        name for name in (wanted, *(f"{wanted}-{number}" for number in range(2, len(taken) + 3))) if name not in taken
    )


def _same(frame: Frame) -> Frame:
    return frame
