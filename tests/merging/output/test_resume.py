"""Test that a merge that crashes at any write resumes with the same result. Trials only pretend to learn."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from drift_samples import put_sample
from helpers import query, save
from judgements import judgement
from safetensors.torch import load_file

from gemel.bundles.merge_report import read_report
from gemel.errors import InputError
from gemel.merging import merge
from gemel.merging.layers.sharing import SharingMap
from gemel.merging.merge import MergeOptions, merge_workload
from gemel.merging.output.confirm import Confirmer
from gemel.merging.output.records import key_of
from gemel.merging.strategies import SearchSettings
from gemel.merging.training.goals import reached
from gemel.merging.training.subjects import Judgement, State, Subject
from gemel.merging.training.trial import Outcome, Trial
from gemel.workload import Workload, load_workload

Script = Callable[[Trial], str]
MODELS = "abc"


class Crash(BaseException):
    """A crash of the process; no code under test catches a BaseException."""


class Pretender:
    """Replacement of a TrialRunner that computes new weights from a hash of the trial and the weights before it."""

    script: Script
    """Function that returns the letters of the models that meet their goals, or "wrong" if training goes wrong."""

    def __init__(self, subjects: Mapping[str, Subject], seed: int) -> None:
        self._subjects = subjects

    def __call__(
        self, trial: Trial, states: Mapping[str, State], shared: SharingMap, deadline: float, watch: object
    ) -> Outcome:
        met = frozenset(self.script(trial)) & trial.learners
        if "wrong" in self.script(trial):
            scores = dict.fromkeys(trial.learners, 0.1)
            return Outcome(scores, scores, frozenset(), 0, 0.0, "the loss is nan")
        found = {name: self._learned(states[name], trial) for name in sorted(trial.learners)}
        for slot in trial.sharing.slots:
            fixed = [use for use in slot if use.model not in found]
            value = states[fixed[0].model][fixed[0].parameter] if fixed else found[slot[0].model][slot[0].parameter]
            for use in slot:
                if use.model in found:
                    found[use.model][use.parameter] = value.clone()
        scores = {name: 0.99 if name in met else 0.5 for name in trial.learners}
        strain = {use: float(len(use.parameter)) for use in trial.sharing.uses if use.model in trial.learners - met}
        return Outcome(scores, scores, met, 5, 0.0, "done", strain, found)

    def _learned(self, state: State, trial: Trial) -> State:
        """Add a number to all weights that depends on the trial and on the weights."""
        before = b"".join(value.numpy().tobytes() for _, value in sorted(state.items()))
        number = int.from_bytes(hashlib.sha256(before + key_of(trial).encode()).digest()[:2], "big")
        return {
            name: value + (number + 1) / 1e4 if value.is_floating_point() else value for name, value in state.items()
        }


@pytest.fixture
def workload(workload_in: Callable[..., Workload], subject: Callable[..., Subject], tmp_path: Path) -> Workload:
    """Make a workload of three models; tests take the models from ``subject`` instead of building them."""
    made = workload_in(*(query(name) for name in MODELS))
    for index, name in enumerate(MODELS):
        save(subject(name, seed=index).model, tmp_path / f"{name}.safetensors")
    return made


@pytest.fixture
def run(
    workload: Workload, subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Return a function that merges into a folder and returns :func:`content` of the folder."""
    subjects = {name: subject(name, seed=index) for index, name in enumerate(MODELS)}
    # No data sets are read, and models that are read from weight files belong to the workload.
    monkeypatch.setattr(merge, "build_subjects", lambda *_: subjects)
    monkeypatch.setattr(merge, "TrialRunner", Pretender)
    # Weights that nobody trained would not be confirmed.
    for test in ("holds", "reached"):
        monkeypatch.setattr(f"gemel.merging.output.confirm.{test}", lambda *_: True)
    # Counting the bytes of bundles would take most of the time, and these tests do not look at them.
    monkeypatch.setattr("gemel.merging.output.report.bundle_bytes", lambda models: len(list(models)), raising=False)

    def start(script: Script, output: Path, **options: Any) -> dict[str, Any]:
        monkeypatch.setattr(Pretender, "script", staticmethod(script), raising=False)
        merge_workload(workload, output, MergeOptions(device="cpu", **options))
        return content(output)

    return start


def content(output: Path) -> dict[str, Any]:
    """Return the report without times, the workload and the names of the weight files of a merge."""
    report = read_report(output / "merge.json").model_dump()
    for trial in report["trials"]:
        del trial["seconds"]
    return {
        "report": report,
        "workload": (output / "workload.yaml").read_text(),
        "weights": sorted(path.name for path in (output / "weights").iterdir()),
    }


def usable(output: Path) -> None:
    """Check after a crash that the workload, if there is one, can be loaded and that its weight files can be read."""
    if not (output / "workload.yaml").exists():
        return
    for each in load_workload(output / "workload.yaml").queries:
        assert each.model.weights
        load_file(output / each.model.weights)


def second_donor(trial: Trial) -> str:
    """Script: all models meet their goals without training if b is the donor, and never otherwise."""
    return "abc" if trial.recipe is None and trial.start.order[0] == "b" else ""


def all_donors(trial: Trial) -> str:
    """Script: all models meet their goals in every trial."""
    return "abc"


def part_by_part() -> Script:
    """Make a script: a and b meet their goals, then a training goes wrong, then a and b meet, then all models do.

    No start meets without training, and a trial that is repeated gets the same answer.
    """
    rounds = iter(("ab", "wrong", "ab"))
    known: dict[str, str] = {}

    def script(trial: Trial) -> str:
        if trial.recipe is None:
            return ""
        key = key_of(trial)
        if key not in known:
            known[key] = next(rounds, "abc")
        return known[key]

    return script


def nobody(trial: Trial) -> str:
    """Script: no model ever meets its goal."""
    return ""


@pytest.mark.parametrize(
    ("strategy", "make"),
    [("together", lambda: second_donor), ("together", part_by_part), ("heaviest", part_by_part)],
    ids=["a donor", "part by part", "group by group"],
)
def test_a_crash_at_any_write_changes_nothing(
    strategy: str,
    make: Callable[[], Script],
    run: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crash_everywhere(run, make(), tmp_path, monkeypatch, strategy=strategy, settings=SearchSettings(epochs=1))


@pytest.mark.parametrize("make", [part_by_part, lambda: all_donors], ids=["part by part", "step by step"])
def test_a_crash_changes_nothing_where_a_merge_goes_back_to_what_was_confirmed(
    make: Callable[[], Script], run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first weights with which models share are confirmed, and none after those.
    first: dict[str, str] = {}

    def judgements(self: Confirmer, model: str, state: State) -> dict[str, Judgement]:
        digest = hashlib.sha256(state["head.bias"].numpy().tobytes()).hexdigest()
        holds = state is self._originals[model] or first.setdefault(model, digest) == digest
        return {model: judgement(1.0 if holds else 0.5)}

    monkeypatch.setattr(Confirmer, "judgements", judgements)
    monkeypatch.setattr("gemel.merging.output.confirm.reached", reached)
    settings = SearchSettings(epochs=1)
    whole = crash_everywhere(run, make(), tmp_path, monkeypatch, strategy="heaviest", settings=settings)
    notes = [note for query in whole["report"]["queries"].values() for note in query["notes"]]
    assert any("it has the weights of an earlier step, which are confirmed" in note for note in notes)
    assert whole["report"]["shared"]


def test_a_crash_of_a_merge_that_goes_on_changes_nothing(
    run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(all_donors, tmp_path / "first")
    monkeypatch.setattr("gemel.merging.output.kept_samples._LEAST", 2)
    for number in range(2):
        put_sample(tmp_path / "samples", number, "0" * 64, brightness=50 * number, answers={})

    def b_falls(trial: Trial) -> str:
        """Script: b misses its goals with the samples, and meets them after training."""
        return "ac" if trial.again or trial.recipe is None else "abc"

    going_on = {"earlier": tmp_path / "first", "samples": str(tmp_path / "samples")}
    whole = crash_everywhere(run, b_falls, tmp_path, monkeypatch, 2, **going_on)
    changed = set(whole["weights"]) ^ set(first["weights"])
    assert {name.partition("-")[0] for name in changed} == {"b"}
    assert whole["report"]["shared"] == first["report"]["shared"]


def crash_everywhere(
    run: Callable[..., dict[str, Any]],
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int = 1,
    **settings: Any,
) -> dict[str, Any]:
    """Check that a crash at a write changes nothing; return the content of a folder without a crash.

    Args:
        run: the fixture of that name.
        script: script of the trials.
        tmp_path: folder to merge in.
        monkeypatch: the fixture of that name.
        step: difference of the numbers of two writes at which it crashes.
        settings: options of the merge.
    """
    writes = 0
    sync, unlink = os.fsync, Path.unlink
    limit: int | None = None

    def count() -> None:
        nonlocal writes
        writes += 1
        if writes == limit:
            raise Crash

    def fsync(number: int) -> None:
        # When a folder's names are written, its files are as before the next write.
        if stat.S_ISREG(os.fstat(number).st_mode):
            count()
        sync(number)

    def remove(path: Path, missing_ok: bool = False) -> None:
        if not path.name.endswith(".part"):
            count()
        unlink(path, missing_ok)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "unlink", remove)
    whole = run(script, tmp_path / "whole", **settings)
    assert whole["report"]["finished"]
    total = writes
    assert total > 5
    for crash in range(1, total + 1, step):
        output = tmp_path / "parts"
        writes, limit = 0, crash
        with pytest.raises(Crash):
            run(script, output, **settings)
        usable(output)
        # Crash once more, at the second write after resuming.
        writes, limit = 0, 2
        with pytest.raises(Crash):
            run(script, output, resume=True, **settings)
        usable(output)
        limit = None
        assert run(script, output, resume=True, **settings) == whole
        shutil.rmtree(output)
    return whole


def test_a_search_that_is_over_is_found_again(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    whole = run(all_donors, tmp_path / "merged")

    def never(trial: Trial) -> str:
        raise AssertionError("everything is recalled")

    assert run(never, tmp_path / "merged", resume=True) == whole


@pytest.mark.parametrize("budget", [1e-9, 60.0])
def test_a_budget_that_loading_uses_up_loses_nothing(
    budget: float, run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    script = part_by_part()
    whole = run(script, tmp_path / "merged", settings=SearchSettings(start="first"))
    again = run(script, tmp_path / "merged", resume=True, budget=budget, settings=SearchSettings(start="first"))
    again["report"]["finished"] = True
    assert again == whole
    assert whole["report"]["shared"]


def test_no_trial_of_a_batch_begins_after_the_deadline_and_earlier_ones_are_kept(
    run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(nobody, tmp_path / "whole")
    now, tried = 0.0, []

    def slow(trial: Trial) -> str:
        nonlocal now
        now += 40.0
        tried.append(trial.group)
        return ""

    def counted(trial: Trial) -> str:
        tried.append(trial.group)
        return ""

    for name in ("merge", "search.search"):
        monkeypatch.setattr(f"gemel.merging.{name}.monotonic", lambda: now)
    cut = run(slow, tmp_path / "merged", budget=30.0)
    # Only the first of three donors was tried, since each trial asks its script twice and takes 80 s. It is kept.
    assert set(tried) == {"donor a"}
    assert [each["group"] for each in cut["report"]["trials"]] == ["donor a"]
    assert not cut["report"]["finished"]
    tried.clear()
    assert run(counted, tmp_path / "merged", resume=True) == whole
    assert tried[0] == "donor b"


def test_a_second_merge_into_the_same_folder_is_refused(
    run: Callable[..., dict[str, Any]], workload: Workload, tmp_path: Path
) -> None:
    whole = run(nobody, tmp_path / "whole")

    def meanwhile(trial: Trial) -> str:
        for resume in (False, True):
            with pytest.raises(InputError, match=f"another gemel merge is writing {tmp_path / 'merged'}"):
                merge_workload(workload, tmp_path / "merged", MergeOptions(device="cpu", resume=resume))
        return ""

    assert run(meanwhile, tmp_path / "merged") == whole


def test_a_search_with_another_base_is_not_resumed(
    run: Callable[..., dict[str, Any]], workload: Workload, tmp_path: Path
) -> None:
    run(nobody, tmp_path / "merged")
    other = workload.model_copy(update={"base": "a.safetensors"})
    with pytest.raises(InputError, match=r"begun with base None, now it is 'a\.safetensors'"):
        merge_workload(other, tmp_path / "merged", MergeOptions(device="cpu", resume=True))


def test_weights_that_were_lost_are_an_error(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run(all_donors, tmp_path / "merged")
    for path in (tmp_path / "merged" / "weights").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read as weights"):
        run(all_donors, tmp_path / "merged", resume=True)


def test_a_full_memory_says_what_to_do(
    run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(trial: Trial) -> str:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore of it")

    with pytest.raises(InputError, match=r"--device: not enough memory: CUDA out of memory\. Tried .* --resume"):
        run(full, tmp_path / "merged")
    usable(tmp_path / "merged")


def test_modules_beside_the_workload_come_with_it(
    run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: Sequence[dict[str, bytes]] = [{"nets.py": b"first", "pkg/__init__.py": b""}, {"nets.py": b"second"}]
    for resume, found in enumerate(files):
        monkeypatch.setattr(merge, "modules_beside", lambda _, found=found: found)
        run(nobody, tmp_path / "merged", resume=bool(resume))
        assert (tmp_path / "merged" / "nets.py").read_bytes() == found["nets.py"]
    assert (tmp_path / "merged" / "pkg" / "__init__.py").exists()
