"""Tests of tools/reproduce_paper.py: merged profiles, plans of baselines, published rules, tables, and the command."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import reproduce_paper
from documents import put
from merge_workloads import QUERIES, WORKLOADS
from paper_baseline import baseline_plan, best_of_all
from paper_changes import SHORT, STRANGERS, SWEEPS, UNMERGED, composition
from paper_merge import Query, Setting, potential, profile_of, read_workloads
from paper_models import ARCHITECTURES, SLIDES, Architecture, Fit, measure
from paper_published import published
from paper_required import required
from paper_runs import Cell, Outcome, Runs, ages, memory_bytes
from paper_tables import medians
from profiles import profile
from reproduce_paper import main

from gemel.compiler.heads import cut
from gemel.merging.analysis.analysis import Analysis, sizes_of
from gemel.merging.analysis.analysis import ModelSizes as Sizes
from gemel.merging.layers.layers import Layer
from gemel.merging.models.networks import Network
from gemel.runtime.planning.planner import POLICIES, Plan, make_plan
from gemel.runtime.planning.read import read_profile
from gemel.runtime.planning.simulate import QueryOutcome, simulate
from gemel.workload.zoo.cifar_resnet import cifar_resnet

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def known() -> dict[str, Architecture]:
    return measure(SLIDES)


@pytest.fixture(scope="module")
def fit(known: Mapping[str, Architecture]) -> Fit:
    return Fit.of(known)


def made_up(name: str, *layers: int) -> Architecture:
    """Make an architecture of layers of the given bytes, where equal bytes mean equal definition, and 10 more bytes.

    The 10 more bytes are 2 tensors that belong to no layer.
    """
    made = (Layer(name, f"l{place}", f"Linear {size}", (size,), size, False) for place, size in enumerate(layers))
    return Architecture(name, sum(layers) + 10, len(layers) + 2, tuple(made), 1.0)


TOYS = {each.name: each for each in (made_up("resnet50", 100, 40, 40), made_up("vgg16", 100, 40), made_up("yolov3", 7))}
FIT = Fit(ms_per_mb=1.0, ms_per_tensor=0.1, ms_per_layer=1.0, ms_per_gmac=1.0)
WORKLOAD = tuple(
    Query(str(index), name, "cars") for index, name in enumerate(["resnet50", "resnet50", "vgg16", "yolov3"])
)


def test_segments_are_the_tensors_of_the_same_models() -> None:
    found = profile_of(WORKLOAD, TOYS, FIT, Setting(merged=1.0))
    users: dict[str, list[str]] = {}
    for query in found.queries:
        for segment in found.segments_of(query):
            users.setdefault(segment, []).append(query)
    a, b, c, d = found.queries
    sizes = {tuple(queries): found.segments[segment].bytes for segment, queries in users.items()}
    # Only the two equal models have a second layer of 40 bytes.
    assert sizes == {(a,): 10, (b,): 10, (c,): 10, (d,): 17, (a, b, c): 140, (a, b): 40}


def test_heaviest_are_merged_first_and_no_more_than_wanted() -> None:
    # Sharing everything saves 2 * 100 + 2 * 40 + 40 bytes.
    whole = sum(TOYS[query.architecture].bytes for query in WORKLOAD)
    for part, saved in ((0.0, 0), (0.1, 0), (0.2, 40), (0.5, 140), (0.7, 200), (0.9, 280), (1.0, 320)):
        assert profile_of(WORKLOAD, TOYS, FIT, Setting(merged=part)).budget("all") == whole - saved, part


def test_potential_is_that_of_the_analysis(known: Mapping[str, Architecture]) -> None:
    models = tuple(Sizes(name, (), each.bytes, each.layers) for name, each in known.items())
    queries = [Query("1", name, "cars") for name in known]
    assert potential(queries, known) == pytest.approx(Analysis(models, "shape", False).potential)


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.7, 1.0])
def test_a_model_keeps_its_bytes_and_loads_no_faster_alone(part: float, tensors: bool) -> None:
    found = profile_of(WORKLOAD, TOYS, FIT, Setting(merged=part, tensors=tensors))
    for query in WORKLOAD:
        own = found.segments_of(query.name)
        load = sum(map(found.load_ms, own))
        assert sum(found.segments[segment].bytes for segment in own) == TOYS[query.architecture].bytes
        assert load >= SLIDES[query.architecture][0] - 1e-3
        assert part or load == pytest.approx(SLIDES[query.architecture][0], abs=1e-3)
        assert found.run_ms(query.name, 4) == pytest.approx(4 * SLIDES[query.architecture][1])


def test_the_fit_gives_the_slides_load_times(known: Mapping[str, Architecture], fit: Fit) -> None:
    for name, (load, run) in SLIDES.items():
        assert fit.estimated(known[name])[0] == pytest.approx(load, rel=0.15)
        assert fit.times(known[name]) == (load, run)
    assert min(fit.ms_per_mb, fit.ms_per_tensor, fit.ms_per_layer, fit.ms_per_gmac) >= 0


def test_workloads_are_of_known_architectures_and_no_query_is_listed_twice() -> None:
    workloads = read_workloads(ROOT / "examples/profiles/paper-workloads.yaml")
    assert len(workloads) == 15
    for name, queries in workloads.items():
        assert len({query.name for query in queries}) == len(queries), name
        assert {query.architecture for query in queries} <= {*ARCHITECTURES}, name


@pytest.mark.parametrize(("name", "saved"), [("w1", 64.5), ("w2", 58.4)])
def test_merges_of_siblings_save_all_that_can_be_shared(name: str, saved: float) -> None:
    # docs/merging.md has what was saved, of the bytes of layers.
    models = []
    for query in WORKLOADS[name]:
        depth, classes = QUERIES[query]
        models.append(sizes_of(Network(query, (), cut(cifar_resnet(depth, len(classes)), "classification"))))
    shared = Analysis(tuple(models), "shape", False).potential * sum(each.bytes for each in models)
    assert 100 * shared / sum(layer.bytes for each in models for layer in each.layers) == pytest.approx(saved, abs=0.05)


def test_a_baseline_has_the_turn_sizes_that_are_best_in_simulation() -> None:
    # The planner expects more of other turn sizes, because it does not know how frames fall.
    runs = {name: {size: size * one for size in (1, 2, 4)} for name, one in (("a", 6.0), ("b", 13.0), ("c", 25.0))}
    known = profile({"a": ["A"], "b": ["B"], "c": ["C"]}, {"A": 42, "B": 69, "C": 37}, run=runs, fps=30)
    policy = POLICIES["nexus"]

    def worth(plan: Plan) -> tuple[float, ...]:
        return tuple(sorted(each.processed for each in simulate(known, 101, plan, 5).queries.values()))

    best = best_of_all(known, 101, policy, worth)
    assert worth(baseline_plan(known, 101, policy, worth)) == best > worth(make_plan(known, 101, policy))


def test_the_start_of_a_run_does_not_count() -> None:
    # Everything fits. The first load takes 3 ms a MB, longer than the second that the whole run lasts.
    known = {"resnet50": made_up("resnet50", 100_000_000)}
    runs = Runs({"one": [Query("1", "resnet50", "cars")]}, known, FIT, 2.0)
    found = runs[Cell("one", "all", "gemel", UNMERGED)]
    assert found.blocked == 0
    assert found.processed == found.lowest == pytest.approx(1, abs=0.02)


def outcome(processed: float, lowest: float) -> Outcome:
    return Outcome(processed, lowest, 0.1, 10.0, (0.5, 0.5, 0.5))


@pytest.fixture
def fake() -> Runs:
    """Return made-up results of two workloads: gemel has 30 % more everywhere, but not in unmerged ``y`` at min."""
    workloads = {"x": WORKLOAD[:2], "y": WORKLOAD}
    runs = Runs(workloads, TOYS, FIT, 1.0)
    settings = {UNMERGED, STRANGERS, *(setting for every in SWEEPS.values() for _, setting in every)}
    settings |= {replace(setting, merged=0.0) for setting in settings}
    for name, memory, setting in product(workloads, SHORT, settings):
        base = 0.2 if setting.merged == 0 else 0.3
        for policy, factor in (("nexus", 1.0), ("nexus+shared", 1.0), ("gemel", 1.3), ("gemel, sum", 1.6)):
            runs.done[Cell(name, memory, policy, setting)] = outcome(factor * base, factor * base / 2)
    runs.done[Cell("y", "min", "gemel", UNMERGED)] = outcome(0.2, 0.09)
    return runs


def test_points_below_the_baseline_are_named(fake: Runs) -> None:
    rows = required(fake, (60, 600.0, 31.0), SWEEPS).splitlines()
    assert "| frames, lowest | unmerged | +0 % | 0 of 6 below, lowest +0.0 % | reached |" in rows
    assert "| slowest query, median | unmerged | +25 % | +30 % | reached |" in rows
    assert "| slowest query, lowest | unmerged | +0 % | 1 of 6 below, lowest -10.0 % | **not reached** |" in rows
    assert "| slowest query, lowest | merged as siblings | +0 % | 0 of 6 below, lowest +30.0 % | reached |" in rows
    assert "- slowest query, unmerged: y at min -10.0 %" in rows
    assert rows[-1] == f"Models of y: {composition(WORKLOAD)}."
    assert any("31.0 s | **not reached** |" in row for row in rows)


def test_medians_are_named_at_both_ends(fake: Runs) -> None:
    text = medians(fake)
    assert "| merging alone | +50 % (+50 % to +50 %) | +50 % (+50 % to +50 %) |" in text
    assert "| planning alone | +30 % (+0 % to +30 %) |  | +30 % (-10 % to +30 %) |  |" in text
    assert f"| planning alone | slowest query | -10 % | y at min ({composition(WORKLOAD)}) | +30 % |" in text
    assert composition(WORKLOAD) == "2 resnet50, vgg16, yolov3"


def test_published_rules_by_hand() -> None:
    # Each model needs all memory: a cycle takes 2 * (40 + 10) ms, in which three frames arrive per query.
    full = profile({"a": ["A"], "b": ["B"]}, {"A": 40, "B": 40}, fps=30)
    found = published(full, 40, 3000)
    assert found.processed == found.timely == pytest.approx(1 / 3, abs=0.01)
    assert found.blocked == pytest.approx(0.8, abs=0.01)
    assert found.peak == 40
    # The third model loads while the second runs, although the second was evicted to make room for it.
    assert published(profile({"a": ["A"], "b": ["B"], "c": ["C"]}, fps=30), 2, 100).peak == 3
    # In 150 ms 4.5 frames arrive. A batch takes the newest 4; all but one or two of them are older than 50 ms.
    late = profile({"a": ["A"], "b": ["B"]}, {"A": 25, "B": 25}, run={key: {1: 500, 4: 50} for key in "ab"}, fps=30)
    found = published(late, 25, 3000)
    assert found.processed == pytest.approx(4 / 4.5, abs=0.02)
    assert 1 / 4.5 < found.timely < 2 / 4.5


def test_published_rules_give_what_the_published_code_gives() -> None:
    paper = read_profile(ROOT / "examples/profiles/paper.yaml")
    parts = [published(paper, memory_bytes(paper, memory), 3000).processed for memory in ("min", "50 %", "75 %", "all")]
    assert [round(part, 2) for part in parts] == [0.14, 0.20, 0.23, 0.60]


def test_the_age_of_an_answer() -> None:
    # Frames arrive at 30, 130, ... 830 ms. The second is answered at 190, the sixth and seventh together at 750.
    outcome = QueryOutcome(frames=9, processed=3, latencies=[60, 220, 120], answers=[(190, 1), (750, 6)])
    assert list(ages(outcome, 10, 100)) == [None, 0, 100, 200, 300, 400, 500, 100, 200]
    # With a longer SLA, the sixth frame is answered in time, and the first gets the answer of the second.
    assert list(ages(outcome, 10, 230)) == [0, 0, 100, 200, 300, 0, 0, 100, 200]
    assert list(ages(QueryOutcome(frames=2), 10, 100)) == [None, None]


def test_marks_of_the_page() -> None:
    page = "a\n<!-- x -->\nold\n<!-- end -->\nb\n<!-- y -->\n<!-- end -->\n"
    assert put(page, {"x": r"new \1"}) == page.replace("old", r"new \1")
    with pytest.raises(ValueError, match="0 places for 'z'"):
        put(page, {"z": ""})


def test_the_whole_command(tmp_path: Path) -> None:
    main(["--quick", "--seconds", "1", "--output", str(tmp_path)])
    page = (tmp_path / "docs/paper.md").read_text()
    blocks = re.findall(r"<!-- (\w+) -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert all(content.count("\n| ") >= 2 for _, content in blocks)
    assert "low-1" in dict(blocks)["workloads"]
    assert "high-1" not in dict(blocks)["workloads"]
    for name in ("frames", "sweeps"):
        assert (tmp_path / f"docs/images/paper-{name}.svg").stat().st_size > 10_000
    # The command makes the same file as the one in the repository.
    made = tmp_path / "examples/profiles/paper-merged.yaml"
    assert made.read_text() == (ROOT / "examples/profiles/paper-merged.yaml").read_text()
    assert read_profile(made).budget("all") < read_profile(ROOT / "examples/profiles/paper.yaml").budget("all")


def test_baselines_are_compared_with_all_turn_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce_paper, "best_of_all", lambda *_: (0.5, 0.6))
    monkeypatch.setattr(reproduce_paper, "baseline_plan", lambda profile, *_: make_plan(profile, profile.budget()))
    monkeypatch.setattr(reproduce_paper, "worth_of", lambda *_: lambda plan: (0.4, 0.7))
    found = reproduce_paper.compare_baselines(Runs({"low-1": WORKLOAD}, TOYS, FIT, 1.0))
    rows = found.splitlines()[2:]
    assert rows == [f"| low-1 | {memory} | 40.0 % | 40.0 % | 50.0 % |" for memory in SHORT]


def test_a_quick_run_does_not_touch_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--quick"])
    assert "--output" in capsys.readouterr().err
