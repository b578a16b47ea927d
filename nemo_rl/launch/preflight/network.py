"""Checks between nodes: names, ports, clocks. Each node asks the head alone.

The head serves its clock on a port of the job's block, so one connection per node
shows that the head is reached, and how far the clocks are apart.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from threading import Thread

from nemo_rl.launch.preflight.checks import (
    WARN,
    Check,
    Context,
    Finding,
    bad,
    ok,
    skipped,
)
from nemo_rl.launch.ray_start import BLOCK, PORT_BAND, plan_ports

SKEW_S = 2.0
FAR_SKEW_S = 60.0
_TIME = struct.Struct("!d")


class ClockServer:
    """Tells whoever connects what time it is here; ends with `close`."""

    def __init__(self, port: int) -> None:
        """Listen on all addresses."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("", port))
        self._socket.listen(4096)
        self.port: int = self._socket.getsockname()[1]
        Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.sendall(_TIME.pack(time.time()))
                except OSError:
                    continue  # The other side has gone.

    def close(self) -> None:
        """Stop listening."""
        # Wakes the thread that waits in accept; a second time there is none.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def skew(address: str, port: int, timeout_s: float = 5.0) -> tuple[float, float]:
    """Return (seconds this clock is ahead of the head's, by how much that may err).

    Raises:
        OSError: the head is not reached.
    """
    best = (0.0, float("inf"))
    for _ in range(3):
        before = time.time()
        with socket.create_connection((address, port), timeout=timeout_s) as connection:
            data = connection.recv(_TIME.size, socket.MSG_WAITALL)
        after = time.time()
        if len(data) == _TIME.size and (after - before) / 2 < best[1]:
            theirs = _TIME.unpack(data)[0]
            best = ((before + after) / 2 - theirs, (after - before) / 2)
    return best


def head_clock(context: Context) -> Finding:
    """Whether the head is reached by TCP, and the clocks agree."""
    head = context.extra.get("head")
    if head is None:
        return skipped("one node")
    address = f"{head['ip']}:{head['port']}"
    try:
        ahead, error = skew(head["ip"], head["port"])
    except OSError as reason:
        cure = "a firewall, or two networks: set the interface (NCCL_SOCKET_IFNAME)"
        return bad(f"{address}: {reason}", "the head is reached", cure)
    text, limit = f"{ahead:+.3f} s from the head's (+-{error:.3f})", f"{SKEW_S:.0f} s"
    if abs(ahead) - error > FAR_SKEW_S:
        return bad(text, limit, "start the time service (chronyd) on this node")
    if abs(ahead) - error > SKEW_S:
        cure = "start the time service (chronyd) on this node"
        return bad(text, limit, cure, verdict=WARN)
    return ok(text, limit)


def names(context: Context) -> Finding:
    """Whether this node resolves itself, the head and the node after it.

    Over all nodes every name is so resolved three times, not once by everybody.
    """
    wanted = [context.node, *context.extra.get("peers", ())]
    wrong = []
    began = time.monotonic()
    for name in dict.fromkeys(filter(None, wanted)):
        try:
            socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
        except socket.gaierror as error:
            wrong.append(f"{name}: {error.strerror}")
    seconds = time.monotonic() - began
    limit = "every name has an address, in 2 s"
    if wrong:
        return bad("; ".join(wrong), limit, "mend DNS or /etc/hosts on this node")
    text = f"{len(set(wanted))} names in {seconds:.2f} s"
    if seconds > 2:
        cure = "a name server does not answer: see /etc/resolv.conf"
        return bad(text, limit, cure, verdict=WARN)
    return ok(text, limit)


def ports(context: Context) -> Finding:
    """Whether a block of ports is free here, below the ephemeral ones."""
    plan = context.extra.get("ports") or plan_ports(context.job_id)
    wanted = PORT_BAND[0] + BLOCK * (
        context.job_id % ((PORT_BAND[1] - PORT_BAND[0]) // BLOCK)
    )
    text = f"{plan.first}-{plan.first + BLOCK - 1}"
    if plan.first != wanted:
        text += f" ({wanted} is taken)"
    low = ephemeral()
    if low < plan.first + BLOCK:
        cure = f"net.ipv4.ip_local_port_range begins at {low}: raise it above 20000"
        return bad(text, "below the ephemeral ports", cure, verdict=WARN)
    return ok(text, "a free block below the ephemeral ports")


def ephemeral() -> int:
    """Return the first port the kernel gives to outgoing connections."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        return int(file.read().split()[0])


CHECKS = (
    Check("names", "ranks find one another by name", names, 20),
    Check("ports", "Ray's ports must be free and stay free", ports),
    Check(
        "clock", "logs and tokens compare times; all talk to the head", head_clock, 20
    ),
)
