"""The commands that look at a bundle: ``gemel inspect``, ``gemel check`` and ``gemel bench``."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ..console import check_writable, missing_extra, open_console, print_stage, progress_bar, write_json
from ..errors import InputError
from .options import BundleArg, DebugOpt, JsonOpt

if TYPE_CHECKING:
    from ..bundles.reader import Bundle
    from ..check.regression.baseline import Baseline
    from ..check.source.accuracy import QueryAccuracy
    from ..workload import Workload

__all__ = ["bench_command", "check_command", "inspect_command"]


def inspect_command(bundle: BundleArg, json_file: JsonOpt = None, debug: DebugOpt = False) -> None:
    """What is in a bundle, and what is shared.

    [dim]gemel inspect bundle/ --json bundle.json[/dim]
    """
    from ..bundles.reader import open_bundle
    from ..check.contents.inspect import bundle_tables, describe

    opened = open_bundle(bundle)
    console = open_console()
    figures = describe(opened)
    for table in bundle_tables(opened, figures):
        console.print(table)
    write_json(json_file, figures)
    console.print(f"Next: gemel check {bundle}")


def check_command(
    bundle: BundleArg,
    against: Annotated[
        Path | None,
        typer.Option(help="Also compare outputs with the models of this workload.", metavar="WORKLOAD.YAML"),
    ] = None,
    rtol: Annotated[float, typer.Option(help="Difference allowed, relative to the largest output.", min=0)] = 1e-3,
    atol: Annotated[float, typer.Option(help="Difference allowed beside that.", min=0)] = 1e-5,
    accuracy: Annotated[
        bool,
        typer.Option("--accuracy", help="Also compare the accuracy of every query, on the images it is judged by."),
    ] = False,
    baseline: Annotated[
        Path | None,
        typer.Option(help="Also fail where the bundle or its engines are worse than this file says.", metavar="FILE"),
    ] = None,
    write_baseline: Annotated[
        Path | None,
        typer.Option(help="Write what the bundle and its engines are like, for --baseline.", metavar="FILE"),
    ] = None,
    latency: Annotated[
        bool,
        typer.Option("--latency", help="The baseline also has how long models run, beside plain sessions on this CPU."),
    ] = False,
    json_file: JsonOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Check a bundle: every file's hash, also of what was made of it for devices, and with --against every output.

    [dim]gemel check bundle/ --against merged/workload.yaml --accuracy[/dim]

    [dim]gemel check bundle/ --baseline baseline.json[/dim]
    """
    from ..bundles.reader import open_bundle, verify
    from ..check.regression.baseline import read_baseline
    from ..runtime.engines.store import engines_in
    from ..runtime.ort.bake import verify_cache

    if baseline is not None and write_baseline is not None:
        raise InputError("--write-baseline: --baseline compares with what was written before: one of the two")
    if latency and baseline is None and write_baseline is None:
        raise InputError("--latency: what to compare with is missing: --baseline FILE, or --write-baseline FILE")
    if accuracy and against is None:
        raise InputError("--accuracy: the models and images to compare with are missing: --against WORKLOAD.YAML")
    check_writable(json_file)
    check_writable(write_baseline)
    before = None if baseline is None else read_baseline(baseline)
    if latency and before is not None and not before.latency:
        raise InputError(f"--latency: {baseline} has none: write it with --latency, too")
    console = open_console()
    opened = open_bundle(bundle)
    passed = list(verify(opened))
    print_stage(console, "files", f"{len(passed)} files as the manifest says")
    caches = verify_cache(opened)
    for folder in caches:
        print_stage(console, "device", f"{folder} as it was baked")
    engines = engines_in(opened)
    for built in engines:
        print_stage(console, "engines", f"{built.folder} as it was built: {built.title}")
    report: dict[str, Any] = {
        "files": len(passed),
        "device": [str(folder) for folder in caches],
        "engines": [str(built.folder) for built in engines],
        "models": {},
    }
    failed = _sharing(console, opened, report)
    if against is not None:
        try:
            from ..check.source.numerics import compare_with_source
            from ..workload import load_workload
        except ModuleNotFoundError as error:
            raise missing_extra(error, "gemel check --against", "compiler") from error
        workload = load_workload(against)
        for result in compare_with_source(opened, workload, rtol=rtol, atol=atol):
            precision = opened.manifest.models[result.model].precision
            how = "" if result.passed is not None else f", not judged: {precision} is judged by --accuracy"
            what = f"{result.model}: relative difference {result.relative:.1e}{how}"
            print_stage(console, "outputs", what, passed=result.passed)
            report["models"][result.model] = {"relative": result.relative, "passed": result.passed}
            failed += [result.model] if result.passed is False else []
        if accuracy:
            report["accuracy"] = _accuracies(console, opened, workload)
            failed += [f"accuracy of {name}" for name, found in report["accuracy"].items() if found["passed"] is False]
    if before is not None:
        report["baseline"], worse = _compare(console, opened, before, latency)
        failed += worse
    write_json(json_file, report)
    if failed:
        console.print(f"[red]failed:[/] {escape(', '.join(failed))}", soft_wrap=True)
        raise typer.Exit(1)
    if write_baseline is not None:
        _write(console, opened, write_baseline, latency)
    console.print(f"Next: gemel bench {bundle}")


def _sharing(console: Console, bundle: Bundle, report: dict[str, Any]) -> list[str]:
    """Say what became of what was merged; returns what is there in several precisions, which no compiler writes."""
    from ..bundles.merge_summary import merged_tensors

    found = list(merged_tensors(bundle))
    if not found:
        return []
    whole = [each for each in found if each.copies == 1]
    dtypes = Counter(dtype for each in whole for dtype in each.dtypes)
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in sorted(dtypes.items()))
    mixed = [each for each in found if len(each.dtypes) > 1]
    what = f"{len(whole)} of {len(found)} merged tensors are one each ({kinds})"
    print_stage(console, "sharing", what, passed=not mixed)
    report["sharing"] = {"merged": len(found), "whole": len(whole), "dtypes": dict(dtypes)}
    return [f"sharing of {each.name}: it is there as {' and '.join(sorted(each.dtypes))}" for each in mixed]


def _parts(bundle: Bundle) -> dict[str, float]:
    """Of queries of narrower models, the part of the source's accuracy that they must keep."""
    from ..calib.record import CALIBRATION, read_calibration

    if CALIBRATION not in bundle.manifest.files:
        return {}
    queries = read_calibration(bundle.file(CALIBRATION)).queries
    return {name: found.floor / found.fp32 for name, found in queries.items() if found.fp32}


def _compare(
    console: Console, bundle: Bundle, before: Baseline, latency: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Print how a bundle differs from a baseline, one line a difference.

    Returns:
        The same for JSON, and the names of what got worse.
    """
    from ..check.regression.baseline import baseline_of
    from ..check.regression.regressions import compare_baselines

    found = compare_baselines(before, baseline_of(bundle, _latency(console, bundle) if latency else None))
    for each in found:
        print_stage(console, "baseline", str(each), passed=False if each.kind == "worse" else None)
    worse = [each.name for each in found if each.kind == "worse"]
    if not worse:
        hint = "; --write-baseline keeps what is better now" if any(each.kind == "better" for each in found) else ""
        print_stage(console, "baseline", f"nothing is worse than it was{hint}", passed=True)
    return [asdict(each) for each in found], list(dict.fromkeys(worse))


def _write(console: Console, bundle: Bundle, path: Path, latency: bool) -> None:
    from ..check.regression.baseline import baseline_of, write_baseline

    made = baseline_of(bundle, _latency(console, bundle) if latency else None)
    write_baseline(path, made)
    what = f"models: {len(made.models)}, shared tensors: {len(made.shared)}, sets of engines: {len(made.engines)}"
    print_stage(console, "baseline", f"{path}: {what}")


def _latency(console: Console, bundle: Bundle) -> dict[str, float]:
    from ..check.regression.baseline import measure_latency

    with progress_bar(console, len(bundle.manifest.models)) as bar:
        (task,) = bar.task_ids
        found = measure_latency(bundle, lambda model: bar.update(task, description=escape(model), advance=1))
    for model, ratio in found.items():
        print_stage(console, "latency", f"{model}: {ratio:.3f} of a plain session's CPU time")
    return found


def _accuracies(console: Console, bundle: Bundle, workload: Workload) -> dict[str, dict[str, Any]]:
    """Print the accuracy of every query, one a line, and return the same for JSON."""
    report: dict[str, dict[str, Any]] = {}
    try:
        from ..check.source.accuracy import UnjudgedQuery, verify_accuracy

        with progress_bar(console, len(bundle.manifest.queries)) as bar:
            for found in verify_accuracy(bundle, workload, _parts(bundle)):
                if isinstance(found, UnjudgedQuery):
                    report[found.query] = {"passed": None, "reason": found.reason}
                    print_stage(bar.console, "accuracy", f"{found.query}: not judged: {found.reason}")
                else:
                    report[found.query] = {**asdict(found), "passed": found.passed}
                    print_stage(bar.console, "accuracy", f"{found.query}: {_in_words(found)}", passed=found.passed)
                bar.advance(bar.task_ids[0])
    except ModuleNotFoundError as error:
        raise missing_extra(error, "gemel check --accuracy", "merge") from error
    return report


def _in_words(found: QueryAccuracy) -> str:
    least = "" if found.part is None else f", at least {found.source * found.part:.2%}"
    if not found.labelled:
        itself = f", which does with itself by {found.source:.2%}"
        return f"agrees with the source by {found.bundle:.2%}{itself}{least} ({found.images} images)"
    merged = "" if found.reached is None else f", merge.json {found.reached:.2%}"
    return f"{found.bundle:.2%}, source {found.source:.2%}{merged}{least} ({found.images} images)"


def bench_command(
    bundle: BundleArg,
    against: Annotated[
        Path | None,
        typer.Option(help="Compare with these models as PyTorch exports them; left out, with the bundle's ONNX files."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Runs of each model and side, in turn.", min=3)] = 30,
    json_file: JsonOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Swap-in, latency and memory beside plain ONNX Runtime sessions of the same models, in one run.

    [dim]gemel bench bundle/ --json bench.json[/dim]
    """
    from ..bundles.reader import open_bundle
    from ..check.bench.bench import measure_bundle, table

    check_writable(json_file)
    console = open_console()
    opened = open_bundle(bundle)
    with tempfile.TemporaryDirectory(prefix="gemel-bench-") as folder:
        plain: dict[str, Path] | None = None
        if against is not None:
            try:
                from ..check.source.plain_export import export_plain
                from ..workload import load_workload
            except ModuleNotFoundError as error:
                raise missing_extra(error, "gemel bench --against", "compiler") from error
            plain = export_plain(load_workload(against), Path(folder))
        figures = measure_bundle(opened, rounds=rounds, plain=plain, say=lambda text: console.print(escape(text)))
    console.print(table(figures))
    write_json(json_file, figures)
    console.print(f"Next: gemel-run {bundle} --memory min")
