"""ONNX Runtime on an NVIDIA card: the bundle's programs, with weights bound where the device arena has them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ...bundles.manifest import Stage
from ...bundles.program import read_model, split_model
from ...bundles.reader import Bundle
from ...errors import BackendError, first_line
from ..device import Device, Stream
from ..device_cache import folder_for
from ..memory.arena import WARM, Loading
from ..ort.session import CPU, open_session, quiet
from .on_device import Array, DeviceArray, Executable, OnDevice

__all__ = ["OrtCuda"]

_log = logging.getLogger(__name__)

_PROVIDER = "CUDAExecutionProvider"


@cache
def _share_activations() -> bool:
    """One activation arena on the card for all sessions of the process, see :mod:`.ort_cpu`; whether there is one."""
    info = ort.OrtMemoryInfo("Cuda", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    try:
        ort.create_and_register_allocator_v2(_PROVIDER, info, {}, None)
    except RuntimeError as error:
        _log.warning("every program has activations of its own, which takes more memory: %s", first_line(error))
        return False
    return True


class _Session:
    """See :class:`.on_device.Executable`."""

    def __init__(self, session: ort.InferenceSession, kind: str, stream: Stream) -> None:
        self._session, self._kind, self._stream = session, kind, stream
        self._bindings: dict[tuple[str, ...], tuple[Sequence[DeviceArray], Any]] = {}
        """By tensors: where they were bound, and the binding; making one takes a call for each weight."""
        self._outputs = [port.name for port in session.get_outputs()]
        self._inputs = [port.name for port in session.get_inputs()]

    def bind(self, tensors: tuple[str, ...], weights: Sequence[DeviceArray]) -> None:
        known = self._bindings.get(tensors)
        if known is None or known[0] is not weights:
            known = self._bindings[tensors] = (weights, self._session.io_binding())
            # Weights are a program's last inputs; its first are the model's own.
            for name, weight in zip(self._inputs[len(self._inputs) - len(weights) :], weights, strict=True):
                self._take(known[1], name, weight)
        self._binding = known[1]

    def run(self, inputs: Mapping[str, DeviceArray]) -> dict[str, Array]:
        for name, array in inputs.items():
            self._take(self._binding, name, array)
        for name in self._outputs:
            # Bound anew each time: shapes follow the batch. ONNX Runtime copies them, and waits for that.
            self._binding.bind_output(name, "cpu")
        if self._kind == "cpu":
            # Only on a card does ONNX Runtime work in the stream that frames come by.
            self._stream.synchronize()
        self._session.run_with_iobinding(self._binding)
        return dict(zip(self._outputs, self._binding.copy_outputs_to_cpu(), strict=True))

    def _take(self, binding: Any, name: str, array: DeviceArray) -> None:
        binding.bind_input(name, self._kind, 0, array.dtype, array.shape, array.address)


class OrtCuda(OnDevice):
    """See :class:`gemel.runtime.backends.Backend`.

    Args:
        bundle: an open bundle.
        device: closed with the backend. On the host device, programs run on ONNX Runtime's CPU provider.
        memory: budget for weights.
        threads: of ONNX Runtime, for what the card cannot do.
        loading: how weights come.

    Raises:
        BackendError: this ONNX Runtime has no CUDA.
    """

    name = "ort-cuda"

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        *,
        memory: str | int = "all",
        threads: int = 1,
        loading: Loading = WARM,
    ) -> None:
        self._on_card = device.name != "host"
        if self._on_card and _PROVIDER not in ort.get_available_providers():
            raise BackendError(
                f"ort-cuda: this onnxruntime ({ort.__version__}) has no CUDA: pip uninstall onnxruntime; pip install"
                " 'gemel[cuda]'; --backend ort-cpu runs without"
            )
        super().__init__(bundle, device, memory=memory, threads=threads, loading=loading)
        # Made once, and not whenever it is asked for.
        self._folder = folder_for(bundle, self.name)
        self._shares_activations = self._on_card and _share_activations()

    @property
    def folder(self) -> Path:
        return self._folder

    def _open(self, stage: Stage) -> Executable:
        path = self._bundle.file(stage.file)
        program = split_model(read_model(path.read_bytes()))
        options = quiet(self.threads)
        options.add_session_config_entry("session.use_env_allocators", "1" if self._shares_activations else "0")
        providers: list[Any] = [CPU]
        if self._on_card:
            # Weights come on a stream of their own, and a run reads what is there already: one stream is enough here.
            providers.insert(0, (_PROVIDER, {"user_compute_stream": str(self.stream.handle)}))
        session = open_session(path, options, proto=program.proto, providers=providers)
        return _Session(session, "cuda" if self._on_card else "cpu", self.stream)
