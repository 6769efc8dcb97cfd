"""Forecast of a search: the looks and trainings that are left, and about how long they take."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ..forms.quantize import BITS
from ..layers.problem import Problem
from ..strategies import Search, Verdict
from ..training.trial import Outcome, Trial
from .found import Found
from .keeping import is_outdated, released, saves_less, skipped, useful_trials
from .settle import LastTrained, judge_trial, release_models

__all__ = ["Forecast", "forecast"]

_STEP = 0.14
"""Time of a training step as a fraction of a look at the same model, until a training has been measured.

A look runs about 1,800 images of 64 x 64 pixels through a model; a step runs 64 images forward, backward and through
the teacher, which costs about as much as 250 images."""
_MOST_TRIALS = 10_000
"""Maximum number of trials to look ahead."""


@dataclass(frozen=True)
class Forecast:
    """What is left of a search if every training that is still to come reaches its targets.

    Codes of weights count with the most measurements that they may need: only those with 8 bits reach their targets.
    """

    looks: int
    """Number of starting weights, and of codes of weights, that are still to be evaluated without training."""
    trainings: int
    seconds: float | None
    """Time for looks and trainings in seconds; None if no look or training has been timed yet."""


def forecast(
    start: Callable[[], Search], problem: Problem, verdicts: Sequence[Verdict], begin: Found | None = None
) -> Forecast:
    """Look ahead in a search: repeat its decisions, and assume that every further training reaches its targets.

    A strategy decides on nothing but verdicts, so it can be run ahead with verdicts that are made up. Where a training
    fails, the search takes longer than forecast. Trials that the search will skip are not counted.

    Args:
        start: function that starts the search's strategy anew.
        problem: the layers and queries of all models.
        verdicts: verdicts so far, without skipped trials.
        begin: what the search began with; None if it began from the original weights.
    """
    known, steps = deque(verdicts), start()
    # Weights play no part in what is made up.
    found = replace(begin or Found({}), states={name: {} for name in problem.models}, accuracies={}, codes={})
    left: list[Trial] = []
    answers: list[Verdict] | None = None
    while len(left) < _MOST_TRIALS:
        try:
            trials = next(steps) if answers is None else steps.send(answers)
        except StopIteration:
            break
        answers, changed = [], frozenset[str]()
        useful = useful_trials(trials, problem, found.sharing, found.forms) if len(known) < len(trials) else trials
        for trial in trials:
            if is_outdated(trial, changed):
                verdict = Verdict(trial, skipped(), False, found.sharing, found.forms)
            elif known:
                verdict = known.popleft()
                found.sharing, found.forms = verdict.sharing, verdict.forms
            else:
                runs = trial.release or trial in useful
                outcome = _assumed(trial, problem) if runs else saves_less(trial, problem)
                verdict = _settled(trial, outcome, problem, found)
                if runs and not trial.release:
                    left.append(trial)
            if verdict.accepted:
                changed |= trial.sharing.tied(trial.learners)
            answers.append(verdict)
    steps.close()
    trainings = sum(trial.recipe is not None for trial in left)
    return Forecast(len(left) - trainings, trainings, _seconds(left, verdicts))


def _assumed(trial: Trial, problem: Problem) -> Outcome:
    """Return the outcome of a trial that has not run: a look finds usable weights, a training reaches all targets.

    Models that are judged again hold, so that nothing is left to do for them. Codes hold if some have the most bits.
    """
    if trial.release:
        return released(trial, problem)
    codes = [form.bits for _, form in trial.forms.forms]
    good = trial.recipe is not None or trial.again or (bool(codes) and (not trial.measure or max(codes) == max(BITS)))
    queries = {query for name in trial.learners for query in problem.queries.get(name, (name,))}
    scores = dict.fromkeys(queries, 1.0 if good else 0.5)
    met = trial.learners if good else frozenset[str]()
    return Outcome(scores, scores, met, 0, 0.0, "start" if trial.recipe is None else "met")


def _settled(trial: Trial, outcome: Outcome, problem: Problem, found: Found) -> Verdict:
    """Return the verdict on an assumed outcome, and change the state of the search ahead."""
    if trial.release:
        verdict = release_models(trial, outcome, found.states, found, ())
    else:
        last = LastTrained(found.states, {}, frozenset(problem.models))
        verdict = judge_trial(trial, outcome, problem, found, last)
    return replace(verdict, forms=found.forms)


def _seconds(left: Iterable[Trial], verdicts: Sequence[Verdict]) -> float | None:
    """Return about how long some trials take, given the times of earlier trials; None if these tell nothing."""
    # A verdict on a trial that did not run, because it could save too little, has no time.
    looks = [verdict for verdict in verdicts if verdict.trial.recipe is None and verdict.outcome.seconds]
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
