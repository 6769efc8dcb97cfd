"""Run independent trials in parallel, as Ray tasks on one machine or a cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from types import ModuleType
from typing import Any

import torch

from ...errors import GemelError, first_line
from ...ray_cluster import connect
from ..training.deadline import TimeUpError
from ..training.subjects import Subject
from ..training.trial import Outcome, TrialRunner
from .search import Job

__all__ = ["Cluster"]


class Cluster:
    """Executor of jobs (trials with their weights) on a Ray cluster.

    The executor is a context manager that disconnects from Ray at its end. Each job gets one GPU if the models are on a
    GPU, and an equal number of the cluster's CPUs. Models and images are sent to the workers' machines once. A job
    carries only the weights that its trial starts from.

    Args:
        address: as in :func:`gemel.ray_cluster.connect`.
        subjects: the models of the workload, by name.
        seed: seed for all random numbers of every trial.
        deadline: time of ``time.monotonic`` at which trials stop.
        waiting: function called about once a second while trials run; an exception that it raises ends the trials.
        modules: Python modules with model code that workers cannot import; their code is sent to the workers.

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
        self._ray = connect(address, "gemel merge")
        self._seed, self._deadline, self._waiting = seed, deadline, waiting
        self._gpu = any(subject.device.type == "cuda" for subject in subjects.values())
        self._modules = modules
        for module in modules:
            self._ray.cloudpickle.register_pickle_by_value(module)
        # Trials look at no image that confirms.
        self._subjects = self._ray.put(
            {
                name: replace(each, held=tuple(replace(held, confirm=held.choose) for held in each.held))
                for name, each in subjects.items()
            }
        )

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for module in self._modules:
            self._ray.cloudpickle.unregister_pickle_by_value(module)
        self._ray.shutdown()

    def execute(self, jobs: Sequence[Job]) -> Generator[Outcome, None, None]:
        """Run jobs (trials of a merge) in parallel on the Ray cluster, and yield the outcomes in the order of the jobs.

        Outcomes have their weights on the CPU. Each trial stops at the deadline of the search by itself. If there are
        several jobs, the generator ends at the deadline, because some of them may still wait for a worker. Jobs that
        are not done when the generator ends are cancelled.

        Raises:
            GemelError: a worker was lost, or a trial raised the error.
        """
        cpus = max(1, int(self._ray.cluster_resources().get("CPU", 1)) // len(jobs))
        task = self._ray.remote(num_cpus=cpus, num_gpus=int(self._gpu), max_retries=2)(_run)
        # Monotonic clocks differ between machines, so workers get the remaining seconds.
        left = self._deadline - monotonic()
        pending = [task.remote(self._subjects, job, self._seed, left, cpus) for job in jobs]
        try:
            while pending:
                self._waiting()
                done, _ = self._ray.wait(pending[:1], timeout=1.0)
                if not done:
                    if len(jobs) > 1 and monotonic() > self._deadline:
                        return
                    continue
                outcome = self._outcome(pending.pop(0))
                if outcome is None:
                    return
                yield outcome
        finally:
            for reference in pending:
                self._ray.cancel(reference)

    def _outcome(self, reference: Any) -> Outcome | None:
        """Return the outcome of a trial that is done; None if the deadline cut the trial off.

        Raises:
            GemelError: the trial's worker was lost, or the trial raised the error.
        """
        errors = self._ray.exceptions
        try:
            outcome: Outcome | None = self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, GemelError):
                raise error.cause from None
            raise
        except errors.RayError as error:
            raise GemelError(f"--ray: a trial was lost: {first_line(error)}") from error
        return outcome


def _run(subjects: dict[str, Subject], job: Job, seed: int, left: float, threads: int) -> Outcome | None:
    """Run the trial of a job in a worker process; return None if the deadline cut the trial off.

    Args:
        subjects: the models of the workload, by name.
        job: the trial with its weights.
        seed: seed for all random numbers of the trial.
        left: time to the deadline in seconds.
        threads: number of threads that PyTorch may use.
    """
    torch.set_num_threads(threads)
    try:
        return TrialRunner(subjects, seed)(job.trial, job.states, job.shared, monotonic() + left)
    except TimeUpError:
        return None
