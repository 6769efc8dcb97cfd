"""Steps of ``gemel check``: files, sharing, outputs, accuracy and baseline.

Each step prints one line per finding and adds its findings to the report for ``--json``. Steps that judge return the
names of the models, queries or tensors that failed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from ..console import missing_extra, print_stage, progress_bar

if TYPE_CHECKING:
    from ..bundles.reader import Bundle
    from ..check.regression.baseline import Baseline
    from ..check.source.accuracy import QueryAccuracy
    from ..workload import Workload

__all__ = [
    "CheckReport",
    "check_accuracy",
    "check_baseline",
    "check_files",
    "check_outputs",
    "check_sharing",
    "save_baseline",
]

CheckReport = dict[str, Any]
"""Findings of ``gemel check`` by step (files, sharing, models, ...), as a value that JSON can hold."""


def check_files(console: Console, bundle: Bundle, report: CheckReport) -> None:
    """Compare every file of a bundle, of its device caches and of its engines with the recorded hash.

    Raises:
        BundleError: a file is damaged; the message names the first.
    """
    from ..bundles.reader import verify
    from ..runtime.engines.store import engines_in
    from ..runtime.ort.bake import verify_cache

    passed = list(verify(bundle))
    print_stage(console, "files", f"{len(passed)} files as the manifest says")
    caches = verify_cache(bundle)
    for folder in caches:
        print_stage(console, "device", f"{folder} as it was baked")
    engines = engines_in(bundle)
    for built in engines:
        print_stage(console, "engines", f"{built.folder} as it was built: {built.title}")
    report["files"] = len(passed)
    report["device"] = [str(folder) for folder in caches]
    report["engines"] = [str(built.folder) for built in engines]


def check_sharing(console: Console, bundle: Bundle, report: CheckReport) -> list[str]:
    """Count the tensors that a merge made equal and that are still stored once in the bundle.

    Returns:
        Names of merged tensors that the bundle holds in several precisions, which no compiler writes.
    """
    from ..bundles.merged_tensors import merged_tensors

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


def check_outputs(
    console: Console, bundle: Bundle, workload: Workload, rtol: float, atol: float, report: CheckReport
) -> list[str]:
    """Compare the outputs and the decoded answers of every model in a bundle with those of its source model.

    Returns:
        Names of models whose outputs differ by more than is allowed, and ``answers of MODEL`` where only answers do.
    """
    try:
        from ..check.source.numerics import compare_with_source
    except ModuleNotFoundError as error:
        raise missing_extra(error, "gemel check --against", "compiler") from error
    failed = []
    for result in compare_with_source(bundle, workload, rtol=rtol, atol=atol):
        how = "" if result.reason is None else f", not judged: {result.reason}"
        answers = result.answers
        what = f"{result.model}: relative difference {result.relative:.1e} {result.inputs}{how}"
        print_stage(console, "outputs", what, passed=None if result.passed is None else result.equal)
        for name in result.constant:
            what = f"{result.model}: {name} hardly changes from frame to frame, so its agreement says little"
            print_stage(console, "constant", what)
        if answers is not None:
            passed = None if result.reason is not None or not answers.parts else answers.different is None
            print_stage(console, "answers", f"{result.model}: {answers}", passed=passed)
        report["models"][result.model] = {
            "relative": result.relative,
            "passed": result.passed,
            "inputs": result.inputs,
            "constant": list(result.constant),
            "answers": None if answers is None else asdict(answers),
            "reason": result.reason,
        }
        if result.passed is False:
            failed.append(f"answers of {result.model}" if result.equal else result.model)
    return failed


def check_accuracy(console: Console, bundle: Bundle, workload: Workload, report: CheckReport) -> list[str]:
    """Compare the accuracy of every query of a bundle with the accuracy of the query's source model.

    Returns:
        ``accuracy of QUERY`` for every query whose accuracy is too far from that of its source model.
    """
    accuracies: dict[str, dict[str, Any]] = {}
    report["accuracy"] = accuracies
    try:
        from ..check.source.accuracy import UnjudgedQuery, verify_accuracy

        with progress_bar(console, len(bundle.manifest.queries)) as bar:
            for found in verify_accuracy(bundle, workload, _parts(bundle)):
                if isinstance(found, UnjudgedQuery):
                    accuracies[found.query] = {"passed": None, "reason": found.reason}
                    print_stage(bar.console, "accuracy", f"{found.query}: not judged: {found.reason}")
                else:
                    merged = None if found.merged is None else found.merged.model_dump()
                    accuracies[found.query] = {**asdict(found), "merged": merged, "passed": found.passed}
                    print_stage(bar.console, "accuracy", f"{found.query}: {_in_words(found)}", passed=found.passed)
                bar.advance(bar.task_ids[0])
    except ModuleNotFoundError as error:
        raise missing_extra(error, "gemel check --accuracy", "merge") from error
    return [f"accuracy of {name}" for name, found in accuracies.items() if found["passed"] is False]


def check_baseline(console: Console, bundle: Bundle, before: Baseline, latency: bool, report: CheckReport) -> list[str]:
    """Compare a bundle's programs, sizes, sharing, engines and, if asked, run times with a recorded baseline.

    Returns:
        Names of the figures that got worse.
    """
    from ..check.regression.baseline import baseline_of
    from ..check.regression.regressions import compare_baselines

    found = compare_baselines(before, baseline_of(bundle, _latency(console, bundle) if latency else None))
    for each in found:
        print_stage(console, "baseline", str(each), passed=False if each.kind == "worse" else None)
    worse = list(dict.fromkeys(each.name for each in found if each.kind == "worse"))
    if not worse:
        hint = "; --write-baseline keeps the improvements" if any(each.kind == "better" for each in found) else ""
        print_stage(console, "baseline", f"nothing is worse than in the baseline{hint}", passed=True)
    report["baseline"] = [asdict(each) for each in found]
    return worse


def save_baseline(console: Console, bundle: Bundle, path: Path, latency: bool) -> None:
    """Write the present figures of a bundle to a file, as a baseline for later checks.

    Raises:
        InputError: the file cannot be written.
    """
    from ..check.regression.baseline import baseline_of, write_baseline

    made = baseline_of(bundle, _latency(console, bundle) if latency else None)
    write_baseline(path, made)
    what = f"models: {len(made.models)}, shared tensors: {len(made.shared)}, sets of engines: {len(made.engines)}"
    print_stage(console, "baseline", f"{path}: {what}")


def _latency(console: Console, bundle: Bundle) -> dict[str, float]:
    """Measure the CPU time of a run of every model of a bundle, divided by that of a plain ONNX Runtime session."""
    from ..check.regression.baseline import measure_latency

    with progress_bar(console, len(bundle.manifest.models)) as bar:
        (task,) = bar.task_ids
        found = measure_latency(bundle, lambda model: bar.update(task, description=escape(model), advance=1))
    for model, ratio in found.items():
        print_stage(console, "latency", f"{model}: {ratio:.3f} of a plain session's CPU time")
    return found


def _parts(bundle: Bundle) -> dict[str, float]:
    """Return name of each query in lower precision -> fraction of its float32 accuracy that the query must keep."""
    from ..calib.record import CALIBRATION, read_calibration

    if CALIBRATION not in bundle.manifest.files:
        return {}
    queries = read_calibration(bundle.file(CALIBRATION)).queries
    return {name: found.floor / found.fp32 for name, found in queries.items() if found.fp32}


def _in_words(found: QueryAccuracy) -> str:
    least = "" if found.part is None else f", at least {found.source * found.part:.2%}"
    low, high = found.interval
    ends = f"{found.images} images, {low:.3f} to {high:.3f} of the source"
    if found.merged is not None and (own := found.merged.own) is not None and own.images:
        ends += f"; merge.json: {own.value:.3f} of the original, {own.low:.3f} to {own.high:.3f}, n={own.images}"
    if not found.labelled:
        itself = f", which agrees with itself by {found.source:.2%}"
        return f"agrees with the source by {found.bundle:.2%}{itself}{least} ({ends})"
    merged = "" if found.reached is None else f", merge.json {found.reached:.2%}"
    return f"{found.bundle:.2%}, source {found.source:.2%}{merged}{least} ({ends})"
