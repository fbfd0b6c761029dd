"""Durations, and what Prometheus gets: on the pool's socket and on the loopback port, whoever else connects there."""

from __future__ import annotations

import errno
import http.client
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import CONFIG, stop_service, wait_until, write_config
from vm_kernel import paths
from vm_kernel.pool.client import PoolConnection
from vm_kernel.pool.http import MAX_CONNECTIONS, respond
from vm_kernel.pool.metrics import BUCKETS_S, WINDOW, Durations

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def durations(seconds: list[float]) -> Durations:
    found = Durations()
    for value in seconds:
        found.add(value)
    return found


@pytest.mark.parametrize(
    ("seconds", "p50", "p95", "p99"),
    [
        ([], None, None, None),
        ([0.002], 2.0, 2.0, 2.0),
        ([0.001, 0.9], 1.0, 900.0, 900.0),
        ([n / 1000 for n in range(1, 101)], 50.0, 95.0, 99.0),
    ],
)
def test_quantiles_are_of_the_nearest_rank(
    seconds: list[float], p50: float | None, p95: float | None, p99: float | None
) -> None:
    assert durations(seconds).summary() == {"count": len(seconds), "p50": p50, "p95": p95, "p99": p99}


def test_only_the_last_ones_count() -> None:
    found = durations([9.0] * 10 + [0.001] * WINDOW)
    assert found.summary() == {"count": WINDOW + 10, "p50": 1.0, "p95": 1.0, "p99": 1.0}
    assert found.latest(2) == [1.0, 1.0]
    assert found.latest(0) == []


def test_buckets_are_cumulative_and_count_all() -> None:
    found = durations([0.0001, 0.0005, 0.3, 1000.0])
    buckets = dict(found.buckets())
    assert (buckets["0.0005"], buckets["0.25"], buckets["0.5"]) == (2, 2, 3)
    assert (buckets[str(BUCKETS_S[-1])], buckets["+Inf"]) == (3, 4)
    assert found.total_s == pytest.approx(1000.3006)


def parse(text: str) -> Samples:
    """By name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_the_pools_sizes_times_and_failures_are_there(pool: PoolConnection) -> None:
    with closing(PoolConnection.open()) as holder:
        lease = holder.acquire()
        status, samples = pool.status(), parse(pool.metrics())
        lease.stream.close()
    leased = value(samples, "vm_kernel_vms", profile="default", state="leased")
    assert leased == status["profiles"][0]["leased"] >= 1
    assert value(samples, "vm_kernel_vms_max", profile="default") == 12
    assert value(samples, "vm_kernel_vms", profile="roomy", state="warm") == 0, "profiles that nobody has used, too"
    assert value(samples, "vm_kernel_waiting", profile="default") == 0
    assert value(samples, "vm_kernel_profile_broken", profile="default") == 0
    assert value(samples, "vm_kernel_leases_total") == status["totals"]["leases"]
    assert value(samples, "vm_kernel_acquire_seconds_count") == status["acquire_ms"]["count"]
    for name in ("clone", "restore"):
        count = value(samples, f"vm_kernel_{name}_seconds_count", profile="default")
        assert count == value(samples, f"vm_kernel_{name}_seconds_bucket", profile="default", le="+Inf") >= 1
    restore, clone = (value(samples, f"vm_kernel_{n}_seconds_sum", profile="default") for n in ("restore", "clone"))
    assert 0 < restore < clone
    assert value(samples, "vm_kernel_host_memory_available_bytes") > 1 << 20
    assert value(samples, "process_open_fds") > 5
    assert value(samples, "process_resident_memory_bytes") > 10 << 20


def test_refused_requests_are_counted_by_their_error(pool: PoolConnection) -> None:
    def refused() -> float:
        return parse(pool.metrics()).get(("vm_kernel_refused_requests_total", frozenset({("error", error)})), 0.0)

    error = "PoolRequestError"
    before = refused()
    with closing(_connected()) as sock:
        sock.sendall(b"hello\n")
        assert b'"event":"error"' in _all(sock)
    assert refused() == before + 1


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_pools_socket_answers_curl(pool: PoolConnection, pieces: int) -> None:
    request = b"GET /metrics HTTP/1.1\r\nHost: pool\r\nAccept: */*\r\n\r\n"
    with closing(_connected()) as sock:
        for number in range(pieces):
            size = len(request) // pieces + 1
            sock.sendall(request[number * size : (number + 1) * size])
        head, _, body = _all(sock).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert value(parse(body.decode()), "vm_kernel_leases_total") >= 0


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /metrics HTTP/1.1", "200 OK"),
        ("HEAD /metrics?x=1 HTTP/1.0", "200 OK"),
        ("GET / HTTP/1.1", "404 Not Found"),
        ("GET /metrics/../x HTTP/1.1", "404 Not Found"),
        ("POST /metrics HTTP/1.1", "405 Method Not Allowed"),
        ("GET /metrics", "400 Bad Request"),
        ("", "400 Bad Request"),
        ("\x00\xff \r \n", "400 Bad Request"),
    ],
)
def test_what_is_answered_over_http(line: str, status: str) -> None:
    answer = respond(line, lambda: "some 1.0\n").decode()
    assert answer.startswith(f"HTTP/1.1 {status}\r\n")
    assert answer.endswith("some 1.0\n") == line.startswith("GET /metrics HTTP")


@pytest.fixture(scope="module")
def port(vm_home: Path) -> Iterator[int]:
    """Of a service that was told to listen on it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        number = int(sock.getsockname()[1])
    stop_service()
    write_config(f"{CONFIG}c.PoolConfig.metrics_port = {number}\n")
    PoolConnection.open().close()
    yield number
    stop_service()
    write_config(CONFIG)


def test_the_port_serves_metrics_on_the_loopback_alone(port: int) -> None:
    text = _get(port, "/metrics")
    assert value(parse(text), "vm_kernel_vms_max", profile="default") == 12
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if line.split()[3] == "0A"]
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b'{"op": "stop"}\n\r\n\r\n',
        b"\x16\x03\x01" + os.urandom(300),
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"x: y\r\n" * 50_000,
    ],
)
def test_garbage_on_the_port_is_refused(port: int, request_bytes: bytes) -> None:
    with closing(socket.create_connection(("127.0.0.1", port), timeout=60)) as sock:
        try:
            sock.sendall(request_bytes)
            sock.shutdown(socket.SHUT_WR)
            answer = _all(sock)
        except OSError as error:  # the service has hung up
            if not isinstance(error, ConnectionError) and error.errno != errno.ENOTCONN:
                raise
            answer = b""
    assert not answer.startswith(b"HTTP/1.1 200")
    assert "vm_kernel_leases_total" in _get(port, "/metrics")


def test_clients_that_say_nothing_or_do_not_read_are_bounded_and_sent_away(port: int) -> None:
    silent = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(MAX_CONNECTIONS)]
    try:
        silent[0].sendall(b"GET /metrics HTTP/1.1\r\n\r\n")  # and never reads
        with closing(socket.create_connection(("127.0.0.1", port), timeout=60)) as one_too_many:
            assert _all(one_too_many) == b""
        # their time is up in a moment
        wait_until(lambda: bool(_get(port, "/metrics")), 60.0, "the port has room again")
        assert _all(silent[1]) == b""
    finally:
        for sock in silent:
            sock.close()


def test_a_port_that_is_taken_is_said_in_the_status_and_no_reason_to_give_no_vms(vm_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        stop_service()
        write_config(f"{CONFIG}c.PoolConfig.metrics_port = {taken.getsockname()[1]}\n")
        with closing(PoolConnection.open()) as connection:
            assert "in use" in connection.status()["metrics_port"]["error"]
            assert connection.acquire().vm.name
        stop_service()
        write_config(CONFIG)


def _get(port: int, path: str) -> str:
    """The body of the answer; empty if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    except (ConnectionError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def _connected() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(60)
    sock.connect(str(paths.pool_socket()))
    return sock


def _all(sock: socket.socket) -> bytes:
    received = b""
    try:
        while data := sock.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received
