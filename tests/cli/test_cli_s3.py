"""An S3 server: deltas pulled from it, samples moved to it and judged there, and messages when it cannot be used."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from time import monotonic, sleep
from typing import Any

import pytest
from delta_bundles import content_of, delta_between, two_bundles
from drift_samples import Scripted, put_sample

from gemel.bundles import delta_store, pull_deltas
from gemel.bundles.delta_store import DeltaStore
from gemel.bundles.reader import open_bundle
from gemel.check.drift.follow import rounds
from gemel.check.drift.judge import DriftJudge
from gemel.errors import BackendError
from gemel.frames.frame import Image
from gemel.runtime.sinks.sample_files import open_samples
from gemel.runtime.sinks.sample_folder import SampleFolder
from gemel.runtime.sinks.upload import Uploader

Gemel = Callable[..., tuple[int, str, str]]

KEY, SECRET = "AKIAGEMELTESTS", "not-to-be-printed"


class Server:
    """S3 server of moto in this process, which can go away and come back with what it holds."""

    def __init__(self) -> None:
        self._server: Any = None
        self.port = 0
        self.start()

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer("127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server._server.server_close()
            self._server = None


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    for library in ("moto", "flask", "flask_cors", "s3fs"):
        pytest.importorskip(library, reason=f"needs {library}: moto's S3 server, and the extra pull")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    made = Server()
    yield made
    made.stop()


@pytest.fixture
def bucket(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return the file system of a server with an empty bucket ``fleet``; what is read is never taken from a cache."""
    import fsspec.config
    import s3fs

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    # What FSSPEC_S3_ENDPOINT_URL sets when fsspec is imported.
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://127.0.0.1:{server.port}"})
    monkeypatch.setattr(delta_store, "_PAUSE_S", 0)
    # Otherwise a store that is away takes seconds.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem(use_listings_cache=False)
    if files.exists("fleet"):
        files.rm("fleet", recursive=True)
    files.mkdir("fleet")
    yield files
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, bytes]:
    """Return two bundles, and the delta between them."""
    folder = tmp_path_factory.mktemp("step")
    old, new = two_bundles(folder)
    return old, new, delta_between(old, new, folder / "step.delta").read_bytes()


@pytest.fixture
def box(step: tuple[Path, Path, bytes], tmp_path: Path, bucket: Any) -> Path:
    """Return a copy of the older bundle, whose delta is in the bucket."""
    bucket.pipe(f"fleet/deltas/{open_bundle(step[0]).id[:32]}.delta", step[2])
    return Path(shutil.copytree(step[0], tmp_path / "bundle"))


def refused(found: tuple[int, str, str], code: int, message: str) -> None:
    """Check that a command ended with a status and one line, without a key in it."""
    assert found[0] == code and message in found[2] and found[2].count("\n") == 1, found
    assert KEY not in found[2] and SECRET not in found[2]


def wait_until(condition: Callable[[], bool]) -> None:
    ends = monotonic() + 60
    while not condition():
        assert monotonic() < ends
        sleep(0.02)


def test_deltas(step: tuple[Path, Path, bytes], box: Path, gemel: Gemel) -> None:
    assert gemel("pull", "s3://fleet/deltas", box)[::2] == (0, "")
    assert content_of(box) == content_of(step[1])
    assert gemel("pull", "s3://fleet/deltas", box)[1] == f"{box}: is up to date, s3://fleet has no delta for it\n"
    refused(gemel("pull", "s3://flete/deltas", box), 2, ".delta: there is no such bucket")


def test_a_key_that_the_store_does_not_know(
    box: Path, gemel: Gemel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto import settings

    with monkeypatch.context() as patch:
        # From now on, keys count.
        patch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
        refused(gemel("pull", "s3://fleet/deltas", box), 1, ".delta: no access: Forbidden")
        refused(
            gemel("drift", box, "s3://fleet/box7", "--originals", box),
            1,
            "s3://fleet: cannot be listed: The AWS Access Key Id you provided does not exist in our records.",
        )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    refused(gemel("pull", "s3://fleet/deltas", box), 1, ".delta: no access: Unable to locate credentials")


def test_a_store_that_dies_while_a_delta_is_fetched(
    step: tuple[Path, Path, bytes], box: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_deltas, "_RANGE", 1000)
    before, got = content_of(box), list[int]()

    def die(here: int, whole: int) -> None:
        got.append(here)
        server.stop()

    with pytest.raises(BackendError) as caught:
        pull_deltas.pull_deltas(DeltaStore("s3://fleet/deltas"), box, progress=die)
    lost = f'no answer: Could not connect to the endpoint URL: "http://127.0.0.1:{server.port}"'
    assert f"{lost}; {got[0]} of {len(step[2])} bytes are here, the next gemel pull goes on" in str(caught.value)
    assert SECRET not in str(caught.value) and content_of(box) == before and len(got) == 1
    server.start()
    pull_deltas.pull_deltas(DeltaStore("s3://fleet/deltas"), box, progress=lambda here, whole: got.append(here))
    # No range is asked for twice.
    assert got == sorted(set(got)) and content_of(box) == content_of(step[1])


class TestSamples:
    def test_there_and_judged(
        self, bundle: Path, bucket: Any, server: Server, tmp_path: Path, gemel: Gemel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Samples wait while the store is away, are moved when it is back, and are judged there."""
        monkeypatch.setattr("gemel.runtime.sinks.upload._FIRST_PAUSE_S", 0.05)
        for number in range(4):
            put_sample(tmp_path, number, open_bundle(bundle).id)
        server.stop()
        uploader = Uploader(SampleFolder(tmp_path, None, None), "s3://fleet/box7")
        wait_until(lambda: uploader.counts().error is not None)
        found = uploader.counts()
        assert (found.state, found.waiting, found.written) == ("behind", 4, 0)
        assert found.error == (
            f'EndpointConnectionError: Could not connect to the endpoint URL: "http://127.0.0.1:{server.port}"'
        )
        server.start()
        wait_until(lambda: uploader.counts().written == 4)
        uploader.close()
        assert not list(tmp_path.glob("*.j*")) and len(bucket.ls("fleet/box7")) == 8
        code, out, err = gemel("drift", bundle, "s3://fleet/box7", "--originals", bundle)
        assert (code, err) == (0, "") and "left out" not in out
        assert any(row.split()[:3] == ["a", "4", "4"] for row in out.splitlines())
        refused(
            gemel("drift", bundle, "s3://flete/box7", "--originals", bundle), 2, "s3://flete: there is no such folder"
        )

    def test_a_bucket_is_never_made(self, bundle: Path, bucket: Any, tmp_path: Path) -> None:
        put_sample(tmp_path, 0, open_bundle(bundle).id)
        uploader = Uploader(SampleFolder(tmp_path, None, None), "s3://flete/box7")
        wait_until(lambda: uploader.counts().error is not None)
        uploader.close()
        assert uploader.counts().error == "FileNotFoundError: The specified bucket does not exist"
        assert bucket.ls("") == ["fleet"] and len(list(tmp_path.glob("*.j*"))) == 2

    def test_a_store_that_dies_while_samples_are_judged(
        self, bundle: Path, bucket: Any, server: Server, tmp_path: Path
    ) -> None:
        """Every sample is judged once, and none counts as damaged."""
        opened = open_bundle(bundle)
        for number in range(4):
            put_sample(tmp_path, number, opened.id)
        for path in tmp_path.glob("*.j*"):
            bucket.pipe(f"fleet/box7/{path.name}", path.read_bytes())
        merged = Scripted(opened, lambda query, bright: "red")

        class Dies(Scripted):
            def answer(self, image: Image, queries: Any) -> dict[str, Any]:
                if self.count == 1:
                    server.stop()
                return super().answer(image, queries)

        judge = DriftJudge(merged, Dies(opened, lambda query, bright: "red"))
        looks = rounds(judge, open_samples("s3://fleet/box7"), 0, Event())
        first = next(looks)
        assert first.trouble is not None and first.trouble.startswith("s3://fleet/yard-20261127T120002.000Z.jpg: ")
        assert judge.drifts["a"].judged == 2
        server.start()
        next(looks)
        assert judge.drifts["a"].judged == 4 and not judge.left_out
