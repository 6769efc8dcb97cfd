"""Tests of building models: weights in every format, and errors for weights and factories that do not work."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save
from tiny_models import tiny

from gemel.errors import ModelError
from gemel.workload.document.schema import Model, Query
from gemel.workload.models.factory import build_model, read_state
from gemel.workload.models.identity import identity

FACTORY = "tiny_models:TinyNet"


def model(**fields: Any) -> Model:
    """Return a TinyNet as a model of a workload."""
    return Model.model_validate({"factory": FACTORY, **fields})


def asked(weights: str, **changes: Any) -> Query:
    """Return a query for a TinyNet with a file of weights."""
    fields = {"name": "door", "feed": "yard", "task": "detection", **changes}
    return Query.model_validate({**fields, "model": {"factory": FACTORY, "weights": weights}})


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".safetensors"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    source = tiny(3)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save(source, path)
    else:
        torch.save({"state_dict": {f"module.{name}": value for name, value in source.state_dict().items()}}, path)
    built = build_model(model(weights=path.name), tmp_path, "door")
    assert not built.training
    for name, value in source.state_dict().items():
        assert torch.equal(built.state_dict()[name], value)


def test_state_that_does_not_fit_names_the_first_keys(tmp_path: Path) -> None:
    state = tiny(0).state_dict()
    state["neck.weight"] = torch.zeros(1)
    del state["stem.weight"]
    state["head.weight"] = torch.zeros(7, 32)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError) as caught:
        build_model(model(weights="w.pt"), tmp_path, "door")
    message = str(caught.value)
    for part in ("query door", "w.pt", "1 missing: stem.weight", "1 unexpected: neck.weight", "head.weight [7, 32]"):
        assert part in message


def test_missing_weight_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"query door: weights: .*/nowhere\.pt: no such file"):
        build_model(model(weights="nowhere.pt"), tmp_path, "door")


class _Hostile:
    """Object whose unpickling makes a file."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("pwned"),))


def test_pickles_that_run_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pt").write_bytes(pickle.dumps({"stem.weight": _Hostile()}))
    with pytest.raises(ModelError, match=r"w\.pt"):
        build_model(model(weights="w.pt"), tmp_path, "door")
    assert not (tmp_path / "pwned").exists()


def test_a_whole_module_as_weights_says_how_to_save_the_tensors(tmp_path: Path) -> None:
    torch.save(tiny(0), tmp_path / "w.pt")
    with pytest.raises(ModelError) as caught:
        read_state(tmp_path / "w.pt")
    assert str(caught.value) == (
        f"{tmp_path}/w.pt: holds more than tensors (tiny_models.TinyNet), and loading that would run code; save the"
        " tensors alone, where the file was made: torch.save(model.state_dict(), 'w.pt')"
    )


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_damaged_weights(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00" * 100)
    with pytest.raises(ModelError, match=rf"{name}: cannot be read as weights: ") as caught:
        read_state(tmp_path / name)
    assert str(caught.value).isprintable()


def test_unknown_format(tmp_path: Path) -> None:
    (tmp_path / "w.h5").touch()
    with pytest.raises(ModelError, match=r"w\.h5: weights must be one of \.safetensors"):
        read_state(tmp_path / "w.h5")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no_such_module:thing", "No module named 'no_such_module'"),
        ("tiny_models:Missing", "module tiny_models has no Missing"),
        ("tiny_models:__doc__", "is not callable"),
        ("builtins:dict", "returned dict, not an nn.Module"),
        ("broken_models:thing", "invalid syntax"),
    ],
)
def test_factories_that_do_not_work(tmp_path: Path, factory: str, message: str) -> None:
    (tmp_path / "broken_models.py").write_text("def thing(:")
    with pytest.raises(ModelError, match=message):
        build_model(Model.model_validate({"factory": factory}), tmp_path, "door")


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tiny_models:TinyNet\(\{'depth': 3\}\).*unexpected keyword argument 'depth'"):
        build_model(model(args={"depth": 3}), tmp_path, "door")


def test_no_weights_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="query door: no weights given"):
        build_model(model(), tmp_path, "door")


def test_identity_ignores_how_a_path_is_written(tmp_path: Path) -> None:
    one = identity(asked("a/../w.pt"), tmp_path)
    assert one == identity(asked(str(tmp_path / "w.pt"), labels=["cat"], threshold=0.5), tmp_path)
    assert one != identity(asked("v.pt"), tmp_path)
    assert one != identity(asked("w.pt", task="embedding"), tmp_path)
    assert one != identity(asked("w.pt", decode="yolov8"), tmp_path)
    assert one != identity(asked("w.pt", activation="none"), tmp_path)


PRETRAINED = """
from tiny_models import tiny

def from_pretrained(pretrained_model_name_or_path, half=False):
    module = tiny(1)
    module.origin = pretrained_model_name_or_path
    return module.half() if half else module

class Net:
    from_pretrained = from_pretrained

    def __init__(self, config):
        pass
"""


def test_a_pretrained_folder_lies_beside_the_workload(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "pretrained_nets.py").write_text(PRETRAINED)

    def build(name: str) -> Any:
        args = {"pretrained_model_name_or_path": name, "half": True}
        return build_model(model(factory="pretrained_nets:from_pretrained", args=args), tmp_path, "door")

    for name in ("net", "./net", str(tmp_path / "net")):
        built = build(name)
        assert built.origin == str((tmp_path / "net").resolve())
        # Frames are float32, whatever the weights were saved in.
        assert all(value.dtype == torch.float32 for value in built.parameters())
    assert build("me/net").origin == "me/net"
    assert not [each for each in recwarn if "no weights" in str(each.message)]
    with pytest.raises(ModelError, match=r"query door: pretrained_model_name_or_path: .*/nowhere: no such folder"):
        build("./nowhere")
    with pytest.raises(ModelError, match=r"'config'; pretrained_nets:Net\.from_pretrained opens a folder"):
        build_model(model(factory="pretrained_nets:Net"), tmp_path, "door")
