"""Inputs of gemel that others write, changed at random, and what must hold for each of them.

Every target has a strategy, which makes inputs, and a check. A check fails if gemel raises anything but a GemelError
with a message of one line, answers wrongly, or opens a file outside of the folders that it was given.
``tools/fuzz.py`` runs many inputs, and ``tests/fuzz`` runs some in every test run.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fuzz_requests import check_request, requests
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_bundle import make_small_bundle

from gemel.bundles.reader import MANIFEST, open_bundle
from gemel.errors import GemelError
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.ort import baked
from gemel.runtime.run import RunOptions, run_bundle
from gemel.workload import load_workload

__all__ = ["TARGETS", "Playground", "Target", "make_playground"]

_LONGEST_MESSAGE = 1000
"""Maximum number of characters of an error message that gemel may give."""
_ROOT = Path(__file__).resolve().parent.parent
_SYSTEM = (sys.prefix, sys.base_prefix, str(_ROOT), "/proc/", "/sys/", "/dev/", "/usr/", "/etc/ld.so", "/lib")
"""Beginnings of paths that any Python program reads, which a check therefore allows."""


@dataclass(frozen=True)
class Playground:
    """Folder with an undamaged bundle and its device cache, in which changed copies are tried."""

    folder: Path
    """Folder below which gemel may open files."""
    bundle: Path
    outside: Path
    """Folder outside of ``folder``, with a file and with a pipe that blocks whoever opens it."""
    answers: Mapping[str, NDArray[Any]]
    """Model -> its output on :data:`_IMAGE`."""

    @property
    def video(self) -> Path:
        """Path of a video that every feed may read."""
        return self.bundle.parent / "street.mp4"

    def places(self) -> list[str]:
        """Return paths that lead out of a bundle's folder."""
        secret, pipe = (self.outside / name for name in ("secret", "pipe"))
        return ["..", "../../outside/secret", "../../outside/pipe", str(secret), str(pipe), "/etc/passwd", "/dev/zero"]


_IMAGE = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)


def make_playground(folder: Path) -> Playground:
    """Compile and bake a small bundle below a folder, and return the playground with the bundle's answers."""
    inside, outside = folder / "inside", folder / "outside"
    outside.mkdir(parents=True)
    (outside / "secret").write_text("secret")
    os.mkfifo(outside / "pipe")
    bundle = make_small_bundle(inside, seconds=1)
    return Playground(inside, bundle, outside, _answers(bundle))


def _answers(bundle: Path) -> dict[str, NDArray[Any]]:
    """Return model -> output on :data:`_IMAGE`."""
    opened = open_bundle(bundle)
    found: dict[str, NDArray[Any]] = {}
    with OrtCpu(opened, threads=1) as backend:
        for model in opened.manifest.models:
            backend.activate(model)
            (found[model],) = backend.run(model, "main", {"image": _IMAGE}).values()
            backend.release(model)
    return found


@dataclass(frozen=True)
class Target:
    """Kind of input that is fuzzed."""

    inputs: Callable[[Playground], st.SearchStrategy[Any]]
    """Function that returns the strategy for inputs."""
    check: Callable[[Playground, Any], None]
    """Function that gives one input to gemel, and raises an error if gemel does what it must not do."""
    share: int
    """Share of all inputs that this target gets, relative to the other targets."""


# Files that are opened while a check runs.


@dataclass
class _Watch:
    allowed: tuple[str, ...] = ()
    """Beginnings of the paths that may be opened; nothing is watched if empty."""
    strange: list[str] = field(default_factory=list)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note the path of an opened file that is not allowed. Called by Python as an audit hook."""
        if self.allowed and event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith(self.allowed):
                self.strange.append(path)


_watch = _Watch()
_hooked: list[bool] = []


@contextlib.contextmanager
def _watched(ground: Playground, *, anywhere: bool = False) -> Iterator[None]:
    """Check during the ``with`` block that only allowed errors are raised and only allowed files are opened.

    Args:
        ground: folders and files of the inputs.
        anywhere: whether the input is the user's own and may name files anywhere.
    """
    if not _hooked:
        sys.addaudithook(_watch.hear)
        _hooked.append(True)
    _watch.allowed, _watch.strange = ("/",) if anywhere else (str(ground.folder.resolve()), *_SYSTEM), []
    logger = logging.getLogger("gemel")
    before, logger.disabled = logger.disabled, True
    logging.disable(logging.CRITICAL)
    try:
        yield
    except GemelError as error:
        text = str(error)
        assert "\n" not in text and text.strip(), f"a message of more than one line: {text!r}"
        assert len(text) <= _LONGEST_MESSAGE, f"a message of {len(text)} characters: {text[:300]!r}"
        assert "Traceback" not in text
    finally:
        logging.disable(logging.NOTSET)
        logger.disabled = before
        _watch.allowed = ()
    assert not _watch.strange, f"files outside were opened: {_watch.strange}"


# Changes of documents.

_NUMBERS = [0, 1, -1, 2**31, 2**63, 2**64, 10**30, -(2**63), 0.5, 1e308, 1e-308, float("nan"), float("inf")]
_WORDS = ["", "a\0b", "x" * 5000, "\ud800", "\u2028", "NaN", "-1", "1e400", "99999999999%", "min", "all", "0%"]
_KINDS = ["${HOME}", "ort-cuda", "tensorrt", "constant", "int8", "fp16", "gray", "letterbox", "float16", "int64"]
_OTHERS: list[Any] = [
    None,
    True,
    [],
    {},
    [[]],
    [1] * 40,
    {"a": 1},
    [0, 0],
    [-1, 5],
    [60000, 60000],
    [1, 1],
    [1, 2, 3, 4],
]


def _values(ground: Playground) -> st.SearchStrategy[Any]:
    return st.sampled_from([*_NUMBERS, *_WORDS, *_KINDS, *_OTHERS, *ground.places()])


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value in a document."""
    if path:
        yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield from _paths(item, (*path, key))


def _kind(path: Sequence[str | int]) -> tuple[str, ...]:
    """Return a path with its numbers and hashes replaced, so that lists of many equal values count once."""
    return tuple("#" if isinstance(part, int) or len(part) == 32 else part for part in path)


@st.composite
def _changed(draw: st.DrawFn, document: Any, values: st.SearchStrategy[Any]) -> Any:
    """Draw a document with one to three values that were deleted, replaced, copied from a sibling, or shifted."""
    groups: dict[tuple[str, ...], list[tuple[str | int, ...]]] = {}
    for path in _paths(document):
        groups.setdefault(_kind(path), []).append(path)
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(groups[draw(st.sampled_from(sorted(groups)))]))
        parent: Any = document
        try:
            for part in path[:-1]:
                parent = parent[part]
            now = parent[path[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change removed the value
        if not isinstance(parent, dict | list):
            continue
        place: Any = path[-1]
        what = draw(st.sampled_from(["delete", "shift", "copy", "replace", "replace", "rename"]))
        if what == "delete":
            del parent[place]
        elif what == "shift" and isinstance(now, int | float) and not isinstance(now, bool):
            parent[place] = draw(st.sampled_from([now + 1, now - 1, -now, now * 2, now * 1000003]))
        elif what == "copy" and isinstance(parent, dict):
            parent[place] = copy.deepcopy(parent[draw(st.sampled_from(sorted(parent)))])
        elif what == "rename" and isinstance(parent, dict):
            parent[str(draw(values))] = parent.pop(place)
        else:
            parent[place] = draw(values)
    return document


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()


_TOKENS = ["[", "]", "{", "}", ":", " ", "\n", "- ", "&a ", "*a", "!!", '"', "'", "|", ">", "%", "@", "`", "~", "null"]
_TOKENS += ["true", "-1", "1e999", ".inf", "${X}", "../..", "/etc/passwd", "\x00", "\u2028", "?", "<<: ", "9" * 5000]


@st.composite
def _garbled(draw: st.DrawFn, text: str) -> str:
    """Draw a text in which single characters were deleted, or replaced by tokens of YAML and JSON."""
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(text) - 1)))
        token = draw(st.sampled_from(["", *_TOKENS]) | st.text(max_size=3))
        text = text[:place] + token + text[place + draw(st.integers(0, 2)) :]
    return text


# The targets.


def _manifests(ground: Playground) -> st.SearchStrategy[bytes]:
    text = (ground.bundle / MANIFEST).read_text()
    changed = _changed(json.loads(text), _values(ground)).map(_json)
    return changed | changed | changed | _garbled(text).map(lambda found: found.encode("utf-8", "surrogatepass"))


def _fresh(ground: Playground, name: str) -> Path:
    """Return an empty folder beside the bundle."""
    folder = ground.folder / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _check_manifest(ground: Playground, data: bytes) -> None:
    """Open and run a bundle whose manifest was changed. Feeds and outputs are the user's own."""
    folder = _fresh(ground, "changed")
    for file in ground.bundle.iterdir():
        if file.is_file() and file.name != MANIFEST:
            os.link(file, folder / file.name)
    (folder / MANIFEST).write_bytes(data)
    with _watched(ground):
        opened = open_bundle(folder)
        sources = dict.fromkeys(opened.manifest.feeds, str(ground.video))
        run_bundle(opened, RunOptions(offline=True, frames=1, threads=1, sources=sources, outputs=()))


def _workloads(ground: Playground) -> st.SearchStrategy[str]:
    text = (ground.bundle.parent / "workload.yaml").read_text()
    changed = _changed(yaml.safe_load(text), _values(ground))
    return changed.map(lambda document: yaml.safe_dump(document, allow_unicode=True)) | _garbled(text)


def _check_workload(ground: Playground, text: str) -> None:
    path = ground.bundle.parent / "changed.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with _watched(ground, anywhere=True):
        load_workload(path)


@dataclass(frozen=True)
class _CacheChange:
    """Change of one file in a device cache."""

    file: str
    what: str
    """Kind of change: ``record``, ``flip``, ``cut``, ``grow``, ``pipe``, ``link``, ``folder`` or ``gone``."""
    record: Any = None
    """Changed content of cache.json, for changes of the kind ``record``."""
    place: float = 0.0
    """Position of the change in the file, as a fraction of the file's length."""
    signed: bool = False
    """Whether the hashes in the record are made to fit the changed file, as an attacker would do."""


@st.composite
def _caches(draw: st.DrawFn, ground: Playground) -> _CacheChange:
    (folder,) = (ground.bundle / "device-cache").iterdir()
    if draw(st.booleans()):
        document = json.loads((folder / baked.CACHE_RECORD).read_bytes())
        record = draw(_changed(document, _values(ground)))
        return _CacheChange(baked.CACHE_RECORD, "record", record, signed=draw(st.booleans()))
    file = draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
    what = draw(st.sampled_from(["flip", "flip", "flip", "cut", "grow", "pipe", "link", "folder", "gone"]))
    place = draw(st.floats(0, 1, exclude_max=True))
    return _CacheChange(file, what, place=place, signed=what in ("flip", "cut", "grow") and draw(st.booleans()))


def _check_cache(ground: Playground, change: _CacheChange) -> None:
    """Run a bundle whose device cache was changed. The answers must be right, unless the change was signed."""
    folder = ground.folder / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ground.bundle, folder)
    (cache,) = (folder / "device-cache").iterdir()
    _apply(change, cache, ground)
    found: dict[str, NDArray[Any]] | None = None
    with _watched(ground):
        found = _answers(folder)
    if not change.signed:
        assert found is not None, "a damaged cache was not made again"
        for model, answer in ground.answers.items():
            np.testing.assert_allclose(found[model], answer, rtol=1e-5)


def _apply(change: _CacheChange, cache: Path, ground: Playground) -> None:
    path, record = cache / change.file, cache / baked.CACHE_RECORD
    data = bytearray(path.read_bytes())
    if change.what == "flip" and data:
        data[int(change.place * len(data))] ^= 1 << int(change.place * 4096) % 8
        path.write_bytes(data)
    elif change.what == "cut":
        path.write_bytes(data[: int(change.place * len(data))])
    elif change.what == "grow":
        path.write_bytes(data + b"\0" * 100)
    elif change.what == "record":
        path.write_bytes(_json(change.record))
    else:
        path.unlink()
        if change.what == "pipe":
            os.mkfifo(path)
        elif change.what == "link":
            path.symlink_to(ground.outside / "secret")
        elif change.what == "folder":
            path.mkdir()
    if change.signed:
        with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError, RecursionError):
            document = json.loads(record.read_bytes())
            if change.file in document["files"]:
                content = path.read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                document["files"][change.file] = {"bytes": len(content), "sha256": digest}
            document["digest"] = baked._digest(document)
            record.write_bytes(_json(document))


TARGETS: dict[str, Target] = {
    "manifest": Target(_manifests, _check_manifest, 3),
    "workload": Target(_workloads, _check_workload, 5),
    "cache": Target(lambda ground: _caches(ground), _check_cache, 2),
    "request": Target(lambda ground: requests(), check_request, 3),
}
"""Name of the kind of input that is fuzzed -> its target."""
