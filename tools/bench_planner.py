"""Measure the planner: against the best of all plans, its CPU time, and its predictions against the simulation.

    .venv/bin/python tools/bench_planner.py [--workloads 200] [--json planner.json]

Workloads are drawn at random: models that share segments, run times, rates, and a budget between the largest model and
all weights. The best of all plans is found by trying every order with one turn for each query, every combination of
turn sizes and both ways of prefetch; the planner may also give a query several turns, and so be better than that.
"""

from __future__ import annotations

import argparse
import json
from itertools import permutations
from pathlib import Path
from random import Random
from statistics import median
from time import process_time
from typing import Any

import no_telemetry  # noqa: F401
import numpy as np
from rich.console import Console
from rich.table import Table

from gemel.runtime.planning.objectives import OBJECTIVES, STEP, ObjectiveName
from gemel.runtime.planning.planner import Plan, Policy, make_plan, plan_of
from gemel.runtime.planning.profile import Profile, parse_profile
from gemel.runtime.planning.residency import Rule
from gemel.runtime.planning.search import best_of_orders
from gemel.runtime.planning.simulate import simulate


def workload(random: Random, count: int) -> tuple[Profile, int]:
    """Return a random workload of ``count`` queries, and a budget in bytes."""
    segments = {f"s{index}": {"bytes": random.randint(1, 60)} for index in range(2 + count * 3 // 2)}
    models = {}
    for index in range(count):
        first, more = random.uniform(2, 25), random.uniform(1, 15)
        models[f"m{index}"] = {
            "segments": random.sample(sorted(segments), min(len(segments), random.randint(1, 4))),
            "run_ms": {size: first + more * (size - 1) for size in (1, 2, 4)},
        }
    queries = {
        f"q{index}": {
            "model": f"m{index}",
            "fps": float(random.choice((5, 10, 15, 25, 30))),
            "staleness": np.exp(-np.arange(1, 60) / random.uniform(2, 60)).tolist(),
        }
        for index in range(count)
    }
    link = {"bandwidth": random.choice((500.0, 1e3, 2e3, 8e3))}
    sla_ms = random.choice((100.5, 200.5, 400.5))
    document = {"segments": segments, "models": models, "queries": queries, "link": link, "sla_ms": sla_ms}
    known = parse_profile(document)
    least, most = known.budget("min"), known.budget("all")
    return known, least + int((most - least) * random.choice((0.0, 0.3, 0.6)))


def value(known: Profile, plan: Plan, objective: ObjectiveName) -> float:
    """Return the number that the objective is about: a lowest share or accuracy, or a sum or mean."""
    shares = [plan.frames[name] / query.fps for name, query in known.queries.items()]
    accuracy = list((plan.accuracy or {}).values())
    if objective == "max-min":
        return min(shares)
    if objective == "sum":
        return sum(plan.frames.values())
    return min(accuracy) if objective == "accuracy" else sum(accuracy) / len(accuracy)


def against_optimum(count: int) -> dict[str, Any]:
    """Return, for each objective, how near the planner's plans come to the best of all plans with a turn each."""
    found: dict[str, Any] = {}
    for objective in OBJECTIVES:
        ratios, equal = [], 0
        for seed in range(count):
            random = Random(seed)
            known, budget = workload(random, random.randint(2, 6))
            policy = Policy(objective=objective)
            queries = tuple(known.queries)
            orders = [(queries[0], *rest) for rest in permutations(queries[1:])]
            rules = [Rule(), Rule(far=True)]
            best = plan_of(known, best_of_orders(known, budget, orders, rules, objective))
            reached = value(known, make_plan(known, budget, policy), objective)
            most = value(known, best, objective)
            ratios.append(reached / most if most > 0 else 1.0)
            equal += reached >= most - STEP
        found[objective] = {
            "equal or better": equal / count,
            "lowest": min(ratios),
            "median": median(ratios),
            "highest": max(ratios),
        }
    return found


def cpu_time(counts: tuple[int, ...], seeds: int = 3) -> dict[str, float]:
    """Return the median CPU seconds of a plan for each number of queries."""
    found = {}
    for count in counts:
        times = []
        for seed in range(seeds):
            known, budget = workload(Random(seed), count)
            began = process_time()
            make_plan(known, budget)
            times.append(process_time() - began)
        found[str(count)] = median(times)
    return found


def predictions(count: int) -> dict[str, Any]:
    """Return simulated frames in time, in all and of the slowest query, relative to what plans promise."""
    totals, lowest = [], []
    for seed in range(count):
        random = Random(1000 + seed)
        known, budget = workload(random, random.randint(2, 12))
        plan = make_plan(known, budget)
        outcome = simulate(known, budget, plan, 300.0).queries
        got = {name: (each.processed - each.late) / each.frames for name, each in outcome.items()}
        promised = {name: plan.frames[name] / query.fps for name, query in known.queries.items()}
        totals.append(sum(got[name] * query.fps for name, query in known.queries.items()) / sum(plan.frames.values()))
        lowest.append(min(got.values()) / max(1e-9, min(promised.values())))
    return {
        name: {"lowest": min(ratios), "median": median(ratios), "highest": max(ratios)}
        for name, ratios in (("all frames", totals), ("slowest query", lowest))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workloads", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {
        "optimum": against_optimum(options.workloads),
        "cpu_s": cpu_time((5, 10, 20, 60, 200)),
        "simulated": predictions(min(50, options.workloads)),
    }
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))
    console = Console(width=120)
    for title, rows in (("planner / best of all plans", found["optimum"]), ("simulated / planned", found["simulated"])):
        table = Table("", *next(iter(rows.values())), title=title)
        for name, row in rows.items():
            table.add_row(name, *(f"{each:.3f}" for each in row.values()))
        console.print(table)
    table = Table("queries", "CPU s of a plan")
    for name, seconds in found["cpu_s"].items():
        table.add_row(name, f"{seconds:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
