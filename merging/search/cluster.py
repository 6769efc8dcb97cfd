"""Independent trials side by side, as tasks of Ray on one machine or a cluster."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from types import ModuleType
from typing import Any

import torch

from ...errors import GemelError, InputError, MissingExtraError, first_line
from ..training.subjects import Subject
from ..training.trial import Outcome, TrialRunner
from .search import Job

__all__ = ["Cluster"]


class Cluster:
    """Runs jobs on Ray while it is entered: a GPU each where models are on one, else an equal part of the CPUs.

    Models and images go to the workers' machines once; a job brings the weights that it goes on from.

    Args:
        address: of a cluster, ``auto`` for the one that this machine belongs to, or ``local`` to start one here.
        subjects: the models of the workload.
        seed: of everything random.
        deadline: of ``time.monotonic``.
        waiting: called about every second while trials run; what it raises ends them.
        modules: what models are made of that workers cannot import; it is sent to them.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: the cluster cannot be reached.
    """

    def __init__(
        self,
        address: str,
        subjects: Mapping[str, Subject],
        seed: int = 0,
        deadline: float = math.inf,
        waiting: Callable[[], None] = lambda: None,
        modules: Sequence[ModuleType] = (),
    ) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise MissingExtraError("gemel merge --ray", "ray") from error
        self._ray: Any = ray
        self._seed, self._deadline, self._waiting = seed, deadline, waiting
        self._gpu = any(subject.device.type == "cuda" for subject in subjects.values())
        # A cluster of its own for a while is looked at by nobody.
        own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(f"--ray: {address!r} cannot be reached: {first_line(error)}") from error
        self._modules = modules
        for module in modules:
            self._ray.cloudpickle.register_pickle_by_value(module)
        self._subjects = ray.put(dict(subjects))

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for module in self._modules:
            self._ray.cloudpickle.unregister_pickle_by_value(module)
        self._ray.shutdown()

    def execute(self, jobs: Sequence[Job]) -> list[Outcome] | None:
        """Run jobs side by side; outcomes come in the order of the jobs, with weights on the CPU.

        A training ends itself when time is up. Of several jobs some may only be waiting for their turn then: the rest
        is given up, and there are no outcomes.

        Raises:
            GemelError: a worker was lost, or raised one.
        """
        cpus = max(1, int(self._ray.cluster_resources().get("CPU", 1)) // len(jobs))
        task = self._ray.remote(num_cpus=cpus, num_gpus=int(self._gpu), max_retries=2)(_run)
        # Clocks of different machines do not agree on anything but how long is left.
        left = self._deadline - monotonic()
        references = [task.remote(self._subjects, job, self._seed, left, cpus) for job in jobs]
        pending = references
        while pending:
            self._waiting()
            _, pending = self._ray.wait(pending, num_returns=len(pending), timeout=1.0)
            if len(jobs) > 1 and pending and monotonic() > self._deadline:
                for reference in pending:
                    self._ray.cancel(reference)
                return None
        errors = self._ray.exceptions
        try:
            outcomes: list[Outcome] = self._ray.get(references)
        except errors.RayTaskError as error:
            if isinstance(error.cause, GemelError):
                raise error.cause from None
            raise
        except errors.RayError as error:
            raise GemelError(f"--ray: a trial was lost: {first_line(error)}") from error
        return outcomes


def _run(subjects: dict[str, Subject], job: Job, seed: int, left: float, threads: int) -> Outcome:
    torch.set_num_threads(threads)
    return TrialRunner(subjects, seed)(job.trial, job.states, job.shared, monotonic() + left)
