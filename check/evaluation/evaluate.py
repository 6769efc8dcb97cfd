"""Run a bundle under budgets and policies, beside the bundle it was merged from, and score every answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Event

from ...bundles.reader import Bundle
from ...runtime.backends import open_backend
from ...runtime.decode.agreement import agreement
from ...runtime.loop.summary import Summary
from ...runtime.memory.arena import WARM, Loading
from ...runtime.run import RunOptions, run_bundle
from .answers import Answer, Recorder, arrivals, standing
from .cases import Case, WeightBytes, budgets, cases, check_same
from .reference import answer_all, recordings

__all__ = ["Evaluation", "EvaluationProgress", "EvaluationSettings", "Run", "Score", "evaluate_bundles", "judge"]

EvaluationProgress = Callable[[str, str, float | None], None]
"""Function that is told of progress: the name of a stage, what the stage does or did, and, if the stage is over, the
part of all work that is done, from 0 to 1. The same text may be told several times while a stage runs."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation."""

    memory: Sequence[str | int] | None = None
    """Memory settings; None for the default ones, see :func:`.cases.budgets`."""
    policies: Sequence[str] = ("gemel", "nexus")
    """Names of the policies that queries take turns by."""
    seconds: float = 20.0
    """Length of each run in seconds."""
    backend: str | None = None
    """Name of the backend; None for the bundle's."""
    threads: int | None = None
    """Threads that one run may use; None for the backend's default."""
    loading: Loading = WARM
    """Way in which evicted weights are loaded again."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Feed name to the source that replaces the bundle's."""


@dataclass(frozen=True)
class Score:
    """Score of a query in a run. All values are from 0 to 1."""

    processed: float
    """Part of the feed's frames that were processed."""
    accuracy: float | None
    """Accuracy over all frames of the feed; None if there are no right answers to judge by."""
    in_sla: float | None
    """Part of the processed frames that were answered within the SLA; None if no frame was processed."""


@dataclass(frozen=True)
class Run:
    """Result of a case."""

    case: Case
    summary: Summary
    scores: Mapping[str, Score]
    """Query name -> score."""


@dataclass(frozen=True)
class Evaluation:
    """Results of all cases."""

    settings: EvaluationSettings
    bundles: Mapping[str, Bundle]
    """Bundles named ``unmerged`` and ``merged``, or only ``bundle``. Models of the first bundle are the reference."""
    weights: Mapping[str, WeightBytes]
    """Bundle name -> bytes of its weights."""
    runs: Sequence[Run]
    frames: Mapping[str, int]
    """Feed name -> frames that the reference answered."""


def evaluate_bundles(
    bundle: Bundle,
    against: Bundle | None = None,
    settings: EvaluationSettings | None = None,
    *,
    stop: Event | None = None,
    told: EvaluationProgress = lambda stage, what, part: None,
) -> Evaluation:
    """Run a bundle live under every budget and policy, in turns with the unmerged bundle if there is one.

    A memory setting allows both bundles the same bytes: those that it means for the unmerged bundle. All runs and the
    reference read the same recordings.

    Args:
        bundle: open bundle.
        against: open bundle of the unmerged models, which are the reference; None to take the bundle's own models.
        settings: settings of the evaluation; None for the defaults.
        stop: event that ends the current run. To end the whole evaluation, ``told`` must raise.
        told: called on progress.

    Raises:
        InputError: the bundles have different queries or feeds, or a memory setting is too small.
        FeedError: a feed is not a recording, or cannot be read.
        BackendError: the device cannot run a bundle.
    """
    settings = settings or EvaluationSettings()
    bundles = {"bundle": bundle} if against is None else {"unmerged": against, "merged": bundle}
    if against is not None:
        check_same(bundle, against)
    sources = recordings(bundle, settings.sources)
    settings = replace(
        settings,
        backend=settings.backend or bundle.manifest.device.backend,
        sources={name: source.location for name, source in sources.items()},
    )
    weights = {name: _weights(name, each, settings, told) for name, each in bundles.items()}
    planned = cases(budgets(settings.memory, weights), settings.policies, weights)
    lives: list[tuple[Case, Summary, Recorder]] = []
    for number, case in enumerate(planned, 1):
        part = number / (len(planned) + 1)
        summary, recorder = _run_live(bundles[case.bundle], case, settings, stop, told)
        lives.append((case, summary, recorder))
        told("live", _in_words(case, summary), part)
    # The number of frames to make right answers for is known only after the live runs.
    frames = {name: max(summary.run.feeds[name].frames for _, summary, _ in lives) for name in sources}
    first = next(iter(bundles))
    reference = answer_all(
        bundles[first], sources, frames, backend=settings.backend, threads=settings.threads, stop=stop
    )
    told("offline", f"the reference: {first}, all in memory, on all {sum(frames.values())} frames", 1.0)
    runs = [Run(case, summary, judge(bundle, summary, recorder, reference)) for case, summary, recorder in lives]
    return Evaluation(settings, bundles, weights, runs, frames)


def judge(bundle: Bundle, summary: Summary, given: Recorder, reference: Recorder) -> dict[str, Score]:
    """Return query name -> score in a live run.

    Args:
        bundle: open bundle, for its queries and SLA.
        summary: summary of the run.
        given: answers of the run.
        reference: right answers to all frames that the feeds delivered. Frames without one are not judged.
    """
    queries, sla_s = bundle.manifest.queries, bundle.manifest.sla_ms / 1e3
    heard = {query.feed: list[Answer]() for query in queries.values()}
    for name, answers in given.answers.items():
        heard[queries[name].feed] += answers
    scores: dict[str, Score] = {}
    for name, query in queries.items():
        stats, own = summary.run.queries[name], given.answers[name]
        right = [answer for answer in reference.answers[name] if answer.frame < stats.frames]
        due = arrivals([answer.time for answer in right], heard[query.feed]) + sla_s
        found = standing(own, [answer.frame for answer in right], due)
        scores[name] = Score(
            stats.processed / stats.frames if stats.frames else 0.0,
            agreement(query.task, found, [answer.result for answer in right]),
            sum(answer.done - answer.arrived <= sla_s for answer in own) / len(own) if own else None,
        )
    return scores


def _weights(name: str, bundle: Bundle, settings: EvaluationSettings, told: EvaluationProgress) -> WeightBytes:
    """Ask the backend for the bytes of a bundle's weights, which each backend counts in its own way.

    Opening the backend also makes its device cache, so that no live run has to.
    """

    def prepare(model: str) -> None:
        told("prepare", f"{name}: {model} for this device", None)

    found = []
    for memory in ("all", "min"):
        with open_backend(
            bundle, settings.backend, memory=memory, threads=settings.threads, progress=prepare
        ) as backend:
            found.append(backend.budget)
    return WeightBytes(*found)


def _run_live(
    bundle: Bundle, case: Case, settings: EvaluationSettings, stop: Event | None, told: EvaluationProgress
) -> tuple[Summary, Recorder]:
    """Run one case, and return its summary and its answers."""

    def measure(_: str) -> None:
        told("times", f"{case.bundle}: measuring load and run times, once for this device", None)

    recorder = Recorder()
    options = RunOptions(
        backend=settings.backend,
        memory=case.budget,
        policy=case.policy or settings.policies[0],
        loading=settings.loading,
        duration=settings.seconds,
        threads=settings.threads,
        sources=settings.sources,
    )
    return run_bundle(bundle, options, sinks=[recorder], stop=stop, profiling=measure), recorder


def _in_words(case: Case, summary: Summary) -> str:
    queries = summary.run.queries.values()
    part = sum(query.processed for query in queries) / max(1, sum(query.frames for query in queries))
    how = case.policy or "all in memory"
    return f"{case.memory}, {how}, {case.bundle}: {part:.1%} of the frames processed"
