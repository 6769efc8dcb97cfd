"""Comparison of a bundle's outputs and answers on this device with those of the models that it was compiled from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from ...bundles.manifest import ModelSpec, QuerySpec
from ...bundles.reader import Bundle
from ...errors import BundleError
from ...frames.preprocess import Geometry, preprocess
from ...runtime.backends import Backend, open_backend
from ...runtime.decode import DecodeContext, Decoder, build_decoder
from ...runtime.decode.agreement import SURE
from ...workload.document.schema import Query, Workload
from .feed_frames import FeedFrames, read_feed_frames
from .result_match import MOST_SCORE, AnswerMatch, match_answers
from .source_model import Arrays, SourceModel, file_difference, open_source_model, relative_difference

__all__ = ["Comparison", "compare_with_source"]

_FRAMES = 8
"""Maximum number of frames of a feed on which a model of a bundle is compared with its source."""
_STEADY = 1e-3
"""Change from frame to frame, relative to an output's largest value, below which an output counts as constant."""
_EXCUSE = 10.0
"""Multiple of the difference that ONNX Runtime's own optimisations make in the outputs of a graph.

If a bundle differs from its source by no more than this multiple, the difference is not judged."""


@dataclass(frozen=True)
class Comparison:
    """Result of comparing a model of a bundle with its source model on the same frames."""

    model: str
    relative: float
    """Largest difference between the outputs of a bundle's model and of its source, relative to the output's largest
    absolute value."""
    passed: bool | None
    """Whether outputs and answers of a bundle's model are close enough to the source model's; None if that is not
    judged."""
    equal: bool = False
    """Whether all differences of a bundle's outputs from the source model's are within the allowed tolerance."""
    inputs: str = ""
    """Description of the frames on which a bundle's model and its source model were compared."""
    constant: tuple[str, ...] = ()
    """Names of the source model's outputs that hardly change over the compared frames, so that their agreement says
    little."""
    answers: AnswerMatch | None = None
    """Likeness of the decoded answers of a bundle's model and its source; None on noise, and for the task ``raw``,
    whose answers are the outputs."""
    reason: str | None = None
    """Reason why the outputs of a bundle's model are not judged; None if they are judged."""


def compare_with_source(
    bundle: Bundle, workload: Workload, *, rtol: float, atol: float, backend: str | None = None
) -> Iterator[Comparison]:
    """Run every model of a bundle and its source model on the same frames, and compare outputs and answers.

    Frames are those of the feed of the first query that uses the model; seeded noise if the feed is a camera or cannot
    be read. The reference is the PyTorch module in eager mode, or the source ONNX file without any of ONNX Runtime's
    optimisations. Stages other than ``main`` are also compared on seeded inputs.

    Args:
        bundle: bundle that was compiled from ``workload``.
        workload: workload with the source models.
        rtol: allowed difference of an output, relative to the output's largest absolute value.
        atol: absolute difference of an output that is allowed in any case.
        backend: name of the backend that runs the bundle; the bundle's own if None.

    Raises:
        BundleError: the workload has no query for a model of the bundle.
    """
    queries = {query.name: query for query in workload.queries}
    missing = [name for name in bundle.manifest.models if name not in queries]
    if missing:
        raise BundleError(f"{workload.path}: has no query {missing[0]!r}, from which the bundle has a model")
    frames: dict[str, FeedFrames] = {}
    with open_backend(bundle, backend) as opened:
        for name in bundle.manifest.models:
            feed = queries[name].feed
            if feed not in frames:
                frames[feed] = read_feed_frames(workload, feed, _FRAMES)
            yield _ModelCheck(bundle, opened, name, queries[name], workload).run(frames[feed], rtol, atol)


class _ModelCheck:
    """Comparison of one model of a bundle with its source model."""

    def __init__(self, bundle: Bundle, backend: Backend, name: str, query: Query, workload: Workload) -> None:
        self.bundle, self.backend, self.name = bundle, backend, name
        self.spec: ModelSpec = bundle.manifest.models[name]
        self.source: SourceModel = open_source_model(query, self.spec, workload.root)
        self.port = self.spec.stages["main"].inputs[0].name
        self.relative, self.passed, self.worst = 0.0, True, ("main", Arrays())
        """Largest relative difference so far between outputs of the bundle's model and its source, whether all
        differences are allowed, and the stage and inputs of the largest."""

    def run(self, frames: FeedFrames, rtol: float, atol: float) -> Comparison:
        answers, first, steady = None, Arrays(), set[str]()
        self.backend.activate(self.name)
        try:
            decoder = self._decoder(frames)
            for image in frames.images:
                pixels, geometry = preprocess(image, self.spec.input)
                found, expected = self._compare("main", {self.port: pixels}, rtol, atol)
                if not first:
                    first, steady = expected, set(expected)
                elif steady:
                    steady -= {name for name in steady if relative_difference(expected[name], first[name]) >= _STEADY}
                if decoder is not None:
                    one = self._match(decoder, found, expected, geometry)
                    answers = one if answers is None else answers.joined(one)
            for stage, inputs in self.source.examples().items():
                self._compare(stage, inputs, rtol, atol)
        finally:
            self.backend.release(self.name)
        passed, reason = self._verdict(rtol, answers)
        constant = tuple(sorted(steady)) if len(frames.images) > 1 else ()
        return Comparison(self.name, self.relative, passed, self.passed, frames.words, constant, answers, reason)

    def _compare(self, stage: str, inputs: Arrays, rtol: float, atol: float) -> tuple[Arrays, Arrays]:
        """Run a stage of a model in the bundle and in the source model, record the difference, and return the outputs
        of both."""
        expected = self.source.run(stage, inputs)
        found = self.backend.run(self.name, stage, inputs)
        if set(found) != set(expected):
            names = f"{', '.join(found)}, not {', '.join(expected)}"
            raise BundleError(f"model {self.name}: the bundle's outputs are {names}")
        for output, reference in expected.items():
            ratio = relative_difference(found[output], reference)
            scale = float(np.abs(reference[np.isfinite(reference)]).max(initial=0.0)) if reference.size else 0.0
            if not ratio <= self.relative:
                self.relative, self.worst = ratio, (stage, dict(inputs))
            self.passed = self.passed and bool(ratio <= rtol or ratio * (scale or 1.0) <= atol)
        return found, expected

    def _verdict(self, rtol: float, answers: AnswerMatch | None) -> tuple[bool | None, str | None]:
        """Return whether the bundle's model is close enough to its source; None and a reason if this is not judged."""
        if self.spec.precision != "fp32" and np.isfinite(self.relative):
            return None, f"{self.spec.precision} is judged by --accuracy"
        if self.passed:
            return answers is None or answers.different is None, None
        stage, inputs = self.worst
        own = self.source.runtime_difference(stage, inputs)
        if own is None:
            own = file_difference(self.bundle.file(self.spec.stages[stage].file), inputs)
        if own > rtol and self.relative <= _EXCUSE * own:
            return None, f"ONNX Runtime's own optimised and plain runs of the source differ by {own:.1e}"
        return False, None

    def _decoder(self, frames: FeedFrames) -> Decoder | None:
        """Return the decoder for a model's outputs in the bundle and in the source; None on noise and for the task
        ``raw``."""
        if frames.is_noise or self.spec.decode.kind == "raw":
            return None
        query: QuerySpec = self.bundle.manifest.queries[self.name]
        context = DecodeContext(self.bundle.tensor, query.labels, query.threshold, query.classes)
        return build_decoder(self.spec.decode, context)

    def _match(self, decoder: Decoder, found: Arrays, expected: Arrays, geometry: Geometry) -> AnswerMatch:
        """Decode the outputs of the bundle's model and of its source, each by its own further stages, and compare the
        answers."""
        threshold = self.bundle.manifest.queries[self.name].threshold
        if threshold is None:
            threshold = max(SURE, getattr(self.spec.decode, "score_threshold", 0.0))
        try:
            ours = decoder(found, geometry, partial(self.backend.run, self.name))
            theirs = decoder(expected, geometry, self.source.run)
        except Exception as error:
            return AnswerMatch(1, different=f"cannot be decoded: {type(error).__name__}: {error}")
        return match_answers(ours, theirs, threshold + MOST_SCORE)
