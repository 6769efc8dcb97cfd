"""The benchmark of merging: what its table says of runs, and the images that judge."""

from __future__ import annotations

from pathlib import Path

import bench_merge
import pytest
from judge_parts import judge_parts

from gemel.bundles.merge_report import IntervalReport, MergeReport, QueryReport, SavingParts


def run(saving: float, relative: float, low: float, *notes: str, finished: bool = True) -> bench_merge.Run:
    """Return a run with one query that changed and one that did not."""
    query = QueryReport(model="a", original=0.9, reached=0.9 * relative, relative=relative, target=0.95, notes=notes)
    interval = IntervalReport(images=200, value=relative, low=low, high=1.0)
    report = MergeReport(
        strategy="together",
        seed=0,
        original_bytes=100,
        merged_bytes=50,
        layer_bytes=80,
        saving=saving,
        layer_saving=saving,
        potential=0.9,
        finished=finished,
        queries={
            "a": query.model_copy(update={"own": interval}),
            "b": query.model_copy(update={"relative": 1.0, "notes": ()}),
        },
        trials=(),
        shared=(),
        parts=SavingParts(sharing=saving, compression=0.0, sharing_alone=0.4, compression_alone=None),
    )
    return bench_merge.Run(bench_merge.Arm("nothing trained", "w5"), 0, report, 12_000)


def test_a_row_has_medians_the_worst_query_and_its_bound() -> None:
    rows = bench_merge.table([run(0.5, 0.98, 0.969), run(0.7, 0.97, 0.9595, "not confirmed: ..."), run(0.6, 1.0, 0.99)])
    cells = [cell.strip() for cell in rows.splitlines()[2].split("|")[1:-1]]
    assert cells[:7] == ["W5", "nothing trained", "95%", "60.0% (50.0% to 70.0%)", "60.0%", "40.0%", "-"]
    assert cells[7:10] == ["0.970", "1.010", "1 of 6"]
    assert cells[-4:] == ["0k", "12k", "0.0", "3"]
    assert "time was up" in bench_merge.table([run(0.5, 1.0, 1.0, finished=False)])


@pytest.mark.parametrize("folder", ["", "cat"])
def test_parts_that_judge_are_joined_one_after_the_other(folder: str, tmp_path: Path) -> None:
    for part, name in (("val", "b.jpg"), ("test", "a.jpg")):
        (tmp_path / part / folder).mkdir(parents=True)
        (tmp_path / part / folder / name).write_text(part)
    found = sorted(path for path in judge_parts(tmp_path).rglob("*") if path.is_file())
    assert [path.read_text() for path in found] == ["val", "test"]
    assert {path.parent for path in found} == {tmp_path / "judge" / folder}
    assert judge_parts(tmp_path) == tmp_path / "judge"
