"""Command ``gemel simulate``: simulate from a profile how many frames a workload would skip under a memory budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from ..console import check_writable, open_console, print_stage, write_json
from .file_kinds import require_profile
from .options import DebugOpt, JsonOpt, ObjectiveOpt, StalenessOpt, curves_of

if TYPE_CHECKING:
    from ..runtime.planning.planner import Plan
    from ..runtime.planning.promises import Promise
    from ..runtime.planning.simulate import Simulation

__all__ = ["simulate_command"]


def simulate_command(
    profile: Annotated[
        Path,
        typer.Argument(
            help="Profile: times and bytes of a workload.", metavar="PROFILE.YAML", callback=require_profile
        ),
    ],
    policy: Annotated[
        list[str] | None,
        typer.Option(help="Simulate only this policy; may be given more than once. Default: all.", metavar="NAME"),
    ] = None,
    objective: ObjectiveOpt = None,
    staleness: StalenessOpt = None,
    memory: Annotated[
        str | None, typer.Option(help="Budget for weights. Default: the profile's.", metavar="SIZE")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Seconds that the cameras run.", min=1)] = 60.0,
    seed: Annotated[int, typer.Option(help="Random seed of the cameras' clocks.")] = 0,
    json_file: JsonOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Simulate how many frames a workload would skip under a budget, by policy. Needs no device.

    [dim]gemel simulate examples/profiles/paper.yaml --memory 50%[/dim]
    """
    from ..runtime.planning.feasibility import find_shortage
    from ..runtime.planning.planner import POLICIES, check_objective, check_policy, make_plan, policy_of
    from ..runtime.planning.profile import with_curves
    from ..runtime.planning.promises import promises
    from ..runtime.planning.read import read_profile
    from ..runtime.planning.simulate import simulate as run

    chosen = list(dict.fromkeys(policy or POLICIES))
    for name in chosen:
        check_policy(name)
    check_objective(objective, chosen)
    check_writable(json_file)
    console, began = open_console(), perf_counter()
    read = read_profile(profile)
    read = with_curves(read, curves_of(staleness, read.queries))
    budget = read.budget(memory)
    late = [name for name in read.queries if name in read.late()]
    print_stage(console, "profile", f"{profile}: {len(read.queries)} queries, {budget / 1e6:.1f} MB for weights")
    for name in late:
        run_ms = read.run_ms(name, 1)
        print_stage(
            console, "late", f"{name}: a run takes {run_ms:g} ms, longer than the SLA of {read.sla_of(name):g} ms"
        )
    found: dict[str, tuple[Plan, Simulation]] = {}
    promised: dict[str, dict[str, Promise]] = {}
    for name in chosen:
        served = policy_of(name, read, None if POLICIES[name].listed else objective)
        plan_ = make_plan(read, budget, served)
        promised[name] = promises(read, plan_)
        found[name] = plan_, run(read, budget, plan_, seconds, seed)
        print_stage(console, "policy", f"{name}, for {served.objective}", began=began)
        # Plans of baselines that stand beside gemel's are for comparison: nobody wants to know what they would need.
        if name == chosen[0] and (shortage := find_shortage(read, budget, served, plan_)) is not None:
            print_stage(console, "short", str(shortage))
    console.print(_policies(found))
    console.print(_queries(found))
    console.print(_promises(promised))
    if json_file is not None:
        write_json(
            json_file,
            {
                "budget": budget,
                "policies": {name: simulation_to_json(*each, promised[name]) for name, each in found.items()},
            },
        )
        print_stage(console, "json", str(json_file), began=began)


def simulation_to_json(plan: Plan, simulation: Simulation, promised: Mapping[str, Promise]) -> dict[str, Any]:
    """Return the plan of a policy and its simulated result as a value that JSON can hold."""
    return {
        "seconds": simulation.seconds,
        "plan": {
            "order": plan.order,
            "batches": plan.batches,
            "pinned": sorted(plan.pinned),
            "cycle_ms": plan.cycle_ms,
            "promised": {name: promise.to_json() for name, promise in promised.items()},
        },
        "queries": {
            name: {"frames": each.frames, "processed": each.processed, "skipped": each.skipped, "late": each.late}
            for name, each in simulation.queries.items()
        },
        "swaps": {"count": simulation.swaps, "bytes": simulation.loaded, "blocked_ms": simulation.blocked_ms},
        "memory": {"peak": simulation.peak},
    }


def _policies(found: dict[str, tuple[Plan, Simulation]]) -> Table:
    table = Table("policy", box=SIMPLE)
    for title in ("frames processed", "time blocked", "time busy", "loads a second", "MB a second", "peak MB"):
        table.add_column(title, justify="right")
    for name, (_, simulation) in found.items():
        milliseconds = simulation.seconds * 1e3
        table.add_row(
            name,
            f"{simulation.processed:.1%}",
            f"{simulation.blocked_ms / milliseconds:.1%}",
            f"{simulation.busy_ms / milliseconds:.1%}",
            f"{simulation.swaps / simulation.seconds:.1f}",
            f"{simulation.loaded / simulation.seconds / 1e6:.1f}",
            f"{simulation.peak / 1e6:.1f}",
        )
    return table


def _queries(found: dict[str, tuple[Plan, Simulation]]) -> Table:
    """Return a table of the percentage of frames that each query processed: a row per query, a column per policy."""
    table = Table("query", *(escape(name) for name in found), box=SIMPLE)
    for query in next(iter(found.values()))[1].queries:
        parts = []
        for _, simulation in found.values():
            outcome = simulation.queries[query]
            parts.append(f"{outcome.processed / max(1, outcome.frames):.1%}")
        table.add_row(escape(query), *parts)
    return table


def _promises(promised: Mapping[str, Mapping[str, Promise]]) -> Table:
    """Return a table of the frames per second that each plan promises each query, beside what was asked for.

    Args:
        promised: policy -> query -> promise.
    """
    table = Table("query", title="promised, frames per second", title_justify="left", box=SIMPLE)
    for title in ("feed", "min_fps", *map(escape, promised)):
        table.add_column(title, justify="right")
    for query, asked in next(iter(promised.values())).items():
        plans = (each[query] for each in promised.values())
        least = f"{asked.min_fps:g}" if asked.min_fps else "-"
        table.add_row(escape(query), f"{asked.feed_fps:g}", least, *map(_promise, plans))
    return table


def _promise(promise: Promise) -> str:
    """Return the text of a table cell for a promise: frames per second, and the expected accuracy if there is one."""
    accuracy = "" if promise.accuracy is None else f" ({promise.accuracy:.1%} accurate)"
    return f"{promise.fps:.2f}{accuracy}"
