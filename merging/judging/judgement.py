"""Judgement of one query: its relative accuracies on several kinds of images, and whether they reach its target."""

from __future__ import annotations

from dataclasses import dataclass

from .intervals import SAME, Interval, images_for

__all__ = ["Judgement", "same_as_original"]


@dataclass(frozen=True)
class Judgement:
    """Result of judging a model for one query. A query passes if every part that can be judged reaches its target."""

    accuracy: float
    """Accuracy of the judged model on the query's own images, from 0 to 1."""
    original: float
    """Accuracy of the original model on the query's own images, from 0 to 1."""
    own: Interval
    """Relative accuracy on the query's own images."""
    mix: Interval | None = None
    """Agreement with the original model's answers on frames of other feeds and stills. None for a query with labels,
    and where the original finds nothing on them."""
    scores: Interval | None = None
    """Agreement with the original model's raw scores on frames of other feeds and stills; None for a query with
    labels."""
    samples: Interval | None = None
    """Agreement with the original model's answers on frames that boxes have sampled. None without samples, and where
    the original finds nothing on them."""

    @property
    def parts(self) -> tuple[Interval, ...]:
        """All relative accuracies that were measured, those on the query's own images first."""
        return tuple(part for part in (self.own, self.mix, self.scores, self.samples) if part is not None)

    @property
    def relative(self) -> float:
        """Smallest relative accuracy of all parts."""
        return min(part.value for part in self.parts)

    def __str__(self) -> str:
        """Return the relative accuracies with their intervals and numbers of images, as text."""
        names = (
            ("own images", self.own),
            ("mix", self.mix),
            ("scores on the mix", self.scores),
            ("samples", self.samples),
        )
        return ", ".join(f"{name} {part}" for name, part in names if part is not None)

    def passes(self, target: float) -> bool:
        """Check whether a query keeps its target.

        The lower ends on its own images and of the scores on the mix must be at the target. So must the lower end of
        the answers on the mix, if there are enough objects on the mix for that. If there are fewer, the measured value
        must be at the target, because a few missed objects tell much, and a few found ones little. The same holds for
        samples: a new scene has few of them at first.
        """
        return all(self._reaches(part, target, few=part is self.mix or part is self.samples) for part in self.parts)

    @staticmethod
    def _reaches(part: Interval, target: float, *, few: bool) -> bool:
        """Check whether one part reaches a target; ``few``: whether a part with too few images counts by its value."""
        return (part.value if few and part.best < target else part.low) >= target

    def advice(self, target: float) -> str:
        """Return what would help a query to reach its target, if its images are too few for that; otherwise nothing."""
        short = next((part for part in (self.own, self.scores) if part is not None and part.best < target), None)
        if short is None:
            return ""
        needed = images_for(target)
        if needed is None:
            return "no number of images shows that a changed model never errs; give a target below 1, such as 0.99"
        return (
            f"n={short.images}: the interval {short.low:.3f} to {short.high:.3f} is wider than the margin; a target of"
            f" {target:g} takes {needed} images with something to judge by, without one mistake: give more frames"
        )


def same_as_original(original: float, mixed: bool, sampled: bool = False) -> Judgement:
    """Return the judgement of a model with the original weights.

    Args:
        original: accuracy of the original model on the query's own images.
        mixed: whether the query is judged on a mix too.
        sampled: whether the query is judged on samples too.
    """
    other = SAME if mixed else None
    return Judgement(original, original, SAME, other, other, SAME if sampled else None)
