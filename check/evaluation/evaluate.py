"""Evaluation of a bundle under budgets and policies, compared with the unmerged bundle, with a score per query."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Event

from ...bundles.reader import Bundle
from ...runtime.backends import open_backend
from ...runtime.decode.agreement import agreement
from ...runtime.loop.summary import Summary
from ...runtime.memory.loading import WARM, Loading
from ...runtime.planning.planner import POLICIES
from ...runtime.run import RunOptions, run_bundle
from .answers import Answer, Recorder, arrivals, standing
from .cases import Case, WeightBytes, budgets, cases, check_same
from .reference import answer_all, has_several_labels, recordings

__all__ = ["Evaluation", "EvaluationProgress", "EvaluationSettings", "Run", "Score", "evaluate_bundles", "judge"]

EvaluationProgress = Callable[[str, str, float | None], None]
"""Function that receives the progress of an evaluation, called with (stage, text, fraction): the name of a stage, and
what it does or did.

The fraction of all work that is done, from 0 to 1, is given when a stage has ended; otherwise None. The same text may
be passed several times while a stage runs."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation of a bundle, as ``gemel eval`` runs it."""

    memory: Sequence[str | int] | None = None
    """Memory settings under which to evaluate a bundle; None for the default settings, see :func:`.cases.budgets`."""
    policies: Sequence[str] = ("gemel", "nexus")
    """Names of the planning policies to evaluate (turns of queries, eviction and prefetch of weights)."""
    objective: str | None = None
    """Name of the objective of plans, for policies that have none of their own; None for the bundle's."""
    seconds: float = 20.0
    """Length of each live run of an evaluation in seconds."""
    backend: str | None = None
    """Name of the backend that an evaluation runs on; None for the backend that the bundle names."""
    threads: int | None = None
    """Maximum number of threads that one run of an evaluation may use; None for the backend's default."""
    loading: Loading = WARM
    """Way in which the runs of an evaluation load evicted weights again."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Feed name -> source that replaces the source in the bundle."""

    def objective_for(self, policy: str) -> str | None:
        """Return the objective for runs with a policy; None for the bundle's, or a baseline policy's own."""
        return None if POLICIES[policy].listed else self.objective


@dataclass(frozen=True)
class Score:
    """Score of one query in one live run. All values are from 0 to 1."""

    processed: float
    """Fraction of the feed's frames that a query processed, from 0 to 1."""
    accuracy: float | None
    """Accuracy of a query over all frames of its feed, from 0 to 1; None if there are no reference answers to compare
    with."""
    in_sla: float | None
    """Fraction of a query's processed frames that were answered within the SLA; None if no frame was processed."""


@dataclass(frozen=True)
class Run:
    """Summary and scores of one case of an evaluation."""

    case: Case
    summary: Summary
    scores: Mapping[str, Score]
    """Query name -> score of the query in one run."""


@dataclass(frozen=True)
class Evaluation:
    """Settings, bundles and results of all cases of an evaluation."""

    settings: EvaluationSettings
    bundles: Mapping[str, Bundle]
    """Bundle name -> bundle of an evaluation: ``unmerged`` and ``merged``, or only ``bundle``. The first one gives
    reference answers."""
    weights: Mapping[str, WeightBytes]
    """Bundle name -> bytes of memory that the bundle's weights need."""
    runs: Sequence[Run]
    frames: Mapping[str, int]
    """Feed name -> number of frames that reference answers were requested for."""


def evaluate_bundles(
    bundle: Bundle,
    against: Bundle | None = None,
    settings: EvaluationSettings | None = None,
    *,
    stop: Event | None = None,
    told: EvaluationProgress = lambda stage, what, part: None,
) -> Evaluation:
    """Run a bundle live under every budget and policy, alternating with the unmerged bundle if one is given.

    A memory setting is converted to bytes for the unmerged bundle, and allows both bundles these bytes. All runs, and
    the run for reference answers, read the same recordings.

    Args:
        bundle: open bundle.
        against: open bundle of the unmerged models, which give the reference answers; None to use those of ``bundle``.
        settings: settings of the evaluation; None for the defaults.
        stop: event that ends the current run. To end the whole evaluation, ``told`` must raise an exception.
        told: function that receives progress.

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
    # The number of frames that need reference answers is known only after the live runs.
    frames = {name: max(summary.run.feeds[name].delivered for _, summary, _ in lives) for name in sources}
    first = next(iter(bundles))
    reference = answer_all(
        bundles[first], sources, frames, backend=settings.backend, threads=settings.threads, stop=stop
    )
    told("offline", f"the reference: {first}, all in memory, on all {sum(frames.values())} frames", 1.0)
    runs = [Run(case, summary, judge(bundle, summary, recorder, reference)) for case, summary, recorder in lives]
    return Evaluation(settings, bundles, weights, runs, frames)


def judge(bundle: Bundle, summary: Summary, given: Recorder, reference: Recorder) -> dict[str, Score]:
    """Return query name -> score of the query in a live run.

    Args:
        bundle: open bundle, for its queries and their SLAs.
        summary: summary of the run.
        given: answers of the run.
        reference: reference answers to all frames that the feeds delivered. Frames without one are not scored.
    """
    queries = bundle.manifest.queries
    heard = {query.feed: list[Answer]() for query in queries.values()}
    for name, answers in given.answers.items():
        heard[queries[name].feed] += answers
    scores: dict[str, Score] = {}
    for name, query in queries.items():
        stats, own, sla_s = summary.run.queries[name], given.answers[name], bundle.manifest.sla_of(name) / 1e3
        right = [answer for answer in reference.answers[name] if answer.frame < stats.frames]
        due = arrivals([answer.time for answer in right], heard[query.feed]) + sla_s
        found = standing(own, [answer.frame for answer in right], due)
        multi_label = has_several_labels(bundle, name)
        scores[name] = Score(
            stats.processed / stats.frames if stats.frames else 0.0,
            agreement(query.task, found, [answer.result for answer in right], multi_label=multi_label),
            sum(answer.done - answer.arrived <= sla_s for answer in own) / len(own) if own else None,
        )
    return scores


def _weights(name: str, bundle: Bundle, settings: EvaluationSettings, told: EvaluationProgress) -> WeightBytes:
    """Return the bytes of a bundle's weights as the backend counts them.

    Opening the backend also creates the device cache, so that no live run has to create it.
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
    """Run one case of an evaluation live, and return its summary and its answers."""

    def measure(_: str) -> None:
        told("times", f"{case.bundle}: measuring load and run times, once for this device", None)

    recorder, policy = Recorder(), case.policy or settings.policies[0]
    options = RunOptions(
        backend=settings.backend,
        memory=case.budget,
        policy=policy,
        objective=settings.objective_for(policy),
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
