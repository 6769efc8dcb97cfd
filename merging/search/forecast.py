"""Forecast of a search: the looks and trainings that are left, and about how long they take."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..layers.problem import Problem
from ..layers.sharing import SharingMap
from ..strategies import Search, Verdict
from ..training.trial import Outcome, Trial
from .keeping import is_outdated, kept, skipped

__all__ = ["Forecast", "forecast"]

_STEP = 0.14
"""Time of a training step as a fraction of a look at the same model, until a training has been measured.

A look runs about 1,800 images of 64 x 64 pixels through a model; a step runs 64 images forward, backward and through
the teacher, which costs about as much as 250 images."""
_MOST_TRIALS = 10_000
"""Maximum number of trials to look ahead."""


@dataclass(frozen=True)
class Forecast:
    """What is left of a search if every training that is still to come reaches its targets."""

    looks: int
    """Number of starting weights that are still to be evaluated without training."""
    trainings: int
    seconds: float | None
    """Time for looks and trainings in seconds; None if no look or training has been timed yet."""


def forecast(
    start: Callable[[], Search], problem: Problem, verdicts: Sequence[Verdict], sharing: SharingMap | None = None
) -> Forecast:
    """Look ahead in a search: repeat its decisions, and assume that every further training reaches its targets.

    A strategy decides on nothing but verdicts, so it can be run ahead with verdicts that are made up. Where a training
    fails, the search takes longer than forecast.

    Args:
        start: function that starts the search's strategy anew.
        problem: the layers and queries of all models.
        verdicts: verdicts so far, without skipped trials.
        sharing: sharing map that the search began with; None if it began from the original weights.
    """
    known, steps, sharing = deque(verdicts), start(), sharing or SharingMap()
    left: list[Trial] = []
    answers: list[Verdict] | None = None
    while len(left) < _MOST_TRIALS:
        try:
            trials = next(steps) if answers is None else steps.send(answers)
        except StopIteration:
            break
        answers, changed = [], frozenset[str]()
        for trial in trials:
            if is_outdated(trial, changed):
                verdict = Verdict(trial, skipped(), False, sharing)
            elif known:
                verdict = known.popleft()
            else:
                left.append(trial)
                verdict = _assumed(trial, problem, sharing)
            if verdict.accepted:
                changed |= trial.sharing.tied(trial.learners)
            sharing = verdict.sharing
            answers.append(verdict)
    steps.close()
    return Forecast(
        sum(trial.recipe is None and not trial.release for trial in left),
        sum(trial.recipe is not None for trial in left),
        _seconds(left, verdicts),
    )


def _assumed(trial: Trial, problem: Problem, shared: SharingMap) -> Verdict:
    """Return the verdict on a trial that has not run: a look finds usable weights, a training reaches all targets.

    Models that are judged again hold, so that nothing is left to do for them.
    """
    trained = trial.recipe is not None or trial.whole
    queries = {query for name in trial.learners for query in problem.queries.get(name, (name,))}
    scores = dict.fromkeys(queries, 1.0 if trained else 0.5)
    met = trial.learners if trained else frozenset[str]()
    outcome = Outcome(scores, scores, met, 0, 0.0, "met" if trained else "start")
    if trial.release:
        return Verdict(trial, outcome, True, shared.of(frozenset(problem.models) - trial.learners))
    after = kept(trial.sharing, shared, frozenset(problem.models)) if trained else None
    if after is None or problem.saved(after) <= problem.saved(shared):
        return Verdict(trial, outcome, False, shared)
    return Verdict(trial, outcome, True, after)


def _seconds(left: Iterable[Trial], verdicts: Sequence[Verdict]) -> float | None:
    """Return about how long some trials take, given the times of earlier trials; None if these tell nothing."""
    looks = [verdict for verdict in verdicts if verdict.trial.recipe is None]
    # A training that ended early did not take all of its steps, so its time tells little.
    trainings = [each for each in verdicts if each.trial.recipe is not None and each.outcome.ended == "done"]
    look, step = _pace(looks), _pace(trainings)
    total = 0.0
    for trial in left:
        if trial.recipe is None:
            pace = look
        elif step is None and trial.recipe.unit == "steps":
            pace = None if look is None else look * _STEP
        else:
            pace = step
        if pace is None:
            return None
        total += pace * _work(trial)
    return total


def _pace(verdicts: Sequence[Verdict]) -> float | None:
    """Return the seconds of one unit of :func:`_work`; None if there is no verdict."""
    work = sum(_work(verdict.trial) for verdict in verdicts)
    return sum(verdict.outcome.seconds for verdict in verdicts) / work if work else None


def _work(trial: Trial) -> int:
    """Return the work of a trial: models for a look, models times steps (or epochs) for a training."""
    return len(trial.learners) * (1 if trial.recipe is None else trial.recipe.steps)
