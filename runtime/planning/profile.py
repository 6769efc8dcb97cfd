"""Profiles: a workload on a device in numbers, which are bytes of weights, times of loads and runs, and frame rates.

A plan is computed from a profile. The profile is read from a file (``gemel simulate profile.yaml``) or measured on the
device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...bundles.budget import budget, parse_memory
from ...bundles.goals import ObjectiveName
from ...bundles.staleness import Staleness
from ...errors import InputError

__all__ = [
    "LinkProfile",
    "ModelProfile",
    "Profile",
    "QueryProfile",
    "SegmentProfile",
    "StemProfile",
    "parse_profile",
    "unmerged",
    "with_curves",
]

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""Finite number of milliseconds, not negative."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LinkProfile(_Value):
    """Speed of the path from storage to memory, on which segments are loaded one after the other."""

    bandwidth: Annotated[float, Field(gt=0)] = 1e9
    """Bytes of weights that are loaded per second."""
    latency_ms: Milliseconds = 0.0
    """Milliseconds that every load takes in addition to its bytes divided by the bandwidth."""

    def load_ms(self, size: int) -> float:
        """Return the milliseconds that loading ``size`` bytes takes."""
        return self.latency_ms + size / self.bandwidth * 1e3


class SegmentProfile(_Value):
    """Size and load time of one segment."""

    bytes: Annotated[int, Field(ge=0)]
    load_ms: Milliseconds | None = None
    """Measured milliseconds of a load; None if they are calculated from the bandwidth and latency of the link."""
    sources: tuple[str, ...] = ()
    """Segments that must be in memory when the segment is loaded, because it is computed from them."""


class StemProfile(_Value):
    """First layers of a model that run once for a frame, for all queries of the frame's feed whose models have them."""

    id: str
    """Id of the stem; equal for all models that have it."""
    run_ms: Milliseconds
    """Milliseconds that the stem runs on one frame: what a turn saves for each frame on which another query of the feed
    whose model has the same stem had its turn before."""


class ModelProfile(_Value):
    """Segments and run times of one model."""

    segments: tuple[str, ...]
    """Segments that must be in memory while the model runs."""
    run_ms: Mapping[Annotated[int, Field(gt=0)], Milliseconds]
    """Number of frames in a turn -> milliseconds that the turn runs. The time for one frame must be present."""
    as_batch: tuple[Annotated[int, Field(gt=1)], ...] = ()
    """Numbers of frames, of those in ``run_ms``, that the model runs as one batch; others run one by one."""
    stem: StemProfile | None = None
    """Stem of the model, whose time is part of ``run_ms``; None if the model shares none with another query."""

    @model_validator(mode="after")
    def _has_one(self) -> ModelProfile:
        if 1 not in self.run_ms:
            raise ValueError(f"run_ms has no time for 1 frame, only for {sorted(self.run_ms) or 'none'}")
        return self

    def slower(self, factor: float) -> ModelProfile:
        """Return the profile of a model that takes ``factor`` times as long to run."""
        stem = self.stem and self.stem.model_copy(update={"run_ms": self.stem.run_ms * factor})
        times = {frames: time * factor for frames, time in self.run_ms.items()}
        return self.model_copy(update={"run_ms": times, "stem": stem})


class QueryProfile(_Value):
    """Model of one query, and the frame rate of its feed."""

    model: str
    fps: Annotated[float, Field(gt=0)]
    """Frames per second of the query's feed."""
    feed: str | None = None
    """Name of the feed; queries of one feed get frames at the same moments. If left out, the query has its own feed."""
    sla_ms: Annotated[float, Field(gt=0)] | None = None
    """Milliseconds after a frame's arrival by which the query's result is due; None for those of the profile."""
    min_fps: Annotated[float, Field(ge=0)] = 0.0
    """Frames per second that the query must at least answer; this comes before every objective."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Importance of the query, compared with others of the same priority."""
    priority: int = 0
    """Queries of a higher priority get what they can before those of a lower one."""
    staleness: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] | None = None
    """Accuracy of an answer that stands for a frame 1, 2, ... frames after its own; None if it was not measured."""

    @model_validator(mode="after")
    def _possible(self) -> QueryProfile:
        if self.min_fps > self.fps:
            raise ValueError(f"min_fps {self.min_fps:g} is more than the {self.fps:g} frames per second of the feed")
        return self


class Profile(_Value):
    """Sizes, times and rates of a workload on a device."""

    schema_version: Literal["1"] = "1"
    memory: str | int = "all"
    """Memory setting that gives the budget for weights: bytes, ``"64MiB"``, ``"50%"``, ``"min"`` or ``"all"``."""
    sla_ms: Annotated[float, Field(gt=0)] = 100.0
    """Milliseconds after a frame's arrival by which its result is due."""
    objective: ObjectiveName = "max-min"
    """Name of the objective of plans."""
    link: LinkProfile = LinkProfile()
    segments: Mapping[str, SegmentProfile]
    models: Mapping[str, ModelProfile]
    queries: Mapping[str, QueryProfile]

    @model_validator(mode="after")
    def _known(self) -> Profile:
        for name, model in self.models.items():
            for segment in model.segments:
                if segment not in self.segments:
                    raise ValueError(f"models.{name}: segment {segment!r} is not among segments")
            if len(set(model.segments)) < len(model.segments):
                raise ValueError(f"models.{name}: a segment is listed twice")
            for place, segment in enumerate(model.segments):
                for source in self.segments[segment].sources:
                    if source not in model.segments[:place]:
                        raise ValueError(f"models.{name}: segment {segment!r} comes before its source {source!r}")
        for name, query in self.queries.items():
            if query.model not in self.models:
                raise ValueError(f"queries.{name}: model {query.model!r} is not among models")
        if not self.queries:
            raise ValueError("queries: there are none")
        return self

    def segments_of(self, query: str) -> tuple[str, ...]:
        """Return the segments that must be in memory while a query runs."""
        return self.models[self.queries[query].model].segments

    def load_ms(self, segment: str) -> float:
        """Return the milliseconds that loading a segment takes."""
        spec = self.segments[segment]
        return self.link.load_ms(spec.bytes) if spec.load_ms is None else spec.load_ms

    def run_ms(self, query: str, frames: int) -> float:
        """Return the milliseconds that a query's turn on ``frames`` frames runs.

        If the profile has no time for that number of frames, the time for the next larger number is returned, or for
        the largest number of all.
        """
        known = self.models[self.queries[query].model].run_ms
        return known[min((size for size in known if size >= frames), default=max(known))]

    def between_ms(self, query: str, frames: int) -> float:
        """Return the milliseconds that a query's turn on ``frames`` frames runs, interpolated between known sizes."""
        sizes, times = zip(*sorted(self.models[self.queries[query].model].run_ms.items()), strict=True)
        return float(np.interp(frames, sizes, times))

    def sla_of(self, query: str) -> float:
        """Return the milliseconds after a frame's arrival by which a query's result is due."""
        own = self.queries[query].sla_ms
        return self.sla_ms if own is None else own

    def batches(self, query: str) -> tuple[int, ...]:
        """Return the numbers of frames that a query's turn may take, smallest first.

        A turn may take a number of frames if it runs no longer than the SLA. If even one frame takes longer, a turn
        takes one frame.
        """
        known = self.models[self.queries[query].model].run_ms
        return tuple(sorted(size for size, time in known.items() if time <= self.sla_of(query))) or (1,)

    def late(self) -> tuple[str, ...]:
        """Return the queries whose model runs longer than the SLA on a single frame."""
        return tuple(name for name in self.queries if self.run_ms(name, 1) > self.sla_of(name))

    def budget(self, setting: str | int | None = None) -> int:
        """Return the bytes of weights that a memory setting allows.

        Args:
            setting: bytes, ``"64MiB"``, ``"50%"``, ``"min"`` or ``"all"``; the profile's own setting if left out.

        Raises:
            InputError: the setting is not allowed, or is less than the largest model needs; the message states the
                minimum.
        """
        chosen = self.memory if setting is None else setting
        try:
            parsed = parse_memory(chosen)
        except ValueError as error:
            raise InputError(f"memory: {chosen!r} is not allowed: {error}") from error
        used = {segment for query in self.queries for segment in self.segments_of(query)}
        total = sum(self.segments[segment].bytes for segment in used)
        needs = [sum(self.segments[each].bytes for each in self.segments_of(query)) for query in self.queries]
        return budget(parsed, total, needs)


def parse_profile(document: Any, where: str = "profile") -> Profile:
    """Check the content of a YAML or JSON file, and return it as a profile.

    Args:
        document: parsed content of the file.
        where: name of the file, which error messages state.

    Raises:
        InputError: the content is not a profile; the message names the field that is wrong, and why.
    """
    try:
        return Profile.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: {field + ': ' if field else ''}{message}") from error


def with_curves(profile: Profile, curves: Mapping[str, Staleness]) -> Profile:
    """Return the profile with the staleness curves of some queries replaced.

    Args:
        profile: profile of a workload.
        curves: query -> staleness curve, which is converted to the frame rate of the query's feed. Curves of queries
            that the profile does not have are left out.
    """
    queries = {
        name: query.model_copy(update={"staleness": curves[name].at(query.fps)}) if name in curves else query
        for name, query in profile.queries.items()
    }
    return profile.model_copy(update={"queries": queries})


def unmerged(profile: Profile) -> Profile:
    """Return the profile of the same workload without sharing: every query has its own model, with one segment.

    What is computed from other segments is loaded from storage instead, as fast as the link.
    """
    segments: dict[str, SegmentProfile] = {}
    models: dict[str, ModelProfile] = {}
    for name in profile.queries:
        own = {segment: profile.segments[segment] for segment in profile.segments_of(name)}
        sources = {source for spec in own.values() for source in spec.sources}
        held = {segment: spec for segment, spec in own.items() if segment not in sources}
        times = [
            profile.link.load_ms(spec.bytes) if spec.sources else profile.load_ms(each) for each, spec in held.items()
        ]
        segments[name] = SegmentProfile(bytes=sum(spec.bytes for spec in held.values()), load_ms=sum(times))
        models[name] = ModelProfile(segments=(name,), run_ms=profile.models[profile.queries[name].model].run_ms)
    queries = {name: query.model_copy(update={"model": name}) for name, query in profile.queries.items()}
    return profile.model_copy(update={"segments": segments, "models": models, "queries": queries})
