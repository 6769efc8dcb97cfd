"""Building an engine from a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BackendError
from .library import Library
from .timings import Timings

__all__ = ["Built", "build_engine"]


@dataclass(frozen=True)
class Built:
    """A serialised engine."""

    data: bytes
    layers: int
    """Of the network that it was built from."""


def build_engine(
    library: Library,
    proto: bytes,
    rows: Mapping[str, int],
    targets: Sequence[str] = (),
    *,
    blob: Path | None = None,
    flags: Sequence[str] = (),
    timings: Timings | None = None,
) -> Built:
    """Build a program's engine.

    Types are those that the program states. Where a card can, it rounds the factors of float32 products to TF32, as
    PyTorch's convolutions do.

    Args:
        library: that builds.
        proto: a serialised program, see :mod:`gemel.bundles.program`.
        rows: inputs whose first dimension is free, and how large it may be; the engine is tuned for that size.
        targets: compute capabilities, as ``sm86``; left out, the device that is here.
        blob: where weights lie that are constants of the program.
        flags: of the builder, by name.
        timings: what is known of kernels on the device that is here.

    Raises:
        BackendError: the library refuses the program, or there is no such device; in its own words.
    """
    trt = library.module
    logger = library.logger()
    logger.errors.clear()
    try:
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        if not (parser.parse(proto) if blob is None else parser.parse(proto, str(blob))):
            raise BackendError(library.refusal(_reasons(parser)))
        config = builder.create_builder_config()
        for flag in flags:
            config.set_flag(getattr(trt.BuilderFlag, flag))
        if targets:
            config.num_compute_capabilities = len(targets)
            for index, target in enumerate(targets):
                config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)
        if rows:
            profile = builder.create_optimization_profile()
            for name, most in rows.items():
                shape = _shape(network, name)
                profile.set_shape(name, (1, *shape), (most, *shape), (most, *shape))
            config.add_optimization_profile(profile)
        if timings is not None:
            timings.lend(config)
        data = builder.build_serialized_network(network, config)
        if data is not None and timings is not None:
            timings.keep(config)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        # What the binding raises where there is no driver, or where the library has no such flag.
        raise BackendError(library.refusal([*logger.errors, str(error)])) from error
    if data is None:
        raise BackendError(library.refusal(logger.errors))
    return Built(bytes(data), int(network.num_layers))


def _shape(network: Any, name: str) -> tuple[int, ...]:
    """All dimensions of an input but the first."""
    ports = (network.get_input(index) for index in range(network.num_inputs))
    return next(tuple(port.shape)[1:] for port in ports if port.name == name)


def _reasons(parser: Any) -> list[str]:
    """What a parser does not like; what it says itself may be as little as ``false``."""
    errors = map(parser.get_error, range(parser.num_errors))
    return [f"operator {error.node_operator()}, {error.code().name}: {error.desc()}" for error in errors]
