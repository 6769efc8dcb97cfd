"""Budgets of an evaluation, and the cases that run under them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemel.bundles.reader import MANIFEST, open_bundle
from gemel.check.evaluation.cases import Case, WeightBytes, budgets, cases, check_same
from gemel.errors import InputError

UNMERGED, MERGED = WeightBytes(total=100, least=40), WeightBytes(total=70, least=45)


def test_both_bundles_get_the_same_bytes() -> None:
    both = {"unmerged": UNMERGED, "merged": MERGED}
    assert budgets(["min", "50%", "75%", "all", 60], both) == {"min": 45, "50%": 50, "75%": 75, "all": 100, 60: 60}
    assert budgets(["min", "all"], {"bundle": MERGED}) == {"min": 45, "all": 70}


def test_a_default_that_is_not_enough_is_left_out() -> None:
    large = {"bundle": WeightBytes(total=100, least=60)}
    assert budgets(None, large) == {"min": 60, "75%": 75, "all": 100}
    with pytest.raises(InputError, match="50% is 50 bytes; the largest model alone needs 60 bytes"):
        budgets(["min", "50%"], large)


def test_policies_only_where_something_is_swapped() -> None:
    both = {"unmerged": UNMERGED, "merged": MERGED}
    assert cases({"min": 45, "75%": 75}, ["gemel", "nexus"], both) == (
        Case("unmerged", "min", 45, "gemel"),
        Case("merged", "min", 45, "gemel"),
        Case("unmerged", "min", 45, "nexus"),
        Case("merged", "min", 45, "nexus"),
        Case("unmerged", "75%", 75, "gemel"),
        Case("merged", "75%", 75, None),
        Case("unmerged", "75%", 75, "nexus"),
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.update(sla_ms=1), "the SLA"),
        (lambda d: d["feeds"]["gate"].update(fps=7), "feed 'gate'"),
        (lambda d: d["feeds"].update(new=d["feeds"]["gate"]), "feed 'new'"),
        (lambda d: d["queries"].pop("c"), "query 'c'"),
        (lambda d: d["queries"]["a"].update(labels=["x", "y", "z"]), "query 'a'"),
        (lambda d: d["queries"]["a"].update(classes=["x"]), "query 'a'"),
        (lambda d: d["queries"]["a"].update(sla_ms=50), "query 'a'"),
    ],
)
def test_bundles_that_cannot_be_compared(
    bundle_folder: Path, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    other = Path(shutil.copytree(bundle_folder / "bundle", bundle_folder / "other"))
    bundle = open_bundle(bundle_folder / "bundle")
    check_same(bundle, open_bundle(other))
    document = json.loads((other / MANIFEST).read_text())
    change(document)
    (other / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(InputError, match=f"other: {named} is not the same as in .*bundle; both need the same workload"):
        check_same(bundle, open_bundle(other))
