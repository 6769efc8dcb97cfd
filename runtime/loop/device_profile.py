"""Profile (sizes, times and rates) of a bundle on this device: measured once, then kept in the device cache.

The cache holds the measured times. Everything else in a profile follows from the bundle.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import stat
from pathlib import Path

from pydantic import BaseModel

from ...bundles.goals import QueryGoals
from ...bundles.manifest import ModelSpec
from ...bundles.reader import Bundle
from ...durable import write_whole
from ...errors import InputError
from ..backends import Backend
from ..backends.share_stems import shared_stems
from ..planning.profile import Profile, parse_profile
from .measure_times import MeasureProgress, Times, measure_runs, measure_times

__all__ = ["DEFAULT_FPS", "kept_at", "kept_batches", "measure_profile", "profile_after", "profile_of"]

DEFAULT_FPS = 30.0
"""Frames per second that are assumed for a feed whose rate the bundle does not state: a usual camera's rate."""

_USUAL_MS_PER_BYTE = 1e-6
"""Milliseconds of loading one byte that are assumed where nothing was measured: 1 GB/s, a usual disk's rate."""
_VERSION = "2"
"""Version number of :mod:`.measure_times`. It must change when the same bundle would be measured differently."""


class _KeptTimes(BaseModel):
    """Content of the file that keeps measured times in the device cache."""

    times: Times
    digest: str
    """SHA-256 of the measured times and of everything that the times depend on."""


def measure_profile(bundle: Bundle, backend: Backend, *, progress: MeasureProgress = lambda what: None) -> Profile:
    """Measure a bundle on this device, and return its profile.

    :func:`.measure_times.measure_times` says how times are measured, and on which frames. A query whose feed has no
    rate in the bundle gets :data:`DEFAULT_FPS`, or the highest ``min_fps`` of the feed's queries if that is more. The
    profile's memory is the bytes of the budget that segments may fill, without private copies of weights, which belong
    to the backend's budget.

    Args:
        bundle: an open bundle.
        backend: backend that was opened for the bundle, with no model active.
        progress: function called with a description of what is measured next.

    Raises:
        BackendError: a model cannot be run, or a model that is active holds its segments.
        InputError: the bundle has no queries, or an SLA that is not possible.
    """
    return _profile(bundle, backend, measure_times(bundle, backend, progress))


def profile_of(
    bundle: Bundle,
    backend: Backend,
    *,
    fresh: bool = False,
    progress: MeasureProgress = lambda what: None,
) -> Profile:
    """Return the profile of a bundle from times in the device cache; measure and store them if missing or damaged.

    A cache that cannot be written is no error: the times are measured again next time.

    Args:
        bundle: an open bundle.
        backend: backend that was opened for the bundle, with no model active. It runs nothing if the times are cached.
        fresh: whether to measure even if the times are cached.
        progress: function called with a description of what is measured next.

    Raises:
        BackendError: a model cannot be run, or a model that is active holds its segments.
        InputError: the bundle has no queries, or an SLA that is not possible.
    """
    path = kept_at(backend)
    if not fresh and (times := _read(path, bundle, backend)) is not None:
        with contextlib.suppress(InputError, KeyError):
            return _profile(bundle, backend, times)
    times = measure_times(bundle, backend, progress)
    profile = _profile(bundle, backend, times)
    with contextlib.suppress(OSError):
        _write(path, _KeptTimes(times=times, digest=_digest(path, bundle, backend, times)))
    return profile


def profile_after(bundle: Bundle, backend: Backend, earlier: Bundle, known: Profile | None) -> Profile:
    """Return the profile of a bundle that takes the place of another one during a run, while the other one runs.

    Loads are not measured, because that would evict weights that are in use: they take as long for each byte as
    before. A model that ran before in the same programs takes as long as before. Other models are run a few times.

    Args:
        bundle: an open bundle.
        backend: backend that was opened for the bundle, beside the one that runs.
        earlier: bundle that runs.
        known: profile of the bundle that runs; None if all of its weights are in memory.

    Raises:
        BackendError: a model cannot be run.
        InputError: the bundle has no queries, or an SLA that is not possible.
    """
    rates = {computed: _ms_per_byte(known, computed) for computed in (False, True)}
    models = dict.fromkeys(query.model for query in bundle.manifest.queries.values())
    run, as_batch, stem = {}, {}, {}
    for name in models:
        before = earlier.manifest.models.get(name)
        if known is not None and name in known.models and before is not None and _same_programs(before, bundle, name):
            run[name], as_batch[name] = dict(known.models[name].run_ms), known.models[name].as_batch
            if (measured := known.models[name].stem) is not None and measured.id == _stem_of(bundle, name):
                stem[name] = measured.run_ms
    new = measure_runs(bundle, backend, [name for name in models if name not in run])
    load = {name: size * rates[name in backend.sources] for name, size in backend.segments.items()}
    times = Times(load=load, run=run | new.run, as_batch=as_batch | new.as_batch, stem=stem | new.stem)
    return _profile(bundle, backend, times)


def _ms_per_byte(known: Profile | None, computed: bool) -> float:
    """Return the milliseconds of loading one byte of the segments that are computed from others, or of all others."""
    segments = {} if known is None else known.segments
    alike = {name: spec.bytes for name, spec in segments.items() if bool(spec.sources) == computed}
    time = sum(known.load_ms(name) for name in alike) if known is not None else 0.0
    return time / sum(alike.values()) if time and any(alike.values()) else _USUAL_MS_PER_BYTE


def _same_programs(before: ModelSpec, bundle: Bundle, name: str) -> bool:
    """Return whether a model has the same programs and input as the model of that name in an earlier bundle."""
    now = bundle.manifest.models[name]
    programs = ({stage: each.program for stage, each in model.stages.items()} for model in (before, now))
    return len({tuple(sorted(each.items())) for each in programs}) == 1 and before.input == now.input


def _stem_of(bundle: Bundle, model: str) -> str | None:
    """Return the id of a model's stem; None if it has none."""
    stem = bundle.manifest.models[model].stem
    return None if stem is None else stem.id


def kept_at(backend: Backend) -> Path:
    """Return the path of the file that keeps a bundle's measured load and run times in the device cache.

    The file may not exist yet. :func:`profile_of` reads and writes the file.
    """
    return backend.folder / f"profile-{backend.threads}-threads-{backend.loading}.json"


def kept_batches(bundle: Bundle, backend: Backend) -> dict[str, tuple[int, ...]]:
    """Return model -> numbers of frames that run as one batch, from the device cache; empty if nothing was measured."""
    times = _read(kept_at(backend), bundle, backend)
    return {} if times is None else times.as_batch


def _profile(bundle: Bundle, backend: Backend, times: Times) -> Profile:
    """Return the profile that consists of measured times and of what the bundle says.

    Raises:
        InputError: the result is not a valid profile.
        KeyError: the time of a segment or model is missing.
    """
    content = bundle.manifest
    fps = {name: DEFAULT_FPS if feed.fps is None else feed.fps for name, feed in content.feeds.items()}
    for query in content.queries.values():
        # A query may ask for more than a usual rate only if its feed's rate is not stated: the feed then has that rate.
        fps[query.feed] = max(fps[query.feed], query.min_fps)
    segments = {
        name: {"bytes": size, "load_ms": times.load[name], "sources": backend.sources.get(name, ())}
        for name, size in backend.segments.items()
    }
    read = {name: size for name, size in backend.segments.items() if name not in backend.sources}
    size, load_ms = sum(read.values()), sum(times.load[name] for name in read)
    models = dict.fromkeys(query.model for query in content.queries.values())
    shared = times.stem.keys() & {
        content.queries[name].model for name in shared_stems(content, backend.stems, content.queries)
    }
    document = {
        "memory": backend.room,
        "sla_ms": content.sla_ms,
        "objective": content.objective,
        "link": {"bandwidth": float(f"{size / load_ms * 1e3:.4g}")} if size and load_ms else {},
        "segments": segments,
        "models": {
            name: {
                "segments": backend.segments_of(name),
                "run_ms": times.run[name],
                "as_batch": times.as_batch.get(name, ()),
                "stem": {"id": _stem_of(bundle, name), "run_ms": times.stem[name]} if name in shared else None,
            }
            for name in models
        },
        "queries": {
            name: {
                "model": query.model,
                "fps": fps[query.feed],
                "feed": query.feed,
                **query.model_dump(include=set(QueryGoals.model_fields) - {"staleness"}),
                "staleness": None if query.staleness is None else query.staleness.at(fps[query.feed]),
            }
            for name, query in content.queries.items()
        },
    }
    return parse_profile(document, f"profile of {bundle.path}")


def _read(path: Path, bundle: Bundle, backend: Backend) -> Times | None:
    """Return the load and run times in a device cache's file; None if it is missing, damaged, or for another bundle."""
    try:
        # A cache may have come with a bundle from elsewhere. A link could lead out of the cache; reading a pipe blocks.
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        kept = _KeptTimes.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return kept.times if kept.digest == _digest(path, bundle, backend, kept.times) else None


def _write(path: Path, kept: _KeptTimes) -> None:
    write_whole(path, kept.model_dump_json(indent=1).encode())


def _digest(path: Path, bundle: Bundle, backend: Backend, times: Times) -> str:
    """Return the SHA-256 of measured times and of everything that the times depend on.

    The name of the times' file is included because it states the number of threads and how segments are loaded.
    """
    # The memory setting decides which models need segments, and a model without segments may run in another way.
    needs = [f"{name} {backend.segments_of(name)}" for name in bundle.manifest.models]
    parts = (_VERSION, path.name, bundle.id, backend.name, *_device(), *needs, times.model_dump_json())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _device() -> list[str]:
    """Return properties of this machine that measured times depend on: architecture, number of cores, CPU model."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    kinds = {line for line in lines if line.startswith(("model name", "CPU part", "Model"))}
    return [platform.machine(), str(os.cpu_count()), *sorted(kinds)]
