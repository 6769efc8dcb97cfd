"""File of forms beside merge.json: codes and scales of weights and bases, and float32 bases that no model holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.torch import save
from torch import Tensor

from ...bundles.blob import tensor_id
from ...bundles.codes import BASE_BITS, indexed_codes, pack_codes
from ...bundles.merge_report import FormsReport, LayerReport
from ...errors import GemelError, InputError, first_line
from ..forms.form_map import FormMap
from ..forms.quantize import Base, Coded, materialize
from ..layers.sharing import Use
from ..training.subjects import State

__all__ = ["forms_file", "read_codes"]


def forms_file(
    forms: FormMap, codes: Mapping[Use, Coded], states: Mapping[str, State], bases: Mapping[str, Base]
) -> tuple[bytes, FormsReport] | None:
    """Return the content of the file of forms and its entry in merge.json; None if no weight is kept as codes.

    Equal codes with equal scales, of weights or of bases, have one index. A weight whose form has 0 bits is its base:
    it has the codes of a base in codes, and is not listed if its base is float32.

    Args:
        forms: committed forms.
        codes: codes of all forms but those of 0 bits.
        states: model name -> committed weights, for all models.
        bases: name of a base -> base.

    Raises:
        GemelError: a weight is not what its codes and its base give, bit for bit.
    """
    tensors: dict[str, Tensor] = {}
    layers: list[LayerReport] = []
    index_of: dict[str, int] = {}
    held = {form.base for _, form in forms.forms if not form.bits}

    def index(coded: Coded) -> int:
        """Return the number of codes in the file."""
        packed = torch.from_numpy(pack_codes(coded.codes.numpy(), coded.bits))
        key = hashlib.sha256(packed.numpy().tobytes() + coded.scale.numpy().tobytes()).hexdigest()
        number = index_of.setdefault(key, len(index_of))
        tensors[f"{number}.codes"], tensors[f"{number}.scale"] = packed, coded.scale.contiguous()
        return number

    for use, form in forms.forms:
        base = bases[form.base] if form.base is not None else None
        if form.bits:
            coded = codes[use]
        elif base is not None and base.coded is not None:
            coded, base = base.coded, None
        else:
            continue
        if not torch.equal(materialize(coded, None if base is None else base.kernel), states[use.model][use.parameter]):
            raise GemelError(
                f"{use.model}: {use.parameter} differs from what its codes give; this is a bug; the last commit is"
                " intact"
            )
        name = None
        if base is not None and base.coded is None:
            name = f"base.{tensor_id(base.kernel.numpy())}"
            if form.base not in held:
                tensors[name] = base.kernel
        layers.append(
            LayerReport(
                model=use.model,
                parameter=use.parameter,
                index=index(coded),
                shape=tuple(coded.codes.shape),
                kind="coded" if base is None else "difference",
                bits=coded.bits,
                base=name,
                base_index=None if base is None or base.coded is None else index(base.coded),
            )
        )
    if not layers:
        return None
    content = save(tensors)
    digest = hashlib.sha256(content).hexdigest()[:8]
    return content, FormsReport(file=f"forms-{digest}.safetensors", layers=tuple(layers))


def read_codes(path: Path, layers: Iterable[LayerReport]) -> tuple[dict[Use, Coded], dict[Use, Coded]]:
    """Read the codes of weights, and of the bases that these differ from, from a file that :func:`forms_file` made.

    Args:
        path: the file.
        layers: the weights, as merge.json lists them.

    Returns:
        Weight -> its codes; and weight -> codes of its base, for differences to a base in codes.

    Raises:
        InputError: the file is damaged or cannot be read; the message names the weight.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged: {first_line(error)}") from error
    codes: dict[Use, Coded] = {}
    bases: dict[Use, Coded] = {}
    for layer in layers:
        use = Use(layer.model, layer.parameter)
        for found, index, bits in ((codes, layer.index, layer.bits), (bases, layer.base_index, BASE_BITS)):
            if index is None:
                continue
            try:
                values, scale = map(torch.from_numpy, indexed_codes(tensors, index, bits, layer.shape))
            except ValueError as error:
                raise InputError(f"{path}: damaged: {layer.parameter} of query {layer.model}: {error}") from error
            found[use] = Coded(values, scale, bits)
    return codes, bases
