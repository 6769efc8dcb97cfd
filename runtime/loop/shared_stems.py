"""Runs of models in two parts: the stem (first layers), once a frame for all queries that share it, and the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...bundles.manifest import Manifest
from ...errors import BackendError
from ...frames.frame import Frame
from ..backends import Backend
from ..decode import FloatArray
from .summary import RunCounts

__all__ = ["SharedStems", "split_rows", "stacked"]

_Outputs = Mapping[str, FloatArray]


class SharedStems:
    """Runner of models in two parts, which keeps the outputs of stems (first layers) on the newest frames.

    Args:
        content: manifest of the bundle.
        backend: backend that runs the bundle's models in parts.
        depths: feed -> maximum number of frames whose outputs of a stem are kept; 1 for a feed that is left out.
        stems: query -> id of the stem that the query shares.
    """

    def __init__(
        self, content: Manifest, backend: Backend, depths: Mapping[str, int], stems: Mapping[str, str]
    ) -> None:
        self._content, self._backend, self._depths = content, backend, depths
        self._shared = {(content.queries[query].model, content.queries[query].feed) for query in stems}
        """(model, feed) for the models that share their stem with other models on frames of the feed."""
        self._queries = {stem: [name for name, each in stems.items() if each == stem] for stem in stems.values()}
        self._kept: dict[tuple[str, str], dict[int, _Outputs]] = {}
        """(feed, stem id) -> frame index -> outputs of the stem, ``[1, ...]`` each."""
        self.counts: dict[str, RunCounts] = {}
        """Stem id -> counts of the stem's runs so far."""

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return stem id -> queries that share the stem, and counts of its runs. May be called on any thread."""
        counts = {stem: self.counts.get(stem, RunCounts()) for stem in self._queries}
        return {
            stem: {"queries": self._queries[stem], "runs": each.runs, "frames": each.frames}
            for stem, each in counts.items()
        }

    def has(self, model: str, frames: Sequence[Frame]) -> bool:
        """Return whether to run a model in two parts: yes if other models share its stem on one of the frames."""
        return any((model, frame.feed) in self._shared for frame in frames)

    def run(self, model: str, frames: Sequence[Frame], images: Sequence[FloatArray]) -> list[dict[str, FloatArray]]:
        """Run an active model in parts on some frames, and return each frame's outputs of stage ``main``.

        The stem runs once on all frames of which its outputs are not kept. The rest runs once.

        Args:
            model: name of the model.
            frames: frames that the images were made of.
            images: prepared images ``[1, C, H, W]``.

        Raises:
            BackendError: a part could not be run, or an output does not have a row for each frame.
        """
        spec = self._content.models[model].stem
        assert spec is not None  # only queries of such models share a stem
        (image,) = (port.name for port in spec.stem.inputs)
        known = [self._kept.get((frame.feed, spec.id), {}).get(frame.index) for frame in frames]
        missing = [number for number, outputs in enumerate(known) if outputs is None]
        if missing:
            found = self._backend.run(model, "stem", {image: stacked([images[number] for number in missing])})
            for number, outputs in zip(missing, split_rows(model, found, len(missing)), strict=True):
                known[number] = outputs
                self._keep(frames[number], spec.id, outputs)
            self.counts[spec.id] = self.counts.get(spec.id, RunCounts()) + RunCounts(1, len(missing))
        values = [{image: pixels, **(outputs or {})} for pixels, outputs in zip(images, known, strict=True)]
        inputs = {port.name: stacked([each[port.name] for each in values]) for port in spec.rest.inputs}
        return split_rows(model, self._backend.run(model, "rest", inputs), len(frames))

    def _keep(self, frame: Frame, stem: str, outputs: _Outputs) -> None:
        """Keep a stem's outputs on a frame; drop those on the oldest frame if too many frames are kept."""
        kept = self._kept.setdefault((frame.feed, stem), {})
        if len(kept) >= self._depths.get(frame.feed, 1):
            # Frames leave the channel of their feed in order, the oldest first.
            del kept[min(kept)]
        kept[frame.index] = outputs


def stacked(arrays: Sequence[FloatArray]) -> FloatArray:
    """Return arrays ``[1, ...]`` as one batch ``[N, ...]``; a single array is returned as it is."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def split_rows(model: str, outputs: Mapping[str, FloatArray], count: int) -> list[dict[str, FloatArray]]:
    """Return the outputs of a batch as the outputs of each image, ``[1, ...]``.

    Args:
        model: name of the model, for errors.
        outputs: outputs by name.
        count: number of images in the batch.

    Raises:
        BackendError: an output does not have a row for each image of several.
    """
    if count == 1:
        return [dict(outputs)]
    if wrong := [port for port, array in outputs.items() if array.ndim == 0 or len(array) != count]:
        raise BackendError(f"model {model}: output {wrong[0]} has no row for each of {count} frames")
    return [{port: array[row : row + 1] for port, array in outputs.items()} for row in range(count)]
