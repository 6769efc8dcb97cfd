"""Running queries on frames: prepare frames, swap models in, run frames of one model together, decode."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from ...bundles.reader import Bundle
from ...errors import first_line
from ...frames.frame import Frame
from ...frames.preprocess import Geometry
from ..backends import Backend
from ..decode import DecodeContext, Decoder, FloatArray, build_decoder
from ..decode.results import Result
from .batches import ModelRun, allowed_sizes, plan_runs
from .prepared_frames import PreparedFrames
from .shared_stems import SharedStems, split_rows, stacked
from .summary import RunCounts

__all__ = ["Inference"]

_log = logging.getLogger(__name__)


class Inference:
    """Callable that answers queries of a bundle on a backend. Not thread-safe: only one thread may run models.

    Args:
        bundle: an open bundle.
        backend: backend that was opened for the bundle and runs its models.
        depths: feed -> maximum number of prepared frames to keep, so that queries of one feed prepare a frame once.
            It should be the number of frames in a turn. A feed that is left out keeps 1 frame.
        batches: model -> numbers of frames, of :data:`.batches.BATCHES`, that run as one batch. The frames of a model
            that is left out run one by one.
        stems: query -> id of the stem that it shares with other queries of its feed, as
            :func:`gemel.runtime.backends.share_stems.shared_stems` returns them. The stem runs once for a frame.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        depths: Mapping[str, int] | None = None,
        batches: Mapping[str, Collection[int]] | None = None,
        stems: Mapping[str, str] | None = None,
    ) -> None:
        self._manifest = bundle.manifest
        self._backend = backend
        self._decoders: dict[str, Decoder] = {
            name: build_decoder(
                self._manifest.models[query.model].decode,
                DecodeContext(bundle.tensor, query.labels, query.threshold, query.classes),
            )
            for name, query in self._manifest.queries.items()
        }
        self._model_of = {name: query.model for name, query in self._manifest.queries.items()}
        self._prepared = PreparedFrames(depths or {})
        self._stems = SharedStems(bundle.manifest, backend, depths or {}, stems or {})
        self._sizes = {model: allowed_sizes(sizes) for model, sizes in (batches or {}).items()}
        self._counts: dict[str, RunCounts] = {}

    @property
    def counts(self) -> dict[str, RunCounts]:
        """Query -> counts of its runs so far, for queries that have run. May be read on any thread."""
        return dict(self._counts)

    def __call__(self, pairs: Sequence[tuple[str, Frame]]) -> Iterator[Result | Exception]:
        """Run queries on frames, and yield the result of each pair in order, or the exception with which it failed.

        Frames of one model run together where ``batches`` says so, whichever queries and feeds they are of. A run is
        made when the first outcome of its frames is asked for. When a batch fails, its frames run one by one.

        Args:
            pairs: names of queries, each with a frame.
        """
        runs = plan_runs(pairs, self._model_of, self._sizes)
        found: dict[int, Result | Exception] = {}
        for number in range(len(pairs)):
            if number not in found:
                found |= self._outcomes(runs[number], pairs)
            yield found.pop(number)

    @property
    def stems(self) -> dict[str, dict[str, Any]]:
        """Id of a shared stem -> queries that share the stem, and counts of its runs, as JSON fields."""
        return self._stems.to_json()

    def outputs(self, model: str, frames: Sequence[Frame]) -> list[dict[str, FloatArray]]:
        """Run a model's stage ``main`` once on frames, and return each frame's outputs by name, ``[1, ...]``.

        Raises:
            BackendError: the model could not be swapped in or run, or an output does not have a row for each frame.
        """
        spec = self._manifest.models[model].input
        images = [self._prepared.prepare(frame, spec)[0] for frame in frames]
        self._backend.activate(model)
        try:
            return self._run_main(model, frames, images)
        finally:
            self._backend.release(model)

    def _outcomes(self, run: ModelRun, pairs: Sequence[tuple[str, Frame]]) -> dict[int, Result | Exception]:
        """Run a model on frames, and return the outcome of each pair of a query and a frame, by the pair's index."""
        queries = {number: pairs[number][0] for numbers in run.wanted for number in numbers}
        try:
            return self._answers(run, queries)
        except Exception as error:
            if len(run.frames) == 1:
                return dict.fromkeys(queries, error)
            found: dict[int, Result | Exception] = {}
            for alone in run.singly():
                found |= self._outcomes(alone, pairs)
            if not any(isinstance(outcome, Exception) for outcome in found.values()):
                # No frame is at fault, so the next batch would fail, too.
                self._sizes.pop(run.model, None)
                _log.warning(
                    "model %s: frames run one by one from now on, because a batch of %d failed: %s",
                    run.model,
                    len(run.frames),
                    first_line(error),
                )
            return found

    def _answers(self, run: ModelRun, queries: Mapping[int, str]) -> dict[int, Result | Exception]:
        """Run a model once, and decode the outputs of each frame for each of the frame's queries.

        Args:
            run: model and frames.
            queries: number of a pair -> the pair's query.

        Returns:
            Number of a pair -> its result, or the exception that its decoder raised.

        Raises:
            Exception: a frame cannot be prepared, or the model cannot be swapped in or run.
        """
        spec = self._manifest.models[run.model].input
        prepared = [self._prepared.prepare(frame, spec) for frame in run.frames]
        self._backend.activate(run.model)
        try:
            rows = self._run_main(run.model, run.frames, [image for image, _ in prepared])
            for query in dict.fromkeys(queries.values()):
                self._counts[query] = self._counts.get(query, RunCounts()) + RunCounts(1, len(run.frames))
            return {
                number: self._decoded(queries[number], outputs, geometry)
                for outputs, (_, geometry), numbers in zip(rows, prepared, run.wanted, strict=True)
                for number in numbers
            }
        finally:
            self._backend.release(run.model)

    def _decoded(self, query: str, outputs: Mapping[str, FloatArray], geometry: Geometry) -> Result | Exception:
        """Return a query's result on one frame, or the exception that its decoder raised; its model must be active."""
        try:
            return self._decoders[query](outputs, geometry, partial(self._backend.run, self._model_of[query]))
        except Exception as error:
            return error

    def _run_main(
        self, model: str, frames: Sequence[Frame], images: Sequence[FloatArray]
    ) -> list[dict[str, FloatArray]]:
        """Run the stage ``main`` of an active model once, whole or in two parts, and return each image's outputs.

        Args:
            model: name of the model.
            frames: frames that the images were made of.
            images: prepared images ``[1, C, H, W]``.
        """
        if self._stems.has(model, frames):
            return self._stems.run(model, frames, images)
        name = self._manifest.models[model].stages["main"].inputs[0].name
        # Of one image, the very same array: a backend on a device uploads it once for all queries of a feed.
        return split_rows(model, self._backend.run(model, "main", {name: stacked(images)}), len(images))
