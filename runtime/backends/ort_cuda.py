"""Backend ``ort-cuda``: ONNX Runtime on an NVIDIA card, with weights bound at their addresses in the device arena."""

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
from ..device import Device, DeviceArray, Stream
from ..device_cache import folder_for
from ..memory.loading import WARM, Loading
from ..ort.session import CPU, open_session, quiet
from .arena_backend import images_within
from .on_device import Array, Executable, OnDevice, open_on_card
from .protocol import BackendOptions

__all__ = ["OrtCuda"]

_log = logging.getLogger(__name__)


@cache
def _share_activations(provider: str) -> bool:
    """Make one memory arena on the card for the activations of all sessions, and return whether that succeeded.

    Sessions take turns, so the arena needs the largest of their activations, not the sum; :mod:`.ort_cpu` does the
    same. ONNX Runtime allows this call once per process.
    """
    info = ort.OrtMemoryInfo("Cuda", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    try:
        ort.create_and_register_allocator_v2(provider, info, {}, None)
    except RuntimeError as error:
        _log.warning("every program has activations of its own, which takes more memory: %s", first_line(error))
        return False
    return True


_BATCH_PIXELS = 1 << 22
"""Maximum number of pixels of all frames of a batch on a card, because the activations of a batch take memory."""


class _Session:
    """ONNX Runtime session of one program on a device, see :class:`.on_device.Executable`.

    Args:
        session: ONNX Runtime's session of the program.
        device: device that holds the weights and inputs.
        stream: stream in which inputs are uploaded.
    """

    def __init__(self, session: ort.InferenceSession, device: Device, stream: Stream) -> None:
        self._session, self._memory, self._stream = session, device.ort_memory, stream
        # The CPU provider takes no stream: what was asked of ours has to be done before the session runs.
        self._waits = device.ort_provider == CPU
        self._bindings: dict[tuple[str, ...], tuple[list[int], Any]] = {}
        """Ids of tensors -> device addresses at which the tensors are bound, and ONNX Runtime's binding."""
        self._outputs = [port.name for port in session.get_outputs()]
        self._inputs = [port.name for port in session.get_inputs()]

    def bind(self, tensors: tuple[str, ...], weights: Sequence[DeviceArray]) -> None:
        # Making a binding takes a call per weight. Models with the same tensors share one while no tensor moves.
        addresses = [weight.address for weight in weights]
        known = self._bindings.get(tensors)
        if known is None or known[0] != addresses:
            known = self._bindings[tensors] = (addresses, self._session.io_binding())
            # Weights are a program's last inputs; its first are the model's own.
            for name, weight in zip(self._inputs[len(self._inputs) - len(weights) :], weights, strict=True):
                self._take(known[1], name, weight)
        self._binding = known[1]

    def run(self, inputs: Mapping[str, DeviceArray]) -> dict[str, Array]:
        for name, array in inputs.items():
            self._take(self._binding, name, array)
        for name in self._outputs:
            # Bound for each run, because shapes follow the batch. ONNX Runtime copies outputs and waits for the copy.
            self._binding.bind_output(name, "cpu")
        if self._waits:
            self._stream.synchronize()
        self._session.run_with_iobinding(self._binding)
        return dict(zip(self._outputs, self._binding.copy_outputs_to_cpu(), strict=True))

    def _take(self, binding: Any, name: str, array: DeviceArray) -> None:
        binding.bind_input(name, self._memory, 0, array.dtype, array.shape, array.address)


class OrtCuda(OnDevice):
    """Backend of ONNX Runtime on a device, see :class:`gemel.runtime.backends.Backend`.

    Args:
        bundle: an open bundle.
        device: device that runs the models, through the execution provider that the device names. The backend closes
            the device.
        memory: memory setting that gives the budget for weights; see :mod:`gemel.bundles.budget`.
        threads: maximum number of CPU threads for operators that the device cannot run.
        loading: settings of how weights are loaded.

    Raises:
        InputError: the budget is too small.
        BackendError: this ONNX Runtime has no CUDA, or the device has too little free memory.
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
        if device.ort_provider not in ort.get_available_providers():
            raise BackendError(
                f"ort-cuda: this onnxruntime ({ort.__version__}) has no CUDA: pip uninstall -y onnxruntime"
                " onnxruntime-gpu, then pip install onnxruntime-gpu; --backend ort-cpu runs without"
            )
        super().__init__(bundle, device, memory=memory, threads=threads, loading=loading)
        # Kept, because finding the folder also makes it.
        self._folder = folder_for(bundle, self.name)
        self._shares_activations = device.ort_shares_activations and _share_activations(device.ort_provider)

    @classmethod
    def open(cls, bundle: Bundle, name: str, options: BackendOptions) -> OrtCuda:
        """Open the ``ort-cuda`` backend for a bundle on the first card, see :class:`.protocol.BackendOpener`."""
        return open_on_card(
            lambda device: cls(bundle, device, memory=options.memory, threads=options.threads, loading=options.loading)
        )

    @property
    def folder(self) -> Path:
        return self._folder

    def batch_limit(self, model: str) -> int:
        return images_within(self._bundle, model, _BATCH_PIXELS)

    def _open(self, stage: Stage) -> Executable:
        path = self._bundle.file(stage.file)
        program = split_model(read_model(path.read_bytes()))
        options = quiet(self.threads)
        options.add_session_config_entry("session.use_env_allocators", "1" if self._shares_activations else "0")
        providers: list[Any] = [CPU]
        if self.device.ort_provider != CPU:
            # Weights are loaded in a stream of their own, but a run reads only weights whose load is over. So one
            # stream orders everything else: uploads of frames, and runs.
            providers.insert(0, (self.device.ort_provider, {"user_compute_stream": str(self.stream.handle)}))
        session = open_session(path, options, proto=program.proto, providers=providers)
        return _Session(session, self.device, self.stream)
