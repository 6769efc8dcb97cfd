"""Connection to a Ray cluster."""

from __future__ import annotations

import logging
from typing import Any

from .errors import InputError, MissingExtraError, first_line

__all__ = ["connect"]


def connect(address: str, command: str) -> Any:
    """Connect to a Ray cluster and return the module ``ray``, whose ``shutdown()`` disconnects again.

    Args:
        address: address of a cluster, ``auto`` for the cluster that this machine belongs to, or ``local`` to start a
            cluster on this machine.
        command: command that has the flag ``--ray``, for messages.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: the cluster cannot be reached.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{command} --ray", "ray") from error
    # Nobody opens the dashboard of a cluster that lives as long as one command.
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"--ray: {address!r} cannot be reached: {first_line(error)}") from error
    return ray
