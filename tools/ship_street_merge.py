"""Store a merge of the street example in the repository, as changes of its public weights.

    .venv/bin/gemel merge examples/street/workload.yaml -o out/street-merged
    .venv/bin/python tools/ship_street_merge.py out/street-merged

Writes ``changes.safetensors``, ``merge.json`` and ``workload.yaml`` to examples/street/merged/, and there the weights
that ``tools/make_street_example.py`` makes of them on any machine. Changes are rounded to 8 bits, so accuracies are
measured again; nothing is kept if a query misses its target.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from make_street_example import write_merged
from weight_changes import apply, pack

from gemel.bundles.merge_report import MERGE_REPORT, read_report
from gemel.merging.layers.problem import Problem
from gemel.merging.layers.sharing import SharingMap, Use
from gemel.merging.models.networks import networks_of
from gemel.merging.output.report import Reporter, merged_workload
from gemel.merging.search.search import Found
from gemel.merging.training.loading import build_subjects
from gemel.workload import load_workload
from gemel.workload.models.identity import models_of

_STREET = Path(__file__).resolve().parent.parent / "examples" / "street"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("merged", type=Path, help="folder that gemel merge wrote")
    merged = parser.parse_args(arguments).merged
    workload, report = load_workload(_STREET / "workload.yaml"), read_report(merged / MERGE_REPORT)
    subjects = build_subjects(workload, "shape", torch.device("cpu"))
    before = {name: subject.state() for name, subject in subjects.items()}
    after = {
        name: network.module.state_dict()
        for name, network in networks_of(load_workload(merged / "workload.yaml")).items()
    }
    sharing = SharingMap().joined([Use(use.query, use.parameter) for use in each.uses] for each in report.shared)
    target = _STREET / "merged"
    target.mkdir(exist_ok=True)
    # The changes go to another file first, so that the stored ones stay if a query misses its target.
    part, changes = target / "changes.part", target / "changes.safetensors"
    pack(before, {name: after[name] for name in sorted(sharing.models)}, sharing.slots, part)

    states = apply(before, part)
    problem = Problem({name: subject.layers for name, subject in subjects.items()}, report.seed)
    found = Found({name: states.get(name, before[name]) for name in before}, sharing)
    final = Reporter(problem, subjects, before, report.strategy).report(found, finished=report.finished)
    final = final.model_copy(update={"trials": report.trials})
    for name, query in final.queries.items():
        print(f"{name}: {query.relative:.3f} of its original, target {query.target}")
    # A model that is not confirmed is reported with its original weights.
    if missed := sharing.models - {use.query for tensor in final.shared for use in tensor.uses}:
        part.unlink()
        sys.exit(f"error: {min(missed)} misses a target; nothing is kept")
    part.replace(changes)
    (target / MERGE_REPORT).write_text(final.model_dump_json(indent=1) + "\n")
    content = merged_workload(workload, write_merged(_STREET), models_of(workload), target)
    (target / "workload.yaml").write_bytes(content)
    print(
        f"{changes}  {changes.stat().st_size / 1e6:.1f} MB; {final.saving:.1%} of {final.original_bytes / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
