"""Running a query on a frame: preprocess, swap the model in, run, decode."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from ...bundles.manifest import InputSpec
from ...bundles.reader import Bundle
from ...frames.frame import Frame
from ...frames.preprocess import Geometry, preprocess
from ..backends import Backend
from ..decode import DecodeContext, Decoder, FloatArray, build_decoder
from ..decode.results import Result

__all__ = ["Inference"]


class Inference:
    """Callable that answers queries of a bundle on a backend. Not thread-safe: only one thread may run models.

    Args:
        bundle: an open bundle.
        backend: backend that was opened for the bundle and runs its models.
        depths: feed -> maximum number of prepared frames to keep, so that queries of one feed prepare a frame once.
            It should be the number of frames in a turn. A feed that is left out keeps 1 frame.
    """

    def __init__(self, bundle: Bundle, backend: Backend, depths: Mapping[str, int] | None = None) -> None:
        self._manifest = bundle.manifest
        self._backend = backend
        self._decoders: dict[str, Decoder] = {
            name: build_decoder(
                self._manifest.models[query.model].decode,
                DecodeContext(bundle.tensor, query.labels, query.threshold, query.classes),
            )
            for name, query in self._manifest.queries.items()
        }
        self._prepared = _PreparedFrames(depths or {})

    def __call__(self, query: str, frame: Frame) -> Result:
        """Run a query on a frame, and return the query's result.

        Raises:
            BackendError: the model could not be swapped in or run.
        """
        name = self._manifest.queries[query].model
        model = self._manifest.models[name]
        image, geometry = self._prepared.prepare(frame, model.input)
        self._backend.activate(name)
        try:
            outputs = self._run(name, "main", {model.stages["main"].inputs[0].name: image})
            return self._decoders[query](outputs, geometry, partial(self._run, name))
        finally:
            self._backend.release(name)

    def _run(self, model: str, stage: str, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        return self._backend.run(model, stage, inputs)


class _PreparedFrames:
    """Model inputs made from the newest frames, which queries of one feed share if their input specs are equal.

    Args:
        depths: feed -> maximum number of frames to keep for each input spec; 1 for a feed that is left out.
    """

    def __init__(self, depths: Mapping[str, int]) -> None:
        self._depths = depths
        self._kept: dict[tuple[str, InputSpec], dict[int, tuple[FloatArray, Geometry]]] = {}
        """(feed, input spec) -> frame index -> prepared frame, and position of the frame in the model's input."""

    def prepare(self, frame: Frame, spec: InputSpec) -> tuple[FloatArray, Geometry]:
        """Return a frame as the model input that ``spec`` describes, and the position of the frame in that input.

        The input is made at the first call and kept for later calls.
        """
        kept = self._kept.setdefault((frame.feed, spec), {})
        if frame.index not in kept:
            if len(kept) == self._depths.get(frame.feed, 1):
                # Frames leave the channel of their feed in order, the oldest first.
                del kept[min(kept)]
            kept[frame.index] = preprocess(frame.image, spec)
        return kept[frame.index]
