"""Segments of a bundle that lie in a device's memory: stored ones, and kernels that are computed from tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from ...bundles.blob import Layout
from ...bundles.forms import computed_layout, source_segments
from ...bundles.manifest import Manifest, SegmentSpec, TensorSpec

__all__ = ["DeviceWeights", "device_weights"]


@dataclass(frozen=True)
class DeviceWeights:
    """Segments that a device holds. What kernels are computed from stays in the file, unless a layer reads it."""

    segments: Mapping[str, SegmentSpec]
    """Name -> segment of the blob, for the stored segments."""
    computed: Layout
    """Kernels that are computed when they are loaded, and their segments."""
    segments_of: Mapping[str, tuple[str, ...]]
    """Model -> its segments of both kinds."""
    tensors: Mapping[str, TensorSpec]
    """Weight -> its dtype and shape."""

    @property
    def lengths(self) -> dict[str, int]:
        """Segment of either kind -> its length in bytes."""
        return {name: spec.length for name, spec in {**self.segments, **self.computed.segments}.items()}


def device_weights(content: Manifest) -> DeviceWeights:
    """Return the segments that a device holds for the models of a bundle."""
    users: dict[str, set[str]] = defaultdict(set)
    for name, model in content.models.items():
        for weight in (weight for stage in model.stages.values() for weight in stage.weights):
            users[weight].add(name)
    computed, sources = computed_layout(content.forms, users), source_segments(content)
    return DeviceWeights(
        segments={name: spec for name, spec in content.segments.items() if name not in sources},
        computed=computed,
        segments_of={
            name: (
                *(segment for segment in model.segments if segment not in sources),
                *(segment for segment, spec in computed.segments.items() if name in spec.models),
            )
            for name, model in content.models.items()
        },
        tensors={**content.tensors, **computed.tensors},
    )
