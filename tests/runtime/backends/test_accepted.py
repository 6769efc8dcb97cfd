"""Record of the models that may run in bf16."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from helpers import swap_for_a_link, swap_for_a_pipe

from gemel.bundles.reader import Bundle, open_bundle
from gemel.errors import BackendError
from gemel.runtime import device_cache as cache
from gemel.runtime.ov import accepted as module
from gemel.runtime.ov.accepted import Acceptance, QueryAgreement, read_acceptance, write_acceptance


@pytest.fixture
def made(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """Return a bundle; the user's cache folder is below ``tmp_path``, and OpenVINO seems to be installed."""
    monkeypatch.setattr(cache, "user_cache_path", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(metadata, "version", lambda name: "2026.4")
    return open_bundle(bundle)


def acceptance(bundle: Bundle, **agreements: float | None) -> Acceptance:
    queries = {name: QueryAgreement(agreement=value, frames=100) for name, value in agreements.items()}
    return Acceptance(bundle=bundle.id, queries=queries)


@pytest.mark.parametrize(
    ("agreements", "models"),
    [
        # Queries a and c share model a; all targets are 0.95.
        ({"a": 0.95, "b": 0.99, "c": 1.0}, {"a", "b"}),
        ({"a": 0.9499, "b": 0.99, "c": 1.0}, {"b"}),
        ({"a": 1.0, "b": 0.5, "c": 0.9}, set()),
        ({"a": 1.0, "b": None, "c": 1.0}, {"a"}),
        ({"b": 1.0, "c": 1.0}, {"b"}),
    ],
)
def test_every_query_of_a_model_must_keep_its_target(
    made: Bundle, agreements: dict[str, float | None], models: set[str]
) -> None:
    found = acceptance(made, **agreements).models(made)
    assert found.keys() == models
    assert all(each.agreement == agreements[name] for queries in found.values() for name, each in queries.items())
    assert "a" not in found or found["a"].keys() == {"a", "c"}


def test_written_and_read(made: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_acceptance(made) is None
    found = acceptance(made, a=0.99, b=None)
    path = write_acceptance(made, found)
    assert path.parent.parent == made.path / "device-cache"
    assert read_acceptance(made) == found
    # Another version of OpenVINO may compute otherwise, and so may another CPU.
    with monkeypatch.context() as patched:
        patched.setattr(metadata, "version", lambda name: "2027.1")
        assert read_acceptance(made) is None
    monkeypatch.setattr(module, "cpu_flags", lambda: "amx")
    assert read_acceptance(made) is None


def test_a_bundle_that_cannot_be_written(made: Bundle, tmp_path: Path) -> None:
    (made.path / "device-cache").write_text("in the way")
    found = acceptance(made, a=0.99)
    assert write_acceptance(made, found).is_relative_to(tmp_path / "cache")
    assert read_acceptance(made) == found
    other = Bundle(made.path, made.manifest, "other")
    (tmp_path / "cache" / "gemel").rename(tmp_path / "moved")
    (tmp_path / "cache" / "gemel").write_text("in the way")
    with pytest.raises(BackendError, match=r"no device cache could be written: .*device-cache.*; .*gemel"):
        write_acceptance(other, found)


HARMS: list[Callable[[Path], object]] = [
    Path.unlink,
    swap_for_a_pipe,
    swap_for_a_link,
    lambda file: file.write_text(file.read_text().replace("0.99", "1.5")),
    lambda file: file.write_bytes(file.read_bytes()[:-20]),
    lambda file: file.write_bytes(b"\xff\x00"),
    lambda file: file.write_text("[" * 100_000),
    lambda file: file.write_text(" " * (1 << 20) + file.read_text()),
    lambda file: file.write_text(file.read_text().replace('"bundle": "', '"bundle": "x')),
]


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_record_accepts_nothing(made: Bundle, harm: Callable[[Path], object]) -> None:
    harm(write_acceptance(made, acceptance(made, a=0.99)))
    assert read_acceptance(made) is None


def test_a_link_in_place_of_the_folder_is_not_followed(made: Bundle, tmp_path: Path) -> None:
    folder = write_acceptance(made, acceptance(made, a=0.99)).parent
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert read_acceptance(made) is None
    assert write_acceptance(made, acceptance(made, a=0.99)).is_relative_to(tmp_path / "cache")


def test_without_openvino(made: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert read_acceptance(made) is None
