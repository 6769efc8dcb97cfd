"""What is known of a device and a workload before anything runs: bytes, times of loads and runs, frames a second.

A profile is a file (``gemel simulate profile.yaml``), or is measured on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...bundles.budget import budget, parse_memory
from ...errors import InputError

__all__ = ["LinkProfile", "ModelProfile", "Profile", "QueryProfile", "SegmentProfile", "parse_profile", "unmerged"]

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LinkProfile(_Value):
    """How weights come into memory: one load after the other."""

    bandwidth: Annotated[float, Field(gt=0)] = 1e9
    """Bytes a second."""
    latency_ms: Milliseconds = 0.0
    """Of each segment, whatever its size."""


class SegmentProfile(_Value):
    bytes: Annotated[int, Field(ge=0)]
    load_ms: Milliseconds | None = None
    """Where it was measured; otherwise it follows from the link."""


class ModelProfile(_Value):
    segments: tuple[str, ...]
    run_ms: Mapping[Annotated[int, Field(gt=0)], Milliseconds]
    """Batch size to the milliseconds of a run; one frame at least must be known."""

    @model_validator(mode="after")
    def _has_one(self) -> ModelProfile:
        if 1 not in self.run_ms:
            raise ValueError(f"run_ms has no time for 1 frame, only for {sorted(self.run_ms) or 'none'}")
        return self


class QueryProfile(_Value):
    model: str
    fps: Annotated[float, Field(gt=0)]
    feed: str | None = None
    """Queries of one feed get their frames at the same moments; left out, a feed of its own."""


class Profile(_Value):
    """A workload on a device."""

    schema_version: Literal["1"] = "1"
    memory: str | int = "all"
    sla_ms: Annotated[float, Field(gt=0)] = 100.0
    """From a frame's arrival to its result."""
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
        for name, query in self.queries.items():
            if query.model not in self.models:
                raise ValueError(f"queries.{name}: model {query.model!r} is not among models")
        if not self.queries:
            raise ValueError("queries: there are none")
        return self

    def segments_of(self, query: str) -> tuple[str, ...]:
        """What must be in memory while a query runs."""
        return self.models[self.queries[query].model].segments

    def load_ms(self, segment: str) -> float:
        """Milliseconds until a segment is in memory."""
        spec = self.segments[segment]
        if spec.load_ms is not None:
            return spec.load_ms
        return self.link.latency_ms + spec.bytes / self.link.bandwidth * 1e3

    def run_ms(self, query: str, frames: int) -> float:
        """Milliseconds of a run on so many frames; the next larger batch that is known, if this one is not."""
        known = self.models[self.queries[query].model].run_ms
        return known[min((batch for batch in known if batch >= frames), default=max(known))]

    def batches(self, query: str) -> tuple[int, ...]:
        """Batch sizes whose run alone keeps to the SLA, smallest first; one frame if none does."""
        known = self.models[self.queries[query].model].run_ms
        return tuple(sorted(batch for batch, time in known.items() if time <= self.sla_ms)) or (1,)

    def late(self) -> tuple[str, ...]:
        """Queries whose model takes longer than the SLA for a single frame."""
        return tuple(name for name in self.queries if self.run_ms(name, 1) > self.sla_ms)

    def budget(self, setting: str | int | None = None) -> int:
        """Bytes that a memory setting allows; the profile's own where it is left out.

        Raises:
            InputError: it is not a setting, or less than the hungriest model needs, with that minimum.
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
    """A profile from what a YAML or JSON file holds.

    Raises:
        InputError: it is not one; names the field and what is wrong with it.
    """
    try:
        return Profile.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: {field + ': ' if field else ''}{message}") from error


def unmerged(profile: Profile) -> Profile:
    """The same workload where no query shares a weight with another: each has a model, and a segment, of its own."""
    segments: dict[str, SegmentProfile] = {}
    models: dict[str, ModelProfile] = {}
    for name in profile.queries:
        own = profile.segments_of(name)
        size = sum(profile.segments[segment].bytes for segment in own)
        segments[name] = SegmentProfile(bytes=size, load_ms=sum(map(profile.load_ms, own)))
        models[name] = ModelProfile(segments=(name,), run_ms=profile.models[profile.queries[name].model].run_ms)
    queries = {name: query.model_copy(update={"model": name}) for name, query in profile.queries.items()}
    return profile.model_copy(update={"segments": segments, "models": models, "queries": queries})
