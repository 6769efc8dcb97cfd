"""Judge of samples: scores of each query's answers beside the original models', over windows of time, and verdicts."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ...bundles.keep_reverts import reverted_queries
from ...bundles.reader import Bundle
from ...errors import InputError, first_line
from ...frames.frame import Image
from ...runtime.decode.read_results import result_from_json
from ...runtime.decode.results import Result
from ...runtime.sinks.sample_files import DamagedSampleError, StoredSample
from ..evaluation.reference import has_several_labels
from .evidence import Detector, confidence_interval
from .image_scores import ImageScores

__all__ = ["Asked", "DriftJudge", "DriftLimits", "DriftVerdict", "FrameAnswers", "LeftOut", "QueryDrift", "Window"]

DriftVerdict = Literal["holds", "watch", "revert", "unknown"]
"""What is known of a query. ``holds``: nothing says that its accuracy is below the target. ``watch``: something does.
``revert``: it is, with the stated rate of false alarms. ``unknown``: no sample could be judged."""
LeftOut = Literal["damaged", "before --since", "other bundle", "unknown query", "unreadable answer", "failed"]
"""Why a sample, or an answer in it, is left out of a judgement."""

_MOST_REASONS = 5
"""Maximum number of examples that are kept of what was left out."""


class FrameAnswers(Protocol):
    """Bundle on a device that answers single frames, as :class:`.bundle_answers.BundleAnswers`."""

    bundle: Bundle
    at_once: int
    """Number of threads that may call :meth:`answer` at once."""

    def answer(self, image: Image, queries: list[str]) -> dict[str, Result]:
        """Return query -> answer to a frame."""
        ...


@dataclass
class Asked:
    """Sample with the answers of both bundles to its frame, before it is judged."""

    sample: StoredSample
    answers: dict[str, tuple[Result, Result]] = field(default_factory=dict)
    """Query -> answers of the boxes' bundle and of the original model to the stored frame."""
    left_out: list[tuple[LeftOut, str]] = field(default_factory=list)
    """Why the sample, or an answer in it, cannot be judged, with an example."""


@dataclass(frozen=True)
class DriftLimits:
    """Limits of verdicts, and the rates of false alarms that follow from them."""

    samples: int = 20
    """Number of samples that the rates of false alarms are stated for."""
    false_reverts: float = 0.001
    """Chance that a query which keeps its target is reverted within that many samples."""
    false_watches: float = 0.05
    """Chance that a query which keeps its target is to be watched within that many samples, for lack of accuracy."""
    tolerance: float = 0.005
    """Accuracy below the target that is still allowed: scores of single frames, averaged, differ by as much from the
    accuracy by which a merge was accepted."""
    window_s: float = 3600.0
    """Length of a window of time in seconds, for which accuracies are shown."""

    def level(self, target: float) -> float:
        """Return the mean score that a query with a target has at least, as long as it keeps the target."""
        return max(target - self.tolerance, 0.01)

    @property
    def revert(self) -> float:
        """Evidence at which a query is reverted."""
        return self.samples / self.false_reverts

    @property
    def watch(self) -> float:
        """Evidence at which a query is to be watched."""
        return self.samples / self.false_watches


@dataclass
class Window:
    """Scores of a query in one window of time."""

    start: float
    """Begin of the window in Unix seconds, by the boxes' clocks."""
    scores: list[float] = field(default_factory=list)
    _known: tuple[int, tuple[float, float]] = (0, (0.0, 1.0))
    """Number of scores, and the interval that was computed from them. Scores are only ever added."""

    @property
    def accuracy(self) -> float:
        """Mean score in the window."""
        return sum(self.scores) / len(self.scores)

    @property
    def interval(self) -> tuple[float, float]:
        """Interval that contains the window's accuracy with 95 % confidence."""
        if self._known[0] != len(self.scores):
            self._known = len(self.scores), confidence_interval(self.scores)
        return self._known[1]


class QueryDrift:
    """What samples say about one query.

    Args:
        target: accuracy relative to the original model that the query must keep, from 0 to 1.
        scores: scores of the query's answers.
        limits: limits of verdicts.
    """

    def __init__(self, target: float, scores: ImageScores, limits: DriftLimits) -> None:
        self.target, self._scores, self._limits = target, scores, limits
        self._detector = Detector(limits.level(target))
        self.windows: dict[float, Window] = {}
        self.samples = 0
        """Number of samples with an answer of the query."""
        self._given = 0.0
        self.evidence = 0.0
        """Evidence that the accuracy is below the target now; see :class:`.evidence.Detector`."""
        self.reverted_at: float | None = None
        """Unix time of the sample that made the verdict ``revert``; None if none did. The verdict then stays."""
        self.began_at: float | None = None
        """Unix time of the sample with which the loss that led to the verdict ``revert`` has probably begun."""

    @property
    def judged(self) -> int:
        """Number of samples that have a score."""
        return sum(len(window.scores) for window in self.windows.values())

    @property
    def accuracy(self) -> float | None:
        """Mean of all scores; None without one."""
        return sum(sum(window.scores) for window in self.windows.values()) / self.judged if self.judged else None

    @property
    def given(self) -> float | None:
        """Mean score of the answers that boxes gave, whatever compression and hooks have changed; None without one."""
        return self._given / self.judged if self.judged else None

    @property
    def verdict(self) -> DriftVerdict:
        """What is known of the query."""
        if self.reverted_at is not None:
            return "revert"
        if not self.judged:
            return "unknown"
        return "watch" if self.evidence >= self._limits.watch else "holds"

    def add(self, at: float, given: Result | None, again: Result, reference: Result) -> None:
        """Take in one sample.

        A score is that of the better of two answers: the one that the box gave on the live frame, and the one that the
        bundle gives on the stored frame. So neither compression nor a hook that changed the frame counts as a loss.

        Args:
            at: time of the sample in Unix seconds.
            given: answer that the box gave; None if it cannot be used.
            again: answer of the box's bundle to the stored frame.
            reference: answer of the original model to the stored frame.
        """
        self.samples += 1
        scores = self._scores.score((given, again), reference)
        if scores is None:
            return
        score = max(scores)
        self._given += scores[0]
        start = at // self._limits.window_s * self._limits.window_s
        self.windows.setdefault(start, Window(start)).scores.append(score)
        self.evidence = self._detector.add(score, at)
        if self.reverted_at is None and self.evidence >= self._limits.revert:
            self.reverted_at, self.began_at = at, self._detector.began


class DriftJudge:
    """Judge of the samples of one bundle.

    Args:
        merged: bundle that the boxes run, on a device.
        originals: bundle of the original models, on a device.
        limits: limits of verdicts.
        since: Unix time by the boxes' clocks; earlier samples are left out.

    Raises:
        InputError: the bundle of the original models lacks a query, or has another task for it.
    """

    def __init__(
        self,
        merged: FrameAnswers,
        originals: FrameAnswers,
        limits: DriftLimits | None = None,
        since: float = float("-inf"),
    ) -> None:
        self._merged, self._originals, self.limits, self._since = merged, originals, limits or DriftLimits(), since
        queries, known = merged.bundle.manifest.queries, originals.bundle.manifest.queries
        for name, query in queries.items():
            if name not in known:
                raise InputError(f"{originals.bundle.path}: has no query {name!r}, which the bundle of the boxes has")
            if known[name].task != query.task:
                raise InputError(f"{originals.bundle.path}: query {name} is of the task {known[name].task}")
        self.bundle, self.original = merged.bundle, originals.bundle
        self._queries = queries
        self.drifts = {
            name: QueryDrift(
                query.target, ImageScores(query.task, has_several_labels(merged.bundle, name)), self.limits
            )
            for name, query in queries.items()
        }
        """Query of the bundle -> what samples say about it."""
        self.reverted = frozenset(reverted_queries(self.bundle))
        """Queries that run with their original weights in the bundle as it is now."""
        self._settled: dict[str, frozenset[str]] = {self.bundle.id: frozenset()}
        """Id of a bundle whose samples are judged -> queries of which that says nothing more."""
        self.left_out: Counter[LeftOut] = Counter()
        self.reasons: dict[LeftOut, list[str]] = defaultdict(list)
        """Why something was left out -> the first few examples."""
        self.newest: float | None = None
        """Unix time of the newest sample that was judged."""
        self.at_once = min(merged.at_once, originals.at_once)
        """Number of threads that may call :meth:`ask` at once."""
        self.clocks_back = 0
        """Number of samples whose clock is behind that of an earlier frame of the same run and feed."""

    def go_on(self, bundle: Bundle) -> None:
        """Judge the samples of another bundle, too, in which some queries were reverted and the others did not change.

        Evidence about the others goes on. What reverted queries answer is not judged any more.
        """
        now = frozenset(reverted_queries(bundle))
        self._settled[bundle.id] = now.difference(reverted_queries(self.bundle))
        self.reverted = now

    def leave_out(self, why: LeftOut, what: str) -> None:
        """Count something that is left out."""
        self.left_out[why] += 1
        if len(self.reasons[why]) < _MOST_REASONS and what not in self.reasons[why]:
            self.reasons[why].append(what)

    def ask(self, sample: StoredSample) -> Asked:
        """Have both bundles answer the frame of a sample, which changes nothing here.

        Args:
            sample: sample of any bundle.

        Raises:
            BackendError: the store does not answer, or gives no access.
        """
        record, asked = sample.record, Asked(sample)
        if record.at < self._since:
            asked.left_out.append(("before --since", sample.name))
            return asked
        settled = self._settled.get(record.bundle)
        if settled is None:
            asked.left_out.append(("other bundle", f"{sample.name}: bundle {record.bundle[:12]}"))
            return asked
        known = [query for query in record.answers if query in self._queries and query not in settled]
        for query in record.answers.keys() - self._queries.keys():
            asked.left_out.append(("unknown query", f"{sample.name}: {query}"))
        if not known:
            return asked
        try:
            image = sample.image()
        except DamagedSampleError as error:
            asked.left_out.append(("damaged", str(error)))
            return asked
        try:
            again, reference = (each.answer(image, known) for each in (self._merged, self._originals))
        except Exception as error:
            asked.left_out.append(("failed", f"{sample.name}: {type(error).__name__}: {first_line(error)}"))
            return asked
        asked.answers.update((query, (again[query], reference[query])) for query in known)
        return asked

    def add(self, asked: Asked, at: float) -> None:
        """Judge one sample. Samples of a run and feed must come in the order of their frames.

        Args:
            asked: sample with the answers of both bundles.
            at: time of the sample in Unix seconds, from :func:`.follow.in_order`.
        """
        record, name = asked.sample.record, asked.sample.name
        for why, what in asked.left_out:
            self.leave_out(why, what)
        if not asked.answers:
            return
        for query, (again, reference) in asked.answers.items():
            try:
                given: Result | None = result_from_json(self._queries[query].task, record.answers[query])
            except ValueError as error:
                self.leave_out("unreadable answer", f"{name}: {query}: {first_line(error)}")
                given = None
            self.drifts[query].add(at, given, again, reference)
        self.newest = at if self.newest is None else max(self.newest, at)
