"""Deltas are fetched in ranges, over lines that break, and applied one after another."""

from __future__ import annotations

import fcntl
import http.server
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from delta_bundles import content_of, delta_between, noise, opened, retrained, two_bundles
from fsspec.implementations.local import LocalFileSystem

from gemel.bundles import delta_store, pull_deltas
from gemel.bundles.delta_store import DeltaStore
from gemel.bundles.reader import open_bundle
from gemel.bundles.write_delta import write_delta
from gemel.errors import BackendError, BundleError, InputError, MissingExtraError


class Flaky(LocalFileSystem):  # type: ignore[misc]
    """Local files whose reads fail or lie as a test wants."""

    protocol = "flaky"
    script: list[Any] = []  # noqa: RUF012
    """What happens at each read: None, an exception, or a function of the bytes. It ends with good reads."""
    asked: list[int] = []  # noqa: RUF012
    """Number of bytes of each read that was asked for."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(path).removeprefix("flaky://x")

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if self.script and isinstance(self.script[0], PermissionError):
            raise self.script.pop(0)
        file = super().open(path, mode)
        real = file.read

        def read(size: int) -> bytes:
            self.asked.append(size)
            what = self.script.pop(0) if self.script else None
            if isinstance(what, BaseException):
                raise what
            data: bytes = real(size)
            return data if what is None else what(data)

        file.read = read
        return file


fsspec.register_implementation("flaky", Flaky, clobber=True)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    """Return three bundles, each the successor of the one before, and the folder of the deltas between them."""
    folder = tmp_path_factory.mktemp("steps")
    first, second = two_bundles(folder)
    third = retrained(second, folder / "third", noise(0.1))
    (folder / "deltas").mkdir()
    for old, new in ((first, second), (second, third)):
        write_delta(*opened(old, new), folder / "deltas")
    return [first, second, third], folder / "deltas"


@pytest.fixture
def box(steps: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the first bundle; ranges are short."""
    monkeypatch.setattr(pull_deltas, "_RANGE", 1000)
    Flaky.script, Flaky.asked = [], []
    return Path(shutil.copytree(steps[0][0], tmp_path / "box" / "bundle"))


def flaky(folder: Path, *script: Any) -> DeltaStore:
    Flaky.script = [*script]
    return DeltaStore(f"flaky://x{folder}", wait=lambda seconds: None)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_after_another(steps: tuple[list[Path], Path], box: Path) -> None:
    bundles, deltas = steps
    seen: list[str] = []
    progress: list[tuple[int, int]] = []
    count = pull_deltas.pull_deltas(
        DeltaStore(str(deltas)), box, None, lambda done: seen.append(done.bundle.id), lambda *at: progress.append(at)
    )
    assert (count, seen) == (2, [open_bundle(each).id for each in bundles[1:]])
    assert content_of(box) == content_of(bundles[2])
    assert names(box.parent) == ["bundle"]
    assert all(here <= whole for here, whole in progress)
    assert progress[-1][0] == progress[-1][1]
    assert pull_deltas.pull_deltas(DeltaStore(str(deltas)), box) == 0
    assert names(box.parent) == ["bundle"]


def test_a_single_delta(steps: tuple[list[Path], Path], box: Path, tmp_path: Path) -> None:
    bundles, _ = steps
    step = delta_between(bundles[0], bundles[1], tmp_path / "step")
    assert pull_deltas.pull_deltas(DeltaStore(str(step)), box) == 1
    assert content_of(box) == content_of(bundles[1])
    with pytest.raises(BundleError, match="is already the bundle"):
        pull_deltas.pull_deltas(DeltaStore(str(step)), box)


def test_a_bad_line(steps: tuple[list[Path], Path], box: Path) -> None:
    """Reads that fail, end early and lie cost a few more reads."""
    script = [OSError("reset"), None, None, lambda data: data[:10], ValueError("odd"), TimeoutError(), None]
    assert pull_deltas.pull_deltas(flaky(steps[1], *script, lambda data: bytes(len(data))), box) == 2
    assert content_of(box) == content_of(steps[0][2])
    assert max(Flaky.asked[2:]) <= max(1000, Flaky.asked[1])


def test_a_line_that_breaks_anywhere(steps: tuple[list[Path], Path], box: Path) -> None:
    """Whenever a pull gives up, the bundle is whole, and the next one asks only for what is missing."""
    bundles, deltas = steps
    store = flaky(deltas)
    assert pull_deltas.pull_deltas(store, Path(shutil.copytree(box, box.parent.parent / "other"))) == 2
    reads = len(Flaky.asked)
    whole = {str(content_of(each)): number for number, each in enumerate(bundles)}
    gave_up = 0
    for _ in range(4 * reads):
        # Two reads for the header, and one range of the data.
        try:
            pull_deltas.pull_deltas(flaky(deltas, None, None, None, *[OSError("gone")] * 5), box)
            break
        except BackendError as error:
            gave_up += 1
            assert re.search(r"no answer: gone(; \d+ of \d+ bytes are here, the next gemel pull goes on)?$", str(error))
        Flaky.script = []
        assert str(content_of(box)) in whole
        assert names(box.parent) == [".bundle.pull", "bundle"]
    assert content_of(box) == content_of(bundles[2])
    assert names(box.parent) == ["bundle"]
    # At each call, the header and one range.
    assert reads / 2 < gave_up < reads


def test_killed_while_fetching(steps: tuple[list[Path], Path], box: Path) -> None:
    """A file that is left of an earlier call is used as far as it is right."""
    bundles, deltas = steps
    (name,) = [each for each in names(deltas) if each.startswith(open_bundle(box).id[:32])]
    data = (deltas / name).read_bytes()
    part = box.with_name(".bundle.pull")
    for left in (data[:50], data[:-100], data[:-1000] + bytes(900), data, b"another delta" * 1000, bytes(10)):
        shutil.rmtree(box)
        shutil.copytree(bundles[0], box)
        part.write_bytes(left)
        assert pull_deltas.pull_deltas(flaky(deltas), box) == 2
        assert content_of(box) == content_of(bundles[2])


def test_what_is_here_is_not_fetched_again(steps: tuple[list[Path], Path], box: Path) -> None:
    (name,) = [each for each in names(steps[1]) if each.startswith(open_bundle(box).id[:32])]
    data = (steps[1] / name).read_bytes()
    box.with_name(".bundle.pull").write_bytes(data[:-300])
    with pytest.raises(BackendError, match=f"{len(data)} of {len(data)} bytes|no answer"):
        pull_deltas.pull_deltas(flaky(steps[1], None, None, None, *[OSError("gone")] * 9), box)
    assert Flaky.asked[2] == 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), r"\.delta: is damaged: other sha256 than its header says"),
        (lambda data: data[:-1], r"\.delta: is cut off: has \d+ bytes"),
        (lambda data: data[:60], r"\.delta: is cut off: has 60 bytes"),
        (lambda data: b"<html>not found</html>", r"\.delta: is not a delta"),
        (lambda data: b"", r"\.delta: is not a delta"),
    ],
)
def test_a_damaged_delta(change: Any, message: str, steps: tuple[list[Path], Path], box: Path, tmp_path: Path) -> None:
    (name,) = [each for each in names(steps[1]) if each.startswith(open_bundle(box).id[:32])]
    (tmp_path / "deltas").mkdir()
    (tmp_path / "deltas" / name).write_bytes(change((steps[1] / name).read_bytes()))
    before = content_of(box)
    with pytest.raises(BundleError, match=message):
        pull_deltas.pull_deltas(DeltaStore(str(tmp_path / "deltas")), box)
    assert content_of(box) == before
    # A good one in its place is taken.
    shutil.copy(steps[1] / name, tmp_path / "deltas")
    assert pull_deltas.pull_deltas(DeltaStore(str(tmp_path / "deltas")), box) == 1


def test_a_delta_under_a_wrong_name(steps: tuple[list[Path], Path], box: Path, tmp_path: Path) -> None:
    bundles, _ = steps
    wrong = tmp_path / f"{open_bundle(box).id[:32]}.delta"
    delta_between(bundles[1], bundles[2], wrong)
    with pytest.raises(BundleError, match="starts from bundle"):
        pull_deltas.pull_deltas(DeltaStore(str(wrong)), box)


def test_deltas_in_a_circle(steps: tuple[list[Path], Path], box: Path, tmp_path: Path) -> None:
    bundles, _ = steps
    (tmp_path / "deltas").mkdir()
    for old, new in ((0, 1), (1, 0)):
        write_delta(*opened(bundles[old], bundles[new]), tmp_path / "deltas")
    with pytest.raises(BundleError, match="its deltas lead back to bundle"):
        pull_deltas.pull_deltas(DeltaStore(str(tmp_path / "deltas")), box)
    assert content_of(box) == content_of(bundles[0])


def test_a_store_that_is_away(steps: tuple[list[Path], Path], box: Path, tmp_path: Path) -> None:
    waited: list[float] = []
    Flaky.script = [OSError("refused")] * 5
    with pytest.raises(BackendError, match=r"^flaky://\S*\.delta: no answer: refused$"):
        pull_deltas.pull_deltas(DeltaStore(f"flaky://x{steps[1]}", wait=waited.append), box)
    assert waited == [1, 2, 4, 8]
    with pytest.raises(BackendError, match="no access: not yours"):
        pull_deltas.pull_deltas(flaky(steps[1], PermissionError("not yours")), box)
    with pytest.raises(InputError, match="is no delta and no folder of deltas"):
        DeltaStore(str(tmp_path / "none"))
    with pytest.raises(BackendError, match=r"none\.delta: is not there"):
        pull_deltas.pull_deltas(DeltaStore(str(tmp_path / "none.delta")), box)
    with pytest.raises(InputError, match=r"nothing://host: cannot be read: Protocol not known"):
        DeltaStore("nothing://host/secret")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"gemel pull needs packages .*\[pull\]"):
        DeltaStore(str(tmp_path))


def test_one_at_a_time(steps: tuple[list[Path], Path], box: Path) -> None:
    path = box.with_name(".bundle.pull")
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BundleError, match="another gemel pull is going on"):
            pull_deltas.pull_deltas(DeltaStore(str(steps[1])), box)


def test_a_link_in_the_place_of_the_part(steps: tuple[list[Path], Path], box: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    box.with_name(".bundle.pull").symlink_to(tmp_path / "mine")
    with pytest.raises(BundleError, match=r"\.bundle\.pull: cannot be written"):
        pull_deltas.pull_deltas(DeltaStore(str(steps[1])), box)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_full_disk(steps: tuple[list[Path], Path], box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Any, data: bytes) -> None:
        raise OSError(28, os.strerror(28))

    before = content_of(box)
    with monkeypatch.context() as patch:
        patch.setattr(pull_deltas, "_write", full)
        with pytest.raises(BundleError, match=r"\.bundle\.pull: cannot be written: No space left on device"):
            pull_deltas.pull_deltas(DeltaStore(str(steps[1])), box)
    assert content_of(box) == before
    assert pull_deltas.pull_deltas(DeltaStore(str(steps[1])), box) == 2


class Server(http.server.BaseHTTPRequestHandler):
    """HTTP server of a folder that needs a key in the query, with or without ranges, which fails now and then."""

    folder = Path()
    ranges = True
    failures = 0
    requests: list[tuple[str, str]] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        Server.requests.append((self.command, self.headers.get("Range", "")))
        file = self.folder / path.removeprefix("/deltas/")
        if query != "key=1" or not file.is_file():
            self.send_error(404)
            return
        if Server.failures:
            Server.failures -= 1
            self.send_error(503)
            return
        data = file.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if found and self.ranges:
            begin, end = int(found[1]), int(found[2]) + 1
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{min(end, len(data)) - 1}/{len(data)}")
            data = data[begin:end]
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes" if self.ranges else "none")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(steps: tuple[list[Path], Path]) -> Iterator[str]:
    """Return the URL of a folder of deltas."""
    pytest.importorskip("aiohttp")
    Server.folder, Server.ranges, Server.failures, Server.requests = steps[1], True, 0, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}/deltas?key=1"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("ranges", [True, False])
def test_an_http_server(ranges: bool, server: str, steps: tuple[list[Path], Path], box: Path) -> None:
    Server.ranges, Server.failures = ranges, 2
    assert pull_deltas.pull_deltas(DeltaStore(server, wait=lambda seconds: None), box) == 2
    assert content_of(box) == content_of(steps[0][2])
    if ranges:
        assert all(asked for method, asked in Server.requests[4:] if method == "GET" and asked)


def test_an_http_server_that_refuses_connections(server: str, box: Path) -> None:
    address = re.sub(r":\d+/", ":9/", server)
    with pytest.raises(BackendError, match=r"^http://127\.0\.0\.1:9/\w{32}\.delta: no answer: Cannot connect"):
        pull_deltas.pull_deltas(DeltaStore(address, wait=lambda seconds: None), box)


def test_an_http_server_that_is_away(server: str, box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Server.failures = 99
    monkeypatch.setattr(delta_store, "_PAUSE_S", 0.0)
    with pytest.raises(BackendError, match=r"^http://127\.0\.0\.1:\d+/\w{32}\.delta: no answer: 503"):
        pull_deltas.pull_deltas(DeltaStore(server), box)
