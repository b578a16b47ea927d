"""Ask a Ray head which nodes are alive, without joining the cluster.

A process that joins Ray dies with its raylet; the agent has to outlive it to say
what happened, so it only talks to the head's node table.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from typing import Any

from nemo_rl.launch.bulletin import Bulletin
from nemo_rl.utils.imports import require

TIMEOUT_S = 5.0


def alive_addresses(address: str) -> list[str] | None:
    """Return the addresses of the nodes alive, None while the head does not answer.

    Args:
        address: "ip:port" of the head. Access is by the token of this process's
            environment (RAY_AUTH_TOKEN_PATH).

    Raises:
        ConfigurationError: Ray is not installed.
    """
    # By name: the package must stay importable where there is no Ray.
    errors = require("ray").exceptions
    # Ray's client would wait for the head for minutes, and its caller has to go on.
    if not _listens(address):
        return None
    states = import_module("ray.core.generated.gcs_pb2").GcsNodeInfo
    try:
        nodes = _client(address).get_all_node_info(timeout=TIMEOUT_S)
    except (errors.RayError, RuntimeError, OSError):
        _client.cache_clear()
        return None
    return [
        node.node_manager_address
        for node in nodes.values()
        if node.state == states.ALIVE
    ]


def all_joined(address: str, num_nodes: int) -> bool:
    """Return whether so many nodes of the head's Ray are alive."""
    return len(alive_addresses(address) or []) >= num_nodes


def who_is_missing(address: str, board: Bulletin, names: Iterable[str]) -> str:
    """Name the nodes that Ray does not know, each with what it said last."""
    alive = set(alive_addresses(address) or [])
    said = {name: board.node_status(name) for name in names}
    missing = [name for name in said if said[name]["ip"] not in alive]
    return ", ".join(f"{name} ({said[name]['state']})" for name in missing)


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1.0):
            return True
    except OSError:
        return False


@lru_cache(maxsize=1)
def _client(address: str) -> Any:
    return import_module("ray._raylet").GcsClient(address=address)
