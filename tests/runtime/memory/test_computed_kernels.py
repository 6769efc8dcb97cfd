"""Segments that are computed from other segments: order, budget, failures, and memory that is given back."""

from __future__ import annotations

from pathlib import Path
from threading import Event, Timer
from typing import NamedTuple

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gemel.bundles.blob import PAGE, Layout, footprint, tensor_id, write_blob
from gemel.bundles.forms import computed_layout
from gemel.bundles.kernel_forms import KernelForm
from gemel.bundles.manifest import FormSpec
from gemel.bundles.tensor_users import TensorUsers
from gemel.errors import BackendError
from gemel.runtime.memory import computed_kernels
from gemel.runtime.memory.guarded_file import GuardedFile
from gemel.runtime.memory.host_arena import HostArena
from gemel.runtime.memory.loading import Loading
from gemel.runtime.memory.mapped_blob import move_pages, reserved_bytes

MODELS = "abc"


class Differences(NamedTuple):
    """Blob with a base that three models have in common, and each model's codes and one kernel of its own."""

    path: Path
    placed: Layout
    forms: dict[str, FormSpec]
    computed: Layout
    kernels: dict[str, NDArray[np.float32]]
    """Model -> its kernel."""

    def open(self, budget: int | None = None, before: HostArena | None = None, *, cold: bool = False) -> HostArena:
        return HostArena(
            *(self.path, self.placed.tensors, self.placed.segments, budget, Loading(cold), before),
            forms=self.forms,
            computed=self.computed,
        )

    def needs(self, model: str) -> list[str]:
        """Return the segments of a model."""
        segments = (*self.placed.segments.items(), *self.computed.segments.items())
        return [name for name, spec in segments if model in spec.models]

    def sizes(self) -> dict[str, int]:
        segments = {**self.placed.segments, **self.computed.segments}
        return {name: footprint(spec.length) for name, spec in segments.items()}

    def check(self, arena: HostArena, model: str) -> None:
        kernel = self.kernels[model]
        assert arena.tensor(tensor_id(kernel)).tobytes() == kernel.tobytes()

    def computed_of(self, model: str) -> str:
        return self.needs(model)[-1]


def write(folder: Path, models: str = MODELS, shape: tuple[int, ...] = (24, 300), seed: int = 0) -> Differences:
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(shape).astype(np.float32)
    arrays: dict[str, NDArray[np.float32]] = {}
    users, kernels = TensorUsers(arrays.__setitem__), {}
    for model in models:
        own = np.random.default_rng(ord(model))
        codes = own.integers(-1, 2, shape).astype(np.int8)
        form = KernelForm(codes, 2, own.random(shape[0]).astype(np.float32), base)
        kernels[model] = form.kernel()
        users.add_form(model, tensor_id(kernels[model]), form)
    path = folder / f"weights{seed}"
    placed = users.layout()
    write_blob(path, placed, arrays.__getitem__)
    uses = {tensor_id(kernel): [model] for model, kernel in kernels.items()}
    return Differences(path, placed, users.forms(), computed_layout(users.forms(), uses), kernels)


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Differences:
    return write(tmp_path_factory.mktemp("differences"))


def test_a_kernel_is_computed_when_it_is_loaded(some: Differences) -> None:
    arena = some.open()
    assert arena.budget == sum(some.sizes().values())
    for model in MODELS:
        arena.acquire(some.needs(model))
        some.check(arena, model)
        with pytest.raises(ValueError, match="read-only"):
            arena.tensor(tensor_id(some.kernels[model]))[0, 0] = 1
    arena.close()


def test_sources_come_first_whatever_the_order(some: Differences, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = some.open()
    order: list[str] = []
    load = arena._load

    def noted(segment: str) -> None:
        order.append(segment)
        load(segment)

    monkeypatch.setattr(arena, "_load", noted)
    arena.acquire(reversed(some.needs("a")))
    assert order[-1] == some.computed_of("a")
    some.check(arena, "a")
    arena.close()


@pytest.mark.parametrize("unguarded", [False, True])
def test_under_pressure_only_some_kernels_are_there(
    some: Differences, unguarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if unguarded:
        monkeypatch.setattr(GuardedFile, "_take_lease", lambda self: False)
    sizes = some.sizes()
    arena = some.open(max(sum(sizes[name] for name in some.needs(model)) for model in MODELS))
    for model in MODELS * 2:
        arena.acquire(some.needs(model))
        some.check(arena, model)
        assert arena.resident <= arena.budget
        arena.release(some.needs(model))
    assert arena.stats.peak <= arena.budget
    assert arena.stats.evicted
    arena.close()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    room=st.floats(0, 1),
    steps=st.lists(st.tuples(st.sampled_from(["acquire", "release", "prefetch", "evict"]), st.sampled_from(MODELS))),
)
def test_budget_and_values(some: Differences, room: float, steps: list[tuple[str, str]]) -> None:
    sizes = some.sizes()
    least, whole = sum(sizes[name] for name in some.needs("a")), sum(sizes.values())
    arena = some.open(int(least + room * (whole - least)))
    held: list[str] = []
    for what, model in steps:
        if what == "acquire":
            try:
                arena.acquire(some.needs(model))
            except BackendError:
                assert held
            else:
                held.append(model)
        elif what == "release" and held:
            arena.release(some.needs(held.pop()))
        elif what == "prefetch":
            idle = [name for name in arena.residents if not any(name in some.needs(each) for each in held)]
            gone = [name for name in idle if name not in some.needs(model)]
            try:
                arena.prefetch(some.needs(model), gone)
            except BackendError:
                assert held
        elif what == "evict":
            arena.evict()
        assert arena.stats.peak <= arena.budget
        for each in held:
            some.check(arena, each)
    arena.close()


def test_a_kernel_without_its_sources_is_not_loaded(some: Differences) -> None:
    arena, name = some.open(), some.computed_of("a")
    (base, *_) = arena.sources[name]
    with pytest.raises(BackendError, match=f"segment {name} is computed from {base}, which is not in memory"):
        arena.prefetch([name])
    with pytest.raises(BackendError, match="which is not in memory"):
        arena.acquire([name])
    assert not arena.residents
    arena.prefetch(arena.sources[name])
    with pytest.raises(BackendError, match="which is not in memory"):
        arena.prefetch([name], evict=[base])
    arena.prefetch([name])
    arena.acquire(some.needs("a"))
    some.check(arena, "a")
    arena.close()


def test_a_kernel_waits_for_sources_that_are_still_loading(some: Differences, monkeypatch: pytest.MonkeyPatch) -> None:
    arena, go = some.open(), Event()
    load = arena._load

    def late(segment: str) -> None:
        assert go.wait(10)
        load(segment)

    monkeypatch.setattr(arena, "_load", late)
    arena.prefetch(arena.sources[some.computed_of("a")])
    arena.prefetch([some.computed_of("a")])
    assert not arena.loaded(some.needs("a"))
    Timer(0.01, go.set).start()
    arena.acquire(some.needs("a"))
    some.check(arena, "a")
    arena.close()


def test_a_source_that_cannot_be_loaded_fails_the_kernel(some: Differences, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = some.open()
    load = arena._load
    broken = arena.sources[some.computed_of("a")][0]

    def fail(segment: str) -> None:
        if segment == broken:
            raise BackendError("the disk is gone")
        assert segment not in arena.sources, "nothing is computed from what is not there"
        load(segment)

    monkeypatch.setattr(arena, "_load", fail)
    with pytest.raises(BackendError, match="the disk is gone"):
        arena.acquire(some.needs("a"))
    arena.prefetch(some.needs("b"))
    arena.finish()
    assert not set(arena.residents) & {*arena.sources, broken}
    monkeypatch.setattr(arena, "_load", load)
    arena.acquire(some.needs("a"))
    some.check(arena, "a")
    arena.close()


def test_a_file_that_was_overwritten_is_not_read(some: Differences, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = some.open()
    arena.prefetch(arena.sources[some.computed_of("a")])
    arena.finish()

    def check(self: GuardedFile) -> None:
        raise BackendError("another program has overwritten it")

    monkeypatch.setattr(GuardedFile, "check", check)
    arena.prefetch([some.computed_of("a")])
    arena.finish()
    assert some.computed_of("a") not in arena.residents
    arena.close()


def test_a_limited_bandwidth_does_not_slow_computing(some: Differences, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("gemel.runtime.memory.arena.sleep", slept.append)
    arena = HostArena(
        *(some.path, some.placed.tensors, some.placed.segments, None, Loading(bandwidth=1.0)),
        forms=some.forms,
        computed=some.computed,
    )
    arena.acquire(some.needs("a"))
    assert len(slept) == len(some.needs("a")) - 1
    arena.close()


@pytest.mark.parametrize("cold", [False, True])
def test_memory_of_evicted_kernels_is_given_back(tmp_path: Path, cold: bool) -> None:
    large = write(tmp_path, "a", (64, 1 << 16))
    arena = large.open(cold=cold)
    arena.acquire(large.needs("a"))
    large.check(arena, "a")
    before = psutil.Process().memory_info().rss
    arena.release(large.needs("a"))
    arena.evict()
    assert before - psutil.Process().memory_info().rss > 0.9 * large.kernels["a"].nbytes
    arena.acquire(large.needs("a"))
    large.check(arena, "a")
    arena.close()


def test_pages_move_without_a_copy() -> None:
    place, source, refused = (reserved_bytes(3 * PAGE) for _ in range(3))
    source[:], place[:] = 7, 3
    assert move_pages(place[PAGE:], source[: 2 * PAGE])
    assert [set(place[at : at + PAGE]) for at in (0, PAGE, 2 * PAGE)] == [{3}, {7}, {7}]
    assert set(source) == {0, 7} and not source[: 2 * PAGE].any()
    assert not move_pages(refused[1 : PAGE + 1], source[:PAGE]), "pages begin at whole addresses"
    assert not refused.any()


@pytest.mark.parametrize("moves", [True, False], ids=["moved", "refused"])
def test_a_kernel_gets_the_pages_of_those_it_replaces(
    tmp_path: Path, moves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    some, sizes = write(tmp_path), []

    def noted(place: NDArray[np.uint8], source: NDArray[np.uint8]) -> bool:
        assert source.tobytes().startswith(some.kernels["a"].tobytes())
        sizes.append(place.size)
        return moves and move_pages(place, source)

    monkeypatch.setattr(computed_kernels, "move_pages", noted)
    arena = some.open()
    arena.prefetch(some.needs("a"))
    arena.finish()
    assert not sizes, "nothing leaves"
    arena.prefetch(some.needs("b"), evict=[some.computed_of("a")])
    arena.acquire(some.needs("b"))
    some.check(arena, "b")
    assert not arena.tensor(tensor_id(some.kernels["a"])).any()
    assert sizes == [some.sizes()[some.computed_of("b")]]
    arena.release(some.needs("b"))
    arena.evict()
    assert len(sizes) == 1, "nothing comes"
    arena.close()


def test_another_arena_takes_the_place(tmp_path: Path, some: Differences) -> None:
    """Sources that both have stay in memory; kernels are computed again from where their sources lie."""
    after = write(tmp_path, "bcd")
    first = some.open()
    first.acquire(some.needs("b"))
    first.release(some.needs("b"))
    second = after.open(before=first)
    second.take_over(first)
    first.close()
    assert second.kept_bytes > some.kernels["a"].nbytes
    assert second.residents
    for model in "bcd":
        parts = [part for name in after.needs(model) for part in second.parts_of[name]]
        second.acquire(parts)
        after.check(second, model)
        second.release(parts)
        second.evict()
    second.close()


def test_nothing_is_there_to_compute(tmp_path: Path) -> None:
    made = computed_kernels.ComputedKernels({}, {}, [], lambda name: np.zeros(0))
    made.populate([])
    made.drop([])
