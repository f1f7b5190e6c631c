#!/usr/bin/env python3
"""Measures what the control interface costs the master, and how late the master is while it is attacked.

    cargo build --release && benches/control.py

* cost: the master's CPU time an answer, with 1,000 workers in one pool, and with 64 pools of 64
  workers. Before, each worker has served requests.
* late: the time from the SIGKILL of a worker to the record that it has exited, and the latency of
  /healthz at `metrics_bind`, unattacked and while clients of `metrics_bind` attack. The attackers
  have the lowest priority (nice 19): what is measured is the master, not the competition for cores.

Results from a busy machine mean little.

Needs Python 3.8 and Linux; and about 5 GB of memory for 4,096 workers.
"""

import argparse
import contextlib
import os
import pathlib
import selectors
import signal
import socket
import statistics
import sys
import tempfile
import time

import compare
import liveness

HERE = pathlib.Path(__file__).resolve().parent
PATHS = ["/healthz", "/readyz", "/metrics", "/v1/status", "/"]


def ask(address, path, timeout=60.0):
    """Asks for a path and returns the number of bytes of the answer."""
    with socket.create_connection(address, timeout=timeout) as client:
        client.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        size = 0
        while piece := client.recv(1 << 18):
            size += len(piece)
        return size


def occupy(port, count):
    """Has `count` workers serve a request at a time, so that each has counted some."""
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(b"GET /sleep?ms=1000 HTTP/1.0\r\nHost: x\r\n\r\n")
            selector.register(client, selectors.EVENT_READ)
        end = time.monotonic() + 30
        while selector.get_map() and time.monotonic() < end:
            for key, _ in selector.select(1):
                if not key.fileobj.recv(4096):
                    selector.unregister(key.fileobj)


def cost_of(name, binary, flags, ports, workers, count):
    metrics = ("127.0.0.1", compare.free_port())
    flags = [*flags, "--timeout", "0", "--metrics-bind", "{}:{}".format(*metrics)]
    with liveness.Server(binary, *flags, binds=not ports) as server:
        server.wait("all workers ready")
        for _ in range(3):
            for port in ports or [server.port]:
                occupy(port, workers)
        for path in PATHS:
            ask(metrics, path)
            costs, size = [], 0
            for _ in range(count):
                time.sleep(0.3)
                before = liveness.on_cpu(server.pid)
                size = ask(metrics, path)
                costs.append((liveness.on_cpu(server.pid) - before) * 1e3)
            liveness.show(f"{name}: {path}, {size / 1e3:.0f} kB", costs, "ms")


def cost(binary, count):
    cost_of("1,000 workers", binary, ["-k", "sync", "-w", "1000"], [], 1000, count)
    ports = [compare.free_port() for _ in range(64)]
    pools = "".join(f'  p{n}: {{bind: "127.0.0.1:{port}"}}\n' for n, port in enumerate(ports))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(f"worker_class: sync\nworkers: 64\npools:\n{pools}")
        file.flush()
        cost_of("64 x 64 workers", binary, ["-c", file.name], ports, 64, count)


def connect(address):
    client = socket.create_connection(address, timeout=5)
    client.settimeout(0.5)
    return client


def request(path, count=1):
    """Returns requests in a row; the last one ends the connection, if there are several."""
    one = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n"
    last = "Connection: close\r\n" if count > 1 else ""
    return f"{(one + chr(13) + chr(10)) * (count - 1)}{one}{last}\r\n".encode()


def flood(address, text):
    """Sends a text over and over, on new connections, and reads what comes."""
    while True:
        with contextlib.suppress(OSError), connect(address) as client:
            client.sendall(text)
            while client.recv(1 << 16):
                pass


def hold(address, count, text):
    """Connects clients that send a text and never read, and connects anew those that were closed."""
    clients = []
    while True:
        with contextlib.suppress(OSError):
            client = connect(address)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            client.send(text)
            clients.append(client)
        if len(clients) >= count:
            time.sleep(0.01)
            clients.pop(0).close()


def drip(address, count):
    """Sends requests of `count` clients byte by byte."""
    clients = []
    while True:
        for at in range(count):
            with contextlib.suppress(OSError):
                if at >= len(clients):
                    clients.append(connect(address))
                    clients[at].send(b"GET /metrics HTTP/1.1\r\nX: ")
                try:
                    clients[at].send(b"x")
                except OSError:
                    clients[at] = connect(address)
        time.sleep(0.001)


def gigabyte(address):
    while True:
        with contextlib.suppress(OSError), connect(address) as client:
            client.sendall(b"POST /v1/status HTTP/1.1\r\nHost: localhost\r\n"
                           b"Content-Length: 1073741824\r\n\r\n")
            for _ in range(1 << 14):
                client.sendall(bytes(1 << 16))


# The attacker, its arguments after the address, and how many of it run at the same time.
ATTACKS = {
    "unattacked": (None, (), 0),
    "garbage": (flood, (bytes([255]) * (1 << 16),), 4),
    "requests of a gigabyte": (gigabyte, (), 4),
    "1,000 idle clients": (hold, (1000, b""), 1),
    "/v1/events, never read": (hold, (64, request("/v1/events?after=0")), 1),
    "/metrics, never read": (hold, (64, request("/metrics", 40)), 1),
    "16 scrapers": (flood, (request("/metrics", 8),), 16),
    "16 readers of /v1/status": (flood, (request("/v1/status", 8),), 16),
    "slow loris": (drip, (16,), 1),
}


@contextlib.contextmanager
def attacked(attack, arguments, count, address):
    pids = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.nice(19)
            attack(address, *arguments)
        pids.append(pid)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def memory(pid):
    """Returns the resident memory of a process in megabytes."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1e3


def exits(server, count):
    """Kills workers, and returns how late their exits are recorded, in milliseconds."""
    late = []
    for _ in range(count):
        time.sleep(0.1)
        victim = next(iter(server.workers))
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        late.append((server.wait("worker exited") - killed) * 1e3)
        server.wait("worker ready")
    return late


def probes(address, count):
    late = []
    for _ in range(count):
        time.sleep(0.05)
        with contextlib.suppress(OSError):
            asked = time.monotonic()
            ask(address, "/healthz", 10)
            late.append((time.monotonic() - asked) * 1e3)
    return late or [float("nan")]


def line(values):
    values = sorted(values)
    p95 = values[min(len(values) - 1, int(len(values) * 0.95))]
    return f"{statistics.median(values):7.2f} {p95:7.2f} {values[-1]:7.2f}"


def late(binary, workers, count):
    print(f"  with {workers} workers, in ms:   until an exit is recorded     latency of /healthz"
          f"     RSS, MB")
    print(f"  {'':26} {'median':>7} {'p95':>7} {'max':>7}   {'median':>7} {'p95':>7} {'max':>7}")
    for name, (attack, arguments, number) in ATTACKS.items():
        address = ("127.0.0.1", compare.free_port())
        flags = ["-k", "sync", "-w", str(workers), "--timeout", "0"]
        flags += ["--metrics-bind", "{}:{}".format(*address)]
        with liveness.Server(binary, *flags) as server:
            server.wait("all workers ready")
            with attacked(attack, arguments, number, address):
                time.sleep(1)
                recorded, probed = exits(server, count), probes(address, count)
                print(f"  {name:26} {line(recorded)}   {line(probed)}   {memory(server.pid):7.1f}",
                      flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=20, help="times of each event (20)")
    parser.add_argument("--workers", type=int, default=100, help="workers of the attacked (100)")
    parser.add_argument("--only", action="append", choices=["cost", "late"])
    parser.add_argument("--binary", type=pathlib.Path, help="target/release/ostler")
    arguments = parser.parse_args()
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target"))
    binary = (arguments.binary or target / "release" / "ostler").resolve()
    chosen = arguments.only or ["cost", "late"]
    if "cost" in chosen:
        cost(binary, arguments.count)
    if "late" in chosen:
        late(binary, arguments.workers, arguments.count)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
