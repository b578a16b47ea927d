"""Start or join Ray, safely and quietly: token, no dashboard, no telemetry, no noise.

Knows nothing about workers or placement; ``virtual_cluster.py`` asks for places.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_rl.distributed.rank import unset
from nemo_rl.utils import env, pulse
from nemo_rl.utils.exceptions import ConfigurationError, ResourceError
from nemo_rl.utils.imports import require

logger = logging.getLogger(__name__)

QUIET: dict[str, str] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
"""Ray's own variables, set where the user has not set them."""

SLICE_S = 1.0
MIN_OBJECT_STORE = 80 * 2**20
MAX_OBJECT_STORE = 4 * 2**30
"""Bounds of the default object store; batches are small beside weights."""


class _Session:
    """What this process has started, so that it can be ended once."""

    def __init__(self) -> None:
        self.connected = False
        self.local = False
        self.token_folder: Path | None = None


_session = _Session()


def connect(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: int = 0,
    object_store_memory: int | None = None,
    token_file: str | Path | None = None,
) -> None:
    """Join the Ray at ``address`` (or RAY_ADDRESS), else start one in this machine.

    A Ray that is started here demands a token (Ray's RAY_AUTH_MODE=token) unless the
    user has set RAY_AUTH_MODE himself; the token lies in a file only he can read.
    Calling it again while connected does nothing.

    Args:
        address: ``host:port`` of a running Ray's GCS.
        num_cpus: Logical CPUs to offer where Ray is started; the cores of this
            process when None. More workers than cores need a larger number.
        num_gpus: GPUs to offer where Ray is started.
        object_store_memory: Bytes of shared memory for batches in flight.
        token_file: File with the token of the Ray to join; when None, Ray looks at
            RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH and ~/.ray/auth_token.

    Raises:
        ConfigurationError: Ray is not installed, or the token file is missing.
        ResourceError: The Ray at the address cannot be reached or refuses the token.
    """
    if _session.connected:
        return
    address = address or env.read("RAY_ADDRESS")
    _prepare_environment(join=bool(address), token_file=token_file)
    ray = require("ray")
    if ray.is_initialized():
        # Whoever started it in this process also ends it.
        return
    common = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    with _kept_signal_handler():
        if address:
            _join(ray, address, common)
        else:
            ray.init(
                address="local",
                num_cpus=num_cpus or len(os.sched_getaffinity(0)),
                num_gpus=num_gpus,
                object_store_memory=object_store_memory or default_object_store(),
                include_dashboard=False,
                **common,
            )
            _session.local = True
    _session.connected = True
    atexit.register(disconnect)


def disconnect() -> None:
    """Leave Ray, and end it if ``connect`` started it; calling it twice is harmless."""
    if _session.connected:
        atexit.unregister(disconnect)
        require("ray").shutdown()
    _session.connected = _session.local = False
    folder, _session.token_folder = _session.token_folder, None
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        _forget_token()


def wait_for_one(refs: list[Any], deadline: float | None) -> tuple[list, list]:
    """Wait until one of several calls has ended: (that one, the others).

    Args:
        refs: what Ray gave for the calls.
        deadline: by ``time.monotonic``; then ([], refs) is returned. None: no end.

    Raises:
        Hung: the watchdog ends this run.
    """
    wait = require("ray").wait
    while True:
        left = math.inf if deadline is None else deadline - time.monotonic()
        # In slices: as long as Ray waits, no handler of a signal runs here.
        ready, others = wait(refs, num_returns=1, timeout=max(0.0, min(SLICE_S, left)))
        if ready or left <= SLICE_S:
            return ready, others
        pulse.check()


def is_local() -> bool:
    """Return whether Ray was started by this process: no other node will join."""
    return _session.local


def address_here() -> str:
    """Return this host's address as the nodes of the Ray cluster reach it."""
    if _session.local or not require("ray").is_initialized():
        return "127.0.0.1"
    return require("ray").util.get_node_ip_address()


def create_token_file(folder: str | Path) -> Path:
    """Write a fresh 256-bit token into ``folder`` and return the file's path.

    The file is created readable for its owner only; the token itself is never logged
    and never part of an environment variable.
    """
    path = Path(folder) / "ray_auth_token"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    return path


def auth_env(token_file: str | Path) -> dict[str, str]:
    """Return the variables that make Ray's processes demand and show this token."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}


def default_object_store() -> int:
    """Return bytes for Ray's object store: half of what /dev/shm has free, bounded."""
    shm = Path("/dev/shm")
    free = shutil.disk_usage(shm).free if shm.is_dir() else 2 * MIN_OBJECT_STORE
    return max(MIN_OBJECT_STORE, min(MAX_OBJECT_STORE, free // 2))


def driver_python_path() -> str:
    """Return a PYTHONPATH with which a worker imports what this process can import.

    These are the folders of sys.path outside the installation: the checkout, the
    recipe's folder, and the working folder of an interactive session.
    """
    prefixes = {Path(p).resolve() for p in (sys.prefix, sys.base_prefix)}
    found: list[str] = []
    for entry in sys.path:
        path = Path(entry or ".").resolve()
        installed = any(
            (prefix / part) in (path, *path.parents)
            for prefix in prefixes
            for part in ("lib", "lib64")
        )
        if path.is_dir() and not installed and str(path) not in found:
            found.append(str(path))
    return os.pathsep.join(found)


def _prepare_environment(*, join: bool, token_file: str | Path | None) -> None:
    """Set Ray's variables; Ray reads them when imported and when its daemons start."""
    present = env.inherited()
    env.apply({k: v for k, v in QUIET.items() if k not in present})
    if env.flag("NRL_FORCE_REBUILD_VENVS"):
        logger.warning(
            "NRL_FORCE_REBUILD_VENVS has no effect: workers run in the environment of "
            "this process (%s). Install anew with `make setup`, or build the container "
            "image again.",
            sys.prefix,
        )
    if token_file is not None:
        if not Path(token_file).is_file():
            raise ConfigurationError(
                f"The token file of Ray {str(token_file)!r} does not exist; it is "
                "written where the Ray cluster is started."
            )
        env.apply(auth_env(token_file))
    elif not join and "RAY_AUTH_MODE" not in present:
        _session.token_folder = Path(tempfile.mkdtemp(prefix="nemo_rl-ray-"))
        env.apply(auth_env(create_token_file(_session.token_folder)))
    elif present.get("RAY_AUTH_MODE", "").lower() == "disabled":
        logger.warning(
            "RAY_AUTH_MODE=disabled: anyone who reaches this host's network can run "
            "code in this Ray."
        )
    _reload_auth()


@contextlib.contextmanager
def _kept_signal_handler() -> Iterator[None]:
    """Keep what the program does on SIGTERM: Ray would exit instead of saving."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    ours = callable(before) and before is not signal.default_int_handler
    if ours and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _reload_auth() -> None:
    """Make a Ray that has been imported already read the variables again."""
    if "ray" in sys.modules:
        from ray._raylet import AuthenticationTokenLoader, Config

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


def _forget_token() -> None:
    unset(auth_env(""))
    _reload_auth()


def _await_nodes() -> None:
    """Wait for the file of NEMO_RL_RAY_READY; whoever started us has the deadline.

    Raises:
        ResourceError: that process is gone.
    """
    ready, parent = env.read("NEMO_RL_RAY_READY"), os.getppid()
    while ready is not None and not Path(ready).exists():
        if os.getppid() != parent:
            raise ResourceError(
                f"{ready} did not appear before the agent of this node ended: not all "
                "nodes have joined Ray."
            )
        time.sleep(0.1)


def _join(ray, address: str, common: dict) -> None:
    _await_nodes()
    try:
        ray.init(address=address, **common)
    except ray.exceptions.AuthenticationError as error:
        raise ResourceError(
            f"The Ray at {address} refuses this process: it has no or another token. "
            "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the token file of that "
            "cluster."
        ) from error
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        raise ResourceError(
            f"No Ray answers at {address}: {str(error).splitlines()[0]} "
            "Check RAY_ADDRESS, that the head node is up, and that the token "
            "(RAY_AUTH_TOKEN_PATH) is that cluster's."
        ) from error
