"""Command ``gemel profile``: measure on this device how long weights take to load and models to run."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from ..console import check_writable, open_console, print_stage, progress_bar
from ..errors import InputError
from .options import (
    BackendOpt,
    BandwidthOpt,
    BundleArg,
    ColdOpt,
    DebugOpt,
    MemoryOpt,
    StalenessOpt,
    ThreadsOpt,
    curves_of,
    loading_of,
    memory_of,
)

if TYPE_CHECKING:
    from ..runtime.planning.profile import ModelProfile, Profile

__all__ = ["profile_command"]


def profile_command(
    bundle: BundleArg,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write the profile to.", metavar="FILE")
    ] = Path("profile.yaml"),
    backend: BackendOpt = None,
    memory: MemoryOpt = None,
    staleness: StalenessOpt = None,
    threads: ThreadsOpt = None,
    cold: ColdOpt = False,
    bandwidth: BandwidthOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Measure on this device how long weights take to load and models take to run.

    The times are also kept in the device cache, where gemel-run finds them.

    [dim]gemel profile bundle/ -o profile.yaml[/dim]
    """
    from ..bundles.reader import open_bundle
    from ..runtime.backends import check_backend, open_backend
    from ..runtime.loop.device_profile import kept_at, profile_of
    from ..runtime.loop.measure_times import ROUNDS
    from ..runtime.planning.profile import with_curves

    if backend is not None:
        check_backend(backend)
    size = memory_of(memory)
    check_writable(output)
    opened = open_bundle(bundle)
    curves = curves_of(staleness, opened.manifest.queries)
    console, began = open_console(), perf_counter()
    with open_backend(
        opened,
        backend,
        memory=size,
        threads=threads,
        loading=loading_of(cold, bandwidth),
        progress=lambda model: console.print(f"preparing {model} for this device"),
    ) as device:
        means = f"{device.name}, threads: {device.threads}, {device.loading}"
        print_stage(console, "device", f"{means}, {device.budget / 1e6:.1f} MB for weights", began=began)
        models = {query.model for query in opened.manifest.queries.values()}
        with progress_bar(console, len(device.segments) + ROUNDS * len(models)) as bar:
            done = count()

            def show(what: str) -> None:
                bar.update(bar.task_ids[0], description=escape(what), completed=next(done))

            measured = with_curves(profile_of(opened, device, fresh=True, progress=show), curves)
        print_stage(console, "times", f"segments: {len(device.segments)}, models: {len(models)}", began=began)
        kept = kept_at(device)
    if kept.exists():
        print_stage(console, "kept", f"{kept}, {kept.stat().st_size / 1e3:.1f} kB", began=began)
    console.print(_models(measured))
    console.print(_segments(measured))
    text = profile_to_yaml(measured, f"Measured by gemel profile: {means}.")
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror}") from error
    print_stage(console, "profile", f"{output}, {len(text.encode()) / 1e3:.1f} kB", began=began)
    console.print(f"Next: gemel simulate {output}", soft_wrap=True, markup=False)


def profile_to_yaml(measured: Profile, comment: str) -> str:
    """Return a device profile as YAML with one line per entry, a layout that ``yaml.safe_dump`` does not have.

    Args:
        measured: profile to write.
        comment: text of the comment in the first line.
    """

    def entries(value: Any) -> str:
        if not isinstance(value, dict):
            return f" {json.dumps(value)}\n"
        # JSON is YAML, and quotes keep a name such as ``on`` from being read as a boolean.
        return "\n" + "".join(f"  {json.dumps(name)}: {json.dumps(entry)}\n" for name, entry in value.items())

    document = measured.model_dump(mode="json")
    return f"# {comment}\n" + "".join(f"{field}:{entries(value)}" for field, value in document.items())


def _models(measured: Profile) -> Table:
    batches = sorted({batch for model in measured.models.values() for batch in model.run_ms})
    table = Table("model", title="models, milliseconds", title_justify="left", box=SIMPLE)
    runs = [f"{batch} frame{'s' if batch > 1 else ''}" for batch in batches]
    for title in ("segments", "MB", "load", *runs, "fps alone", "as a batch"):
        table.add_column(title, justify="right")
    slas: dict[str, float] = {}
    for query, spec in measured.queries.items():
        # A model that queries with several SLAs use may take as long as the longest.
        slas[spec.model] = max(measured.sla_of(query), slas.get(spec.model, 0.0))
    for name, model in measured.models.items():
        table.add_row(
            escape(name),
            str(len(model.segments)),
            f"{sum(measured.segments[each].bytes for each in model.segments) / 1e6:.2f}",
            f"{sum(map(measured.load_ms, model.segments)):.4g}",
            *(f"{model.run_ms[batch]:.4g}" if batch in model.run_ms else "" for batch in batches),
            _alone(model, slas[name]),
            ", ".join(map(str, model.as_batch)),
        )
    return table


def _alone(model: ModelProfile, sla_ms: float) -> str:
    """Return the frames per second that a model could process within the SLA if no other model used the device."""
    found = [batch / ms * 1e3 for batch, ms in model.run_ms.items() if 0 < ms <= sla_ms]
    return f"{max(found):.1f}" if found else f"none in {sla_ms:g} ms"


def _segments(measured: Profile) -> Table:
    table = Table("segment", title="loads", title_justify="left", box=SIMPLE)
    for title in ("models", "MB", "ms", "MB/s"):
        table.add_column(title, justify="right")
    for name, segment in measured.segments.items():
        users = sum(name in model.segments for model in measured.models.values())
        ms = measured.load_ms(name)
        table.add_row(escape(name), str(users), *_load(segment.bytes, ms))
    size = sum(segment.bytes for segment in measured.segments.values())
    table.add_section()
    table.add_row("all", str(len(measured.models)), *_load(size, sum(map(measured.load_ms, measured.segments))))
    return table


def _load(size: int, ms: float) -> tuple[str, str, str]:
    return f"{size / 1e6:.2f}", f"{ms:.4g}", f"{size / ms / 1e3:.0f}" if ms else ""
