"""Bytes of a bundle's weights by the form in which they are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ...bundles.manifest import Manifest

__all__ = ["form_figures"]


def form_figures(content: Manifest) -> dict[str, dict[str, int]]:
    """Return form -> number of distinct weights, their bytes in memory and their bytes in the bundle.

    ``own``: tensors that one layer uses. ``shared``: tensors that several layers use. ``coded`` and ``difference``:
    kernels that are computed from codes, without and with a base. ``base``: tensors that are only there for
    differences, among whose weights the scales of bases in codes do not count. Empty if no kernel is computed.
    """
    if not content.forms:
        return {}
    uses = Counter(weight for model in content.models.values() for weight in model.weights)
    kinds: dict[str, list[str]] = {"own": [], "shared": [], "coded": [], "difference": []}
    for weight, count in uses.items():
        if weight in content.forms:
            kinds["coded" if content.forms[weight].base is None else "difference"].append(weight)
        else:
            kinds["own" if count == 1 else "shared"].append(weight)
    figures = {
        kind: {
            "weights": len(weights),
            "memory_bytes": sum(map(content.bytes_of, weights)),
            "bytes": _stored(content, {tensor for weight in weights for tensor in _own(content, weight)}),
        }
        for kind, weights in kinds.items()
        if weights
    }
    held = {tensor for weight in uses for tensor in _own(content, weight)}
    bases = {tensor for form in content.forms.values() for tensor in form.base_parts} - held
    if bases:
        size = _stored(content, bases)
        count = len(bases & {form.base for form in content.forms.values()})
        figures["base"] = {"weights": count, "memory_bytes": size, "bytes": size}
    return figures


def _own(content: Manifest, weight: str) -> Iterable[str]:
    """Return the stored tensors of a weight, without the base that others may have in common."""
    form = content.forms.get(weight)
    return [weight] if form is None else [each for each in form.stored if each not in form.base_parts]


def _stored(content: Manifest, tensors: Iterable[str]) -> int:
    return sum(content.tensors[tensor].length for tensor in tensors)
