"""Choice of a run's outputs: those of the bundle or of the caller, with variables replaced."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from pydantic import ValidationError

from ...bundles.output_specs import JsonlSpec, OutputSpec, RotateSpec, SamplesSpec, VideoSpec, map_strings
from ...bundles.value import problem
from ...environment import VariableError, expand
from ...errors import InputError

__all__ = ["outputs_of_run"]

_NEVER = RotateSpec(size=None, age=None, keep=None)


def outputs_of_run(
    bundle: Sequence[OutputSpec],
    given: Sequence[OutputSpec] | None,
    *,
    allowed: Collection[str] = (),
    results: Path | None = None,
    video: Path | None = None,
    samples: SamplesSpec | None = None,
) -> list[OutputSpec]:
    """Return the outputs of a run, with environment variables replaced.

    Args:
        bundle: outputs of the bundle.
        given: outputs that replace those of the bundle; None to keep the bundle's.
        allowed: variables that the bundle's outputs may use, besides those that begin with ``GEMEL_``. Outputs of the
            caller may use any.
        results: further file of results, which is never renamed; ``-`` for the standard output.
        video: further folder of videos, in which nothing is deleted.
        samples: further folder of samples.

    Raises:
        InputError: a variable is not set, or an output is not allowed with its variables replaced.
    """
    chosen, names = (bundle, allowed) if given is None else (given, None)
    specs = [_expanded(index, spec, names) for index, spec in enumerate(chosen)]
    if results is not None:
        # A path on the command line comes from the user, who may choose any name.
        specs.append(OutputSpec(jsonl=JsonlSpec.model_construct(path=str(results), rotate=_NEVER)))
    if video is not None:
        specs.append(OutputSpec(video=VideoSpec(folder=str(video), keep=None)))
    if samples is not None:
        specs.append(OutputSpec(samples=samples))
    return specs


def _expanded(index: int, spec: OutputSpec, allowed: Collection[str] | None) -> OutputSpec:
    """Return an output with environment variables replaced, and checked again."""
    where = f"outputs[{index}].{spec.kind}"

    def change(text: str) -> str:
        return expand(text, allowed)

    try:
        found = OutputSpec.model_validate(map_strings(spec.model_dump(exclude_unset=True), change))
        found.check()
    except VariableError as error:
        raise InputError(f"{where}: {error}") from error
    except ValidationError as error:
        raise InputError(f"{where}: {problem(error)}") from error
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    return found
