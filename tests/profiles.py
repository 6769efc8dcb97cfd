"""Profiles for tests, by hand and at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from gemel.runtime.planning.profile import Profile, parse_profile
from gemel.runtime.planning.residency import Rule

RULES = st.builds(
    Rule,
    evict=st.sampled_from(["farthest", "recent", "least-recent"]),
    whole=st.booleans(),
    ahead=st.sampled_from(["part", "all", "none"]),
    far=st.booleans(),
)


def profile(
    models: Mapping[str, Sequence[str]],
    sizes: Mapping[str, int] | None = None,
    run: float | Mapping[str, Mapping[int, float]] = 10.0,
    fps: float | Mapping[str, float] = 10.0,
    **fields: Any,
) -> Profile:
    """Return a profile with one query for each model, of the same name. A byte loads in a millisecond.

    Args:
        models: model -> its segments.
        sizes: segment -> bytes; 1 for segments that are left out.
        run: milliseconds of a turn of one frame; or model -> frames of a turn -> milliseconds.
        fps: frames a second of all queries; or query -> frames a second.
        fields: other fields of the profile.
    """
    sizes = sizes or {}
    document = {
        "link": {"bandwidth": 1e3},
        "segments": {name: {"bytes": sizes.get(name, 1)} for used in models.values() for name in used},
        "models": {
            name: {"segments": used, "run_ms": run[name] if isinstance(run, Mapping) else {1: run}}
            for name, used in models.items()
        },
        "queries": {name: {"model": name, "fps": fps[name] if isinstance(fps, Mapping) else fps} for name in models},
    }
    return parse_profile({**document, **fields})


@st.composite
def profiles(draw: st.DrawFn, most: int = 5, widest: int = 3, fps: int | None = None) -> Profile:
    """Draw a profile of up to ``most`` queries, whose models share segments and have up to ``widest`` turn sizes."""
    # The fewer segments there are, the more models have all their weights in common.
    names = [f"s{index}" for index in range(draw(st.sampled_from([1, 2, 3, 3, 4, 5, 7])))]
    segments = {
        name: {"bytes": draw(st.integers(1, 60)), "load_ms": draw(st.none() | st.integers(1, 90))} for name in names
    }
    models = {}
    for index in range(draw(st.integers(1, most))):
        first, each = draw(st.integers(1, 60)), draw(st.integers(1, 25))
        models[f"m{index}"] = {
            "segments": draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True)),
            "run_ms": {batch: first + each * (batch - 1) for batch in (1, 2, 4)[: draw(st.integers(1, widest))]},
        }
    queries = {
        f"q{index}": {
            "model": draw(st.sampled_from(sorted(models))),
            "fps": fps or draw(st.integers(1, 60)),
            "feed": draw(st.sampled_from([None, "yard"])),
        }
        for index in range(draw(st.integers(1, most)))
    }
    return parse_profile(
        {
            "link": {"bandwidth": 1e3, "latency_ms": draw(st.integers(0, 5))},
            # Fractions, so that no turn takes exactly as long as the SLA allows.
            "sla_ms": draw(st.sampled_from([33.3, 100.5, 400.5])),
            "segments": segments,
            "models": models,
            "queries": queries,
        }
    )


def budgets(known: Profile) -> st.SearchStrategy[int]:
    """Return a strategy for budgets in bytes, from what the largest model needs to what all models need."""
    return st.integers(known.budget("min"), known.budget("all"))
