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
"""Called with the name of a stage, what it does or did, and how much of all the work is done if it is over, 0 to 1.
Of a stage that goes on it may be told the same again and again."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What to try."""

    memory: Sequence[str | int] | None = None
    """See :func:`.cases.budgets`."""
    policies: Sequence[str] = ("gemel", "nexus")
    seconds: float = 20.0
    """Of each run."""
    backend: str | None = None
    threads: int | None = None
    loading: Loading = WARM
    sources: Mapping[str, str] = field(default_factory=dict)
    """Feed name to the source that replaces the bundle's."""


@dataclass(frozen=True)
class Score:
    """Of a query in a run; parts of one."""

    processed: float
    """Of the frames that its feed delivered."""
    accuracy: float | None
    """Over all frames that its feed delivered; None where there is nothing to judge by."""
    in_sla: float | None
    """Of the processed frames, those answered within the SLA; None where none was processed."""


@dataclass(frozen=True)
class Run:
    """What came of a case."""

    case: Case
    summary: Summary
    scores: Mapping[str, Score]
    """Of each query."""


@dataclass(frozen=True)
class Evaluation:
    """What came of all cases."""

    settings: EvaluationSettings
    bundles: Mapping[str, Bundle]
    """``unmerged`` and ``merged``, or only ``bundle``; the models of the first one are the reference."""
    weights: Mapping[str, WeightBytes]
    runs: Sequence[Run]
    frames: Mapping[str, int]
    """Of each feed, how many the reference answered."""


def evaluate_bundles(
    bundle: Bundle,
    against: Bundle | None = None,
    settings: EvaluationSettings | None = None,
    *,
    stop: Event | None = None,
    told: EvaluationProgress = lambda stage, what, part: None,
) -> Evaluation:
    """Run a bundle, and the unmerged one in turn with it, live under every budget and policy.

    A memory setting allows both the same bytes: what it means for the unmerged bundle. All runs and the reference read
    the same recordings.

    Args:
        bundle: an open bundle.
        against: the one it was merged from: its models are the reference. Left out, the bundle's own are.
        settings: what to try.
        stop: set it to end the run that goes on; to end them all, ``told`` raises then.
        told: told of each stage.

    Raises:
        InputError: the bundles have different queries or feeds, or a memory setting is too small.
        FeedError: a feed is no recording, or cannot be read.
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
        summary, recorder = _live(bundles[case.bundle], case, settings, stop, told)
        lives.append((case, summary, recorder))
        told("live", _in_words(case, summary), part)
    # Only now it is known how many frames there are to know the answers of.
    frames = {name: max(summary.run.feeds[name].frames for _, summary, _ in lives) for name in sources}
    first = next(iter(bundles))
    reference = answer_all(
        bundles[first], sources, frames, backend=settings.backend, threads=settings.threads, stop=stop
    )
    told("offline", f"the reference: {first}, all in memory, on all {sum(frames.values())} frames", 1.0)
    runs = [Run(case, summary, judge(bundle, summary, recorder, reference)) for case, summary, recorder in lives]
    return Evaluation(settings, bundles, weights, runs, frames)


def judge(bundle: Bundle, summary: Summary, given: Recorder, reference: Recorder) -> dict[str, Score]:
    """The scores of every query in a live run.

    Args:
        bundle: says what the queries are.
        summary: of the run.
        given: its answers.
        reference: the right ones, to all frames that were delivered. Frames without one are left out.
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
    """Asked of the backend itself: each counts bytes in its own way. Its device cache is there from now on."""

    def prepare(model: str) -> None:
        told("prepare", f"{name}: {model} for this device", None)

    found = []
    for memory in ("all", "min"):
        with open_backend(
            bundle, settings.backend, memory=memory, threads=settings.threads, progress=prepare
        ) as backend:
            found.append(backend.budget)
    return WeightBytes(*found)


def _live(
    bundle: Bundle, case: Case, settings: EvaluationSettings, stop: Event | None, told: EvaluationProgress
) -> tuple[Summary, Recorder]:
    def measure(_: str) -> None:
        told("times", f"{case.bundle}: how long weights load and models run, once for this device", None)

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
