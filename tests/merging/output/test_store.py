"""Test the content of the disk after a crash, a full disk, or a clean end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from gemel.bundles.merge_report import MergeReport, read_report
from gemel.durable import write_whole
from gemel.errors import InputError
from gemel.merging.layers.sharing import SharingMap, Use
from gemel.merging.output import store as module
from gemel.merging.output.records import Confirmed, key_of, pack_states
from gemel.merging.output.store import Store
from gemel.merging.strategies import Verdict
from gemel.merging.training.training import Recipe
from gemel.merging.training.trial import Outcome, Start, Trial

HEADER = {"workload": "0", "seed": 0}
A, B = Use("a", "0.weight"), Use("b", "0.weight")
SHARING = SharingMap().joined([(A, B)])


class Opened(Protocol):
    """Type of the fixture ``opened``."""

    def __call__(self, header: dict[str, Any], *, resume: bool = False) -> Store: ...


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Return a function that opens the store in ``merged`` and closes the store that it opened before."""
    last: list[Store] = []

    def open_(header: dict[str, Any], *, resume: bool = False) -> Store:
        while last:
            last.pop().close()
        last.append(Store(tmp_path / "merged", header, resume=resume))
        return last[-1]

    yield open_
    for store in last:
        store.close()


def trial(group: str = "all", **fields: Any) -> Trial:
    """Make a trial that shares one weight of models a and b."""
    return Trial(group, SHARING, frozenset("ab"), Start("donor", ("b", "a")), Recipe(10), **fields)


def verdict(group: str = "all", ended: str = "done", value: float = 1.0) -> Verdict:
    """Make an accepted verdict on a trial after which all weights are ``value``."""
    states = {name: {"0.weight": torch.full((2, 2), value)} for name in "ab"}
    scores = {"qa": 0.5, "qb": 0.75}
    outcome = Outcome(scores, scores, frozenset("a"), 20, 1.5, ended, {A: 0.25}, states)
    return Verdict(trial(group), outcome, True, SHARING)


def files(value: int = 1) -> dict[str, tuple[str, bytes | None]]:
    """Make the weight files of models a and b, whose content is ``value``."""
    return {name: (f"{name}-0000000{value}.safetensors", str(value).encode()) for name in "ab"}


def record(store: Store, *verdicts: Verdict, value: int = 1) -> None:
    """Record verdicts, one after the other, with the weight files for ``value``."""
    for each in verdicts:
        store.record(each, each.outcome.states, files(value))


def report(**fields: Any) -> MergeReport:
    """Make a report on a merge without queries or trials."""
    base: dict[str, Any] = {
        "strategy": "together",
        "seed": 0,
        "original_bytes": 32,
        "merged_bytes": 16,
        "layer_bytes": 32,
        "saving": 0.5,
        "layer_saving": 0.5,
        "potential": 0.5,
        "finished": True,
        "queries": {},
        "trials": (),
        "shared": (),
    }
    return MergeReport(**{**base, **fields})


def test_recorded_trials_are_recalled(opened: Opened) -> None:
    first = opened(HEADER)
    assert first.recall(trial()) is None
    record(first, verdict(), verdict("second"))
    again = opened(HEADER, resume=True)
    found = [again.recall(each) for each in (trial(), trial("second"))]
    assert found[0] is not None
    assert found[1] is not None
    assert (found[0].accuracies, found[0].met, found[0].samples) == ({"qa": 0.5, "qb": 0.75}, frozenset("a"), 20)
    assert found[1].strain == {A: 0.25}
    assert again.recall(trial("next")) is None
    assert torch.equal(again.last_states()["b"]["0.weight"], torch.ones(2, 2))
    assert again.after(2)[0]["b"].read_bytes() == b"1"


def test_a_line_cut_off_by_a_crash_is_forgotten_with_its_weights(tmp_path: Path, opened: Opened) -> None:
    first = opened(HEADER)
    for value in (1, 2):
        record(first, verdict(value=value), value=value)
    search = tmp_path / "merged" / "search"
    text = (search / "journal.jsonl").read_text()
    # State after a crash: the second trial's weights are written, the first trial's are not yet deleted, and the second
    # line is cut off.
    write_whole(search / "last-1.safetensors", pack_states(verdict().outcome.states))
    (search / "journal.jsonl").write_text(text[:-40])
    again = opened(HEADER, resume=True)
    assert again.recall(trial()) is not None
    assert again.recall(trial()) is None
    assert torch.equal(again.last_states()["a"]["0.weight"], torch.ones(2, 2))
    assert again.after(1)[0]["a"].read_bytes() == b"1"
    # The trial runs again; the file that the crash left is not mistaken for the weights of an older trial.
    record(again, verdict(value=3), value=3)
    last = opened(HEADER, resume=True)
    assert torch.equal(last.last_states()["a"]["0.weight"], torch.full((2, 2), 3.0))
    assert [path.name for path in search.glob("last-*")] == ["last-2.safetensors"]


def test_a_trial_that_went_wrong_keeps_the_weights_that_the_next_goes_on_from(opened: Opened) -> None:
    store = opened(HEADER)
    record(store, verdict())
    wrong = verdict(ended="the loss is nan at step 1")
    store.record(replace(wrong, outcome=replace(wrong.outcome, states={})), verdict(value=2).outcome.states, {})
    again = opened(HEADER, resume=True)
    assert torch.equal(again.last_states()["a"]["0.weight"], torch.full((2, 2), 2.0))


def test_another_search_is_not_resumed(opened: Opened) -> None:
    opened(HEADER).commit({}, report(), b"", Confirmed())
    with pytest.raises(InputError, match="was begun with seed 0, now it is 1"):
        opened({**HEADER, "seed": 1}, resume=True)


def test_other_trials_are_not_taken_for_these(opened: Opened) -> None:
    record(opened(HEADER), verdict())
    with pytest.raises(InputError, match="another version"):
        opened(HEADER, resume=True).recall(trial("other"))


def test_a_journal_of_another_form_is_not_resumed(tmp_path: Path, opened: Opened) -> None:
    opened(HEADER).commit({}, report(), b"", Confirmed())
    journal = tmp_path / "merged" / "search" / "journal.jsonl"
    journal.write_text(json.dumps(HEADER) + "\n")
    with pytest.raises(InputError, match="another version"):
        opened(HEADER, resume=True)
    for content in (b"\xff\xfe", b"", b"{\n{}\n"):
        journal.write_bytes(content)
        with pytest.raises(InputError, match="cannot be resumed"):
            opened(HEADER, resume=True)


def test_nothing_is_in_the_way_before_something_is_written(tmp_path: Path, opened: Opened) -> None:
    opened(HEADER)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == [
        "merged",
        "merged/search",
        "merged/search/lock",
    ]
    opened({**HEADER, "seed": 1})


def test_a_folder_is_written_by_one_at_a_time(tmp_path: Path) -> None:
    output = tmp_path / "merged"
    with Store(output, HEADER) as store:
        for written in (False, True):
            for resume in (False, True):
                with pytest.raises(InputError, match=f"another gemel merge is writing {output}"):
                    Store(output, HEADER, resume=resume)
            if not written:
                store.commit({}, report(), b"", Confirmed())
    with pytest.raises(InputError, match="was begun with seed 0"):
        Store(output, {**HEADER, "seed": 1}, resume=True)
    # A store that was refused does not keep the lock.
    Store(output, HEADER, resume=True).close()


def test_nothing_is_written_into_a_folder_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for resume in (False, True):
        with pytest.raises(InputError, match=r"is there already|no merge to resume"):
            Store(tmp_path, HEADER, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_there_is_not_overwritten(tmp_path: Path, opened: Opened) -> None:
    opened(HEADER).commit({}, report(), b"", Confirmed())
    with pytest.raises(InputError, match="--resume goes on with it"):
        opened(HEADER)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="is there already; name another"):
        Store(tmp_path / "other", HEADER)
    with pytest.raises(InputError, match="no merge to resume"):
        Store(tmp_path / "other", HEADER, resume=True)


FIRST, SECOND = "a-11111111.safetensors", "a-22222222.safetensors"


def test_commit_replaces_what_was_committed(tmp_path: Path, opened: Opened) -> None:
    store = opened(HEADER)
    store.commit({FIRST: b"1"}, report(), b"first", Confirmed())
    (tmp_path / "merged" / "weights" / "notes.txt").write_text("not ours")
    store.commit({SECOND: b"2"}, report(saving=0.25), b"second", Confirmed())
    assert sorted(path.name for path in (tmp_path / "merged" / "weights").iterdir()) == [SECOND, "notes.txt"]
    assert read_report(tmp_path / "merged" / "merge.json").saving == 0.25
    assert (tmp_path / "merged" / "workload.yaml").read_bytes() == b"second"


@pytest.mark.parametrize("name", [SECOND, "merge.json", "workload.yaml"])
def test_a_full_disk_leaves_the_last_commit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Opened
) -> None:
    store = opened(HEADER)
    store.commit({FIRST: b"1"}, report(), b"first", Confirmed())

    def full(path: Path, content: bytes) -> None:
        if path.name == name:
            raise OSError(28, "No space left on device", str(path))
        write_whole(path, content)

    monkeypatch.setattr(module, "write_whole", full)
    with pytest.raises(InputError, match="No space left on device; the last commit is whole"):
        store.commit({SECOND: b"2"}, report(saving=0.25), b"second", Confirmed())
    assert (tmp_path / "merged" / "weights" / FIRST).read_bytes() == b"1"
    assert (tmp_path / "merged" / "workload.yaml").read_bytes() == b"first"


@pytest.mark.parametrize("name", [SECOND, "last-2.safetensors", "journal.jsonl"])
def test_a_disk_that_fills_in_a_record_leaves_the_trial_before(
    name: str, monkeypatch: pytest.MonkeyPatch, opened: Opened
) -> None:
    store = opened(HEADER)
    record(store, verdict())
    number = 0

    def full(path: Path, content: bytes) -> None:
        if path.name == name:
            raise OSError(28, "No space left on device", str(path))
        write_whole(path, content)

    def unsafe(_: int) -> None:
        nonlocal number
        number += 1
        # The weights of a and last-2.safetensors, each with the name in its folder; then the line in the journal.
        if number == 5:
            raise OSError(28, "No space left on device")

    if name == "journal.jsonl":
        monkeypatch.setattr("os.fsync", unsafe)
    else:
        monkeypatch.setattr(module, "write_whole", full)
    with pytest.raises(InputError, match="No space left on device; the last commit is whole"):
        store.record(verdict(value=2), verdict(value=2).outcome.states, {"a": (SECOND, b"2")})
    monkeypatch.undo()
    again = opened(HEADER, resume=True)
    assert again.recall(trial()) is not None
    if name != "journal.jsonl":  # in that case the line may or may not be on the disk
        assert again.recall(trial()) is None
        assert again.after(1)[0]["a"].read_bytes() == b"1"
        assert torch.equal(again.last_states()["a"]["0.weight"], torch.ones(2, 2))


@pytest.mark.parametrize(
    "content",
    [None, "", "[]", '{"trial": "1", "failed": []}', '{"trial": 3, "failed": []}', '{"trial": 1, "failed": 1}', "{}"],
)
def test_what_a_merge_goes_back_to_is_read_again_unless_the_file_is_damaged(
    content: str | None, tmp_path: Path, opened: Opened
) -> None:
    first = opened(HEADER)
    assert first.confirmed == Confirmed()
    record(first, verdict(), verdict("second"))
    first.commit({}, report(), b"", Confirmed(1, ("a",)))
    if content is not None:
        (tmp_path / "merged" / "search" / "confirmed.json").write_text(content)
    assert opened(HEADER, resume=True).confirmed == (Confirmed(1, ("a",)) if content is None else Confirmed())


def test_keys_do_not_depend_on_the_process(tmp_path: Path) -> None:
    assert key_of(trial()) == key_of(trial())
    assert key_of(trial()) != key_of(trial(base="last"))
    assert json.dumps(key_of(trial()))
