"""Tests of nemo_rl.launch.preflight.network, with real sockets."""

from __future__ import annotations

import socket
import struct
import time
from threading import Thread

import pytest

from nemo_rl.launch.preflight import network
from nemo_rl.launch.preflight.network import ClockServer, skew


@pytest.fixture
def clock():
    server = ClockServer(0)
    yield server
    server.close()


def other_clock(ahead):
    """A server of the same protocol whose clock is wrong."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.sendall(struct.pack("!d", time.time() + ahead))

    Thread(target=serve, daemon=True).start()
    return server


def test_the_same_clock_agrees(clock, context):
    ahead, error = skew("127.0.0.1", clock.port)
    assert abs(ahead) <= error + 0.01
    head = {"ip": "127.0.0.1", "port": clock.port}
    assert network.head_clock(context(extra={"head": head})).verdict == "ok"
    assert network.head_clock(context()).verdict == "skipped"


@pytest.mark.parametrize(("ahead", "verdict"), [(1, "ok"), (9, "warn"), (-99, "fail")])
def test_clocks_apart(context, ahead, verdict):
    with other_clock(ahead) as server:
        head = {"ip": "127.0.0.1", "port": server.getsockname()[1]}
        found = network.head_clock(context(extra={"head": head}))
    assert found.verdict == verdict
    assert found.measured.startswith(f"{-ahead:+d}."[:2])


def test_a_head_that_is_not_reached(clock, context):
    clock.close()
    found = network.head_clock(
        context(extra={"head": {"ip": "127.0.0.1", "port": clock.port}})
    )
    assert found.verdict == "fail" and "refused" in found.measured


def test_names(context):
    assert network.names(context()).verdict == "ok"
    found = network.names(context(extra={"peers": ("localhost", "no-host.invalid")}))
    assert found.verdict == "fail" and found.measured.startswith("no-host.invalid: ")


def test_ports(context):
    found = network.ports(context(job_id=3))
    first = int(found.measured.partition("-")[0])
    with socket.create_server(("", first)):
        other = network.ports(context(job_id=3))
    assert other.verdict == found.verdict
    assert int(other.measured.partition("-")[0]) != first
    assert "is taken" in other.measured
    assert network.ephemeral() > 1024
