"""Vision models that share weights: merged, compiled into a bundle, and run on a device under a memory budget.

The names below are the Python API; docs/api.md shows each in use. Importing this package is cheap: every name is
imported from the module that defines it when it is first used. A device without PyTorch can use all names that do not
need PyTorch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundles.reader import Bundle, open_bundle
    from .compiler import compile_workload
    from .errors import GemelError
    from .merging.analysis.analysis import Analysis, analyze_workload
    from .merging.merge import MergeOptions, merge_workload
    from .runtime.decode.results import (
        Class,
        Detection,
        Embedding,
        Mask,
        Raw,
        Segmentation,
        SegmentedClass,
        Text,
    )
    from .runtime.decode.supervision import results_to_detections, results_to_keypoints
    from .runtime.loop.bundle_session import BundleSession
    from .runtime.loop.summary import Summary
    from .runtime.planning.planner import Plan, make_plan
    from .runtime.planning.profile import Profile
    from .runtime.planning.read import read_profile
    from .runtime.planning.simulate import Simulation, simulate
    from .runtime.run import RunOptions, run_bundle
    from .runtime.service.run_service import ServiceOptions
    from .runtime.sinks.sink import Sink
    from .workload import Workload, load_workload

    __version__: str

__all__ = [
    "Analysis",
    "Bundle",
    "BundleSession",
    "Class",
    "Detection",
    "Embedding",
    "GemelError",
    "Mask",
    "MergeOptions",
    "Plan",
    "Profile",
    "Raw",
    "RunOptions",
    "Segmentation",
    "SegmentedClass",
    "ServiceOptions",
    "Simulation",
    "Sink",
    "Summary",
    "Text",
    "Workload",
    "__version__",
    "analyze_workload",
    "compile_workload",
    "load_workload",
    "make_plan",
    "merge_workload",
    "open_bundle",
    "read_profile",
    "results_to_detections",
    "results_to_keypoints",
    "run_bundle",
    "simulate",
]

_HOMES = {
    "Analysis": "merging.analysis.analysis",
    "Bundle": "bundles.reader",
    "BundleSession": "runtime.loop.bundle_session",
    "Class": "runtime.decode.results",
    "Detection": "runtime.decode.results",
    "Embedding": "runtime.decode.results",
    "GemelError": "errors",
    "Mask": "runtime.decode.results",
    "MergeOptions": "merging.merge",
    "Plan": "runtime.planning.planner",
    "Profile": "runtime.planning.profile",
    "Raw": "runtime.decode.results",
    "RunOptions": "runtime.run",
    "Segmentation": "runtime.decode.results",
    "SegmentedClass": "runtime.decode.results",
    "ServiceOptions": "runtime.service.run_service",
    "Simulation": "runtime.planning.simulate",
    "Sink": "runtime.sinks.sink",
    "Summary": "runtime.loop.summary",
    "Text": "runtime.decode.results",
    "Workload": "workload",
    "analyze_workload": "merging.analysis.analysis",
    "compile_workload": "compiler",
    "load_workload": "workload",
    "make_plan": "runtime.planning.planner",
    "merge_workload": "merging.merge",
    "open_bundle": "bundles.reader",
    "read_profile": "runtime.planning.read",
    "results_to_detections": "runtime.decode.supervision",
    "results_to_keypoints": "runtime.decode.supervision",
    "run_bundle": "runtime.run",
    "simulate": "runtime.planning.simulate",
}
"""Public name -> module that defines the name, relative to this package."""

# ONNX Runtime reports to Microsoft and keeps an id of the device unless this is set before the process imports it.
# Processes that are started from this one inherit the setting.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # Looking up an installed version takes longer than importing this package.
        from .version import find_version

        return find_version()
    if name not in _HOMES:
        raise AttributeError(f"module 'gemel' has no attribute {name!r}")
    try:
        found = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == __name__:
            raise
        from .console import missing_extra

        extra = "compiler" if name in ("compile_workload", "load_workload", "Workload") else "merge"
        raise missing_extra(error, f"gemel.{name}", extra) from error
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
