#!/usr/bin/env python3
"""Measures how soon the master detects failures and acts, and what that costs.

    cargo build --release && benches/liveness.py

* abort: from the deadline of a hung worker to the record that it is aborted.
* replace: from the SIGKILL of a worker to the record that its replacement is ready.
* crowd: 1,000 workers: the time until all are ready, the master's CPU use while they are idle, and
  the time until 500 that were killed at once are replaced.
* share: the cost of a request under `mio` with and without a `timeout`, in alternating rounds: CPU
  time of the whole process tree over requests served. wrk makes the load.

Prints medians, with the minimum and maximum in brackets. Results from a busy machine mean little.

Needs Python 3.8 and Linux; and wrk, for the share.
"""

import argparse
import contextlib
import fcntl
import json
import os
import pathlib
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import compare

HERE = pathlib.Path(__file__).resolve().parent
TIMEOUT = 60.0
F_SETPIPE_SZ = 1031


class Server:
    """A server whose log is read as it comes, so that each record has a time."""

    def __init__(self, binary, *flags, binds=True):
        self.port = compare.free_port()
        bind = ["--bind", f"127.0.0.1:{self.port}"] if binds else []
        command = [str(binary), *bind, "--log-format", "json", *flags]
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *command],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )
        # The server drops records if the pipe is full, and a crowd logs many at once.
        fcntl.fcntl(self.process.stderr, F_SETPIPE_SZ, 1 << 20)
        self.pid, self.rest, self.records = self.process.pid, b"", []
        self.workers = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            # The log is read to the end, so that the pipe does not fill up.
            self.process.communicate(timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def next(self):
        """Returns the next record, and when it was read."""
        end = time.monotonic() + TIMEOUT
        while not self.records:
            if not select.select([self.process.stderr], [], [], max(0, end - time.monotonic()))[0]:
                sys.exit("liveness.py: the server says nothing more")
            piece, now = os.read(self.process.stderr.fileno(), 1 << 16), time.monotonic()
            if not piece:
                sys.exit("liveness.py: the server has gone")
            *lines, self.rest = (self.rest + piece).split(b"\n")
            self.records = [(json.loads(line), now) for line in lines]
        record, now = self.records.pop(0)
        if record["msg"] == "worker ready":
            self.workers[record["pid"]] = record["slot"]
        elif record["msg"] == "worker exited":
            self.workers.pop(record["pid"], None)
        return record, now

    def wait(self, message):
        while True:
            record, now = self.next()
            if record["msg"] == message:
                return now

    def wait_workers(self, count):
        """Waits until so many workers are ready. Returns when the last record was read."""
        while True:
            now = self.next()[1]
            if len(self.workers) == count:
                return now


def show(what, values, unit):
    spread = f"[{min(values):.2f} to {max(values):.2f}]" if len(values) > 1 else ""
    print(f"  {what:44} {statistics.median(values):9.2f} {unit:8} {spread}", flush=True)


def abort(binary, count):
    timeout, late = 1.0, []
    for _ in range(count):
        with Server(binary, "-k", "mio", "-t", f"{timeout}s") as server:
            server.wait("all workers ready")
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")
                sent = time.monotonic()
                late.append((server.wait("worker hung") - sent - timeout) * 1e3)
    show("abort: after the deadline", late, "ms")


def replace(binary, count):
    for cls in ("sync", "threads", "mio"):
        with Server(binary, "-k", cls, "-w", "2") as server:
            server.wait("all workers ready")
            took = []
            for _ in range(count):
                time.sleep(0.05)
                victim = next(iter(server.workers))
                killed = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                took.append((server.wait("worker ready") - killed) * 1e3)
                server.workers.pop(victim, None)
        show(f"replace: {cls}", took, "ms")


def on_cpu(pid):
    """Returns the CPU time of a process in seconds."""
    return int(pathlib.Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def crowd(binary, size, idle):
    with Server(binary, "-k", "sync", "-w", str(size)) as server:
        ready = server.wait("all workers ready") - server.started
        show(f"crowd: {size} workers ready", [ready], "s")
        show("crowd: of which the master ran", [on_cpu(server.pid)], "s")
        time.sleep(1)
        before = on_cpu(server.pid)
        time.sleep(idle)
        spent = (on_cpu(server.pid) - before) / idle * 100
        show("crowd: the master while they are idle", [spent], "% CPU")
        victims = list(server.workers)[: size // 2]
        killed = time.monotonic()
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        for victim in victims:
            server.workers.pop(victim)
        # The records of their exits come first, and find no worker to remove.
        while len(server.workers) < size:
            now = server.next()[1]
        show(f"crowd: {size // 2} killed at once are replaced", [now - killed], "s")


def share(binary, rounds, seconds):
    flags = ["-k", "mio", "-w", "1", "--log-level", "warning"]
    costs = {"30s": [], "0": []}
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        script = pathlib.Path(directory, "report.lua")
        script.write_text(compare.LUA)
        servers = {
            timeout: stack.enter_context(Server(binary, *flags, "-t", timeout)) for timeout in costs
        }
        time.sleep(0.5)
        trees = {name: compare.process_tree(server.pid) for name, server in servers.items()}
        for server in servers.values():
            compare.load(server.port, "keep-alive", 1, 64, script)
        for number in range(rounds):
            for name in sorted(costs, reverse=number % 2 == 0):
                before = sum(map(on_cpu, trees[name]))
                served = compare.load(servers[name].port, "keep-alive", seconds, 64, script)[0]
                costs[name].append((sum(map(on_cpu, trees[name])) - before) * 1e6 / served)
    show("share: mio with a timeout", costs["30s"], "µs/req")
    show("share: mio without", costs["0"], "µs/req")
    ratios = [(one / other - 1) * 100 for one, other in zip(costs["30s"], costs["0"])]
    show("share: of the timeout, pair by pair", ratios, "%")
    print(f"  {'share: of the timeout, least to least':44} "
          f"{(min(costs['30s']) / min(costs['0']) - 1) * 100:9.2f} %")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=20, help="times of each event (20)")
    parser.add_argument("--workers", type=int, default=1000, help="workers of the crowd (1000)")
    parser.add_argument("--rounds", type=int, default=10, help="pairs of turns for the share (10)")
    parser.add_argument("--only", action="append", choices=["abort", "replace", "crowd", "share"])
    parser.add_argument("--binary", type=pathlib.Path, help="target/release/ostler")
    arguments = parser.parse_args()
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target"))
    binary = (arguments.binary or target / "release" / "ostler").resolve()
    chosen = arguments.only or ["abort", "replace", "crowd", "share"]
    if "abort" in chosen:
        abort(binary, arguments.count)
    if "replace" in chosen:
        replace(binary, arguments.count)
    if "crowd" in chosen:
        crowd(binary, arguments.workers, 40)  # longer than a timeout: all are checked
    if "share" in chosen:
        share(binary, arguments.rounds, 2)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
