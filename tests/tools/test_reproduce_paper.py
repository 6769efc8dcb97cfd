"""Tests of tools/reproduce_paper.py: merged profiles, the published rules, ages of answers, and the whole command."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from documents import put
from paper_merge import Query, Setting, potential, profile_of, read_workloads
from paper_models import ARCHITECTURES, SLIDES, Architecture, Fit, measure
from paper_published import published
from paper_runs import ages, memory_bytes
from profiles import profile
from reproduce_paper import main

from gemel.merging.analysis.analysis import Analysis
from gemel.merging.analysis.analysis import ModelSizes as Sizes
from gemel.merging.layers.layers import Layer
from gemel.runtime.planning.read import read_profile
from gemel.runtime.planning.simulate import QueryOutcome

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


def test_heaviest_are_merged_first_until_enough_is_saved() -> None:
    # Sharing everything saves 2 * 100 + 2 * 40 + 40 bytes.
    whole = sum(TOYS[query.architecture].bytes for query in WORKLOAD)
    for part, saved in ((0.0, 0), (0.5, 200), (0.7, 280), (0.9, 320), (1.0, 320)):
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
    assert all(content.count("\n| ") >= 3 for _, content in blocks)
    assert "medium-1" in page
    assert "high-1" not in dict(blocks)["workloads"]
    for name in ("frames", "sweeps"):
        assert (tmp_path / f"docs/images/paper-{name}.svg").stat().st_size > 10_000
    # The command makes the same file as the one in the repository.
    made = tmp_path / "examples/profiles/paper-merged.yaml"
    assert made.read_text() == (ROOT / "examples/profiles/paper-merged.yaml").read_text()
    assert read_profile(made).budget("all") < read_profile(ROOT / "examples/profiles/paper.yaml").budget("all")


def test_a_quick_run_does_not_touch_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--quick"])
    assert "--output" in capsys.readouterr().err
