"""Build a TensorRT engine from a program."""

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
    """Serialised TensorRT engine, as the builder returns it."""

    data: bytes
    layers: int
    """Number of layers of the TensorRT network that the engine was built from."""


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
    """Build the TensorRT engine of a program.

    The engine computes in the types that the program states. A card that can do so rounds the factors of float32
    products to TF32, as PyTorch's convolutions do.

    Args:
        library: TensorRT or TensorRT for RTX, which builds the engine.
        proto: serialised program, see :mod:`gemel.bundles.program`.
        rows: input -> maximum size of its first dimension, for inputs whose first dimension is dynamic. The engine is
            tuned for that size.
        targets: compute capabilities to build for, such as ``sm86``; this machine's device when left out.
        blob: file of the weights that are constants of the program.
        flags: names of the builder flags to set.
        timings: timing cache of this machine's device: known kernel times, to which new ones are added.

    Raises:
        BackendError: the library refuses the program, or there is no such device; the message quotes the library.
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
        # TensorRT's Python binding raises these where there is no driver, or the library lacks a flag.
        raise BackendError(library.refusal([*logger.errors, str(error)])) from error
    if data is None:
        raise BackendError(library.refusal(logger.errors))
    return Built(bytes(data), int(network.num_layers))


def _shape(network: Any, name: str) -> tuple[int, ...]:
    """Return all dimensions of a TensorRT network's input except the first."""
    ports = (network.get_input(index) for index in range(network.num_inputs))
    return next(tuple(port.shape)[1:] for port in ports if port.name == name)


def _reasons(parser: Any) -> list[str]:
    """Return the parser's errors, each with its operator; a description alone may be as short as ``false``."""
    errors = map(parser.get_error, range(parser.num_errors))
    return [f"operator {error.node_operator()}, {error.code().name}: {error.desc()}" for error in errors]
