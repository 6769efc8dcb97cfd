"""From a frame to a query's result: preprocess, swap in, run, decode."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from ...bundles.manifest import InputSpec
from ...bundles.reader import Bundle
from ...frames.frame import Frame
from ...frames.preprocess import Geometry, preprocess
from ..backends import Backend
from ..decode import Decoder, FloatArray, build_decoder
from ..decode.results import Result

__all__ = ["Inference"]


class Inference:
    """Answers queries of a bundle on a backend. Not thread-safe: one thread runs models.

    Args:
        bundle: whose queries are answered.
        backend: where its models run.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._manifest = bundle.manifest
        self._backend = backend
        self._decoders: dict[str, Decoder] = {
            name: build_decoder(self._manifest.models[query.model].decode, bundle.tensor, query.labels, query.threshold)
            for name, query in self._manifest.queries.items()
        }
        self._prepared: dict[tuple[str, InputSpec], tuple[int, FloatArray, Geometry]] = {}

    def __call__(self, query: str, frame: Frame) -> Result:
        """Run a query on a frame.

        Raises:
            BackendError: the model could not be swapped in or run.
        """
        name = self._manifest.queries[query].model
        model = self._manifest.models[name]
        image, geometry = self._prepare(frame, model.input)
        self._backend.activate(name)
        try:
            outputs = self._run(name, "main", {model.stages["main"].inputs[0].name: image})
            return self._decoders[query](outputs, geometry, partial(self._run, name))
        finally:
            self._backend.release(name)

    def _run(self, model: str, stage: str, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        return self._backend.run(model, stage, inputs)

    def _prepare(self, frame: Frame, spec: InputSpec) -> tuple[FloatArray, Geometry]:
        """Queries of one feed that want the same input share it; only the newest frame's is kept."""
        key = (frame.feed, spec)
        kept = self._prepared.get(key)
        if kept is None or kept[0] != frame.index:
            kept = self._prepared[key] = (frame.index, *preprocess(frame.image, spec))
        return kept[1], kept[2]
