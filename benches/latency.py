#!/usr/bin/env python3
"""Measures response times at 70 % of capacity, with a handler that takes 5 ms, and the memory of idle clients.

    cargo build --release --features tokio,uring --bins --example axum_hello --example open_loop
    benches/latency.py

* sleep: each server can run 16 handlers at a time, so its capacity is 3,200 requests a second. Requests
  begin at random times, at 70 % of that, over connections that are kept alive, and once more with a
  connection each (`close`). nginx stands before the class sync, as a proxy. axum, alone and under the
  class tokio, awaits a timer instead of blocking.
* idle: 10,000 clients have had a response each and stay connected. The figure is the growth of the
  proportional set size of all processes of the server, by client. What the kernel holds is not in it.

The servers run in turn, round after round. Needs Python 3.8 and Linux; nginx if it is installed.
"""

import argparse
import os
import pathlib
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import compare
from compare import Contestant, Skipped, running

HANDLERS = 16
SLEEP = 0.005
LOAD = 0.7
CLIENTS = 10_000

PROXY = """
worker_processes 2; daemon off; pid {directory}/proxy.pid; error_log {directory}/proxy.log;
events {{ worker_connections 24000; }}
http {{
    access_log off; keepalive_requests 1000000000; keepalive_timeout 600s;
    client_body_temp_path {directory}/a; proxy_temp_path {directory}/b; fastcgi_temp_path {directory}/c;
    uwsgi_temp_path {directory}/d; scgi_temp_path {directory}/e;
    upstream workers {{ server unix:{directory}/upstream; }}
    server {{
        listen 127.0.0.1:{port} reuseport backlog=4096;
        location / {{ proxy_pass http://workers; }}
    }}
}}
"""


def ostler(binary, kind, *flags):
    common = ["-k", kind, "--log-level", "error", "--worker-connections", "20000"]
    common += ["--keepalive", "600s", "--backlog", "4096", *flags]
    return Contestant(
        f"ostler {kind}", lambda port: [str(binary), *common, "--bind", f"127.0.0.1:{port}"]
    )


def proxied(binary, directory):
    """nginx before the class sync. A shell starts both, and ends both when it is told to."""

    def command(port):
        config = directory / "proxy.conf"
        config.write_text(PROXY.format(directory=directory, port=port))
        nginx = f"{compare.tool('nginx')} -p {directory} -c {config}"
        server = f"{binary} -k sync -w {HANDLERS} --log-level error --bind unix:{directory}/upstream --socket-mode 666"
        script = f"trap 'kill $(jobs -p); wait' TERM; {server} & {nginx} & wait"
        return ["bash", "-c", script]

    return Contestant("nginx + sync", command)


def axum(binary, threads, under):
    if under:
        flags = ["-w", "2", "--threads", str(threads), "--log-level", "error"]
        return Contestant(
            "ostler tokio", lambda port: [str(binary), *flags, "--bind", f"127.0.0.1:{port}"]
        )
    return Contestant(
        "axum alone", lambda port: [str(binary), "alone", f"127.0.0.1:{port}", str(2 * threads)]
    )


def response_times(contestant, mode, arguments):
    """Returns three percentiles of the response times, in milliseconds."""
    rate = HANDLERS / SLEEP * LOAD
    with running(contestant) as (_, port):

        def turn(seconds):
            command = [str(arguments.generator), f"127.0.0.1:{port}", f"/sleep?ms={SLEEP * 1e3:.0f}"]
            command += [str(rate), str(seconds), mode]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            *micros, failed = map(int, output.split())
            if failed:
                print(f"{contestant.name}: {failed} requests failed", file=sys.stderr)
            return [it / 1e3 for it in micros]

        turn(1)  # warm-up
        return turn(arguments.seconds)


def idle_memory(contestant):
    """Returns how many bytes of memory a client takes that has had a response and stays."""
    with running(contestant) as (pid, port):
        time.sleep(0.5)
        before = compare.pss_mib(pid)
        clients = []
        for _ in range(CLIENTS):
            client = socket.create_connection(("127.0.0.1", port), timeout=10)
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            clients.append(client)
            if not client.recv(4096).startswith(b"HTTP/1.1 200"):
                raise Skipped("it has no response for one of the clients")
        time.sleep(2.0)
        growth = compare.pss_mib(pid) - before
        for client in clients:
            client.close()
        return growth * 2**20 / CLIENTS


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server (3)")
    parser.add_argument("--seconds", type=int, default=5, help="length of a turn (5)")
    parser.add_argument("--part", action="append", dest="parts", choices=["sleep", "idle"])
    parser.add_argument("--only", help="a regular expression for the names of the servers")
    arguments = parser.parse_args()
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", compare.HERE.parent / "target"))
    release = target.resolve() / "release"
    binary, example = release / "ostler", release / "examples" / "axum_hello"
    arguments.generator = release / "examples" / "open_loop"
    for program in (binary, example, arguments.generator):
        if not program.is_file():
            sys.exit(f"latency.py: {program} is not built")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="ostler-latency-") as directory:
        directory = pathlib.Path(directory)
        directory.chmod(0o755)  # nginx's workers run as another user

        def nginx(config):
            return lambda port: [compare.tool("nginx"), "-p", str(directory), "-c", config(port)]

        def idle_nginx(port):
            config = directory / "idle.conf"
            text = compare.NGINX.format(directory=directory, port=port, workers=2, log="off")
            text = text.replace("worker_connections 4096", "worker_connections 24000")
            config.write_text(text)
            return str(config)

        many = ["-w", str(HANDLERS)]
        threads = ["-w", "2", "--threads", str(HANDLERS // 2)]
        sleeping = [
            proxied(binary, directory),
            ostler(binary, "sync", *many),
            ostler(binary, "mio", *many),
            ostler(binary, "uring", *many),
            ostler(binary, "threads", *threads),
            axum(example, 1, False),
            axum(example, 1, True),
        ]
        idle = [
            Contestant("nginx", nginx(idle_nginx)),
            *(ostler(binary, kind, "-w", "2") for kind in ("mio", "uring", "threads")),
            axum(example, 1, False),
            axum(example, 1, True),
        ]
        if "sleep" in (arguments.parts or ["sleep"]):
            show_times(sleeping, arguments)
        if "idle" in (arguments.parts or ["idle"]):
            show_memory(idle, arguments)


def taking_part(contestants, arguments):
    return [one for one in contestants if re.search(arguments.only or "", one.name)]


def show_times(contestants, arguments):
    """Measures and prints the percentiles of all servers."""
    for mode in ("keep-alive", "close"):
        present = taking_part(contestants, arguments)
        if mode == "keep-alive":
            present = [one for one in present if one.name != "ostler sync"]  # it closes
        times = {one.name: [] for one in present}
        for number in range(arguments.rounds):
            for one in present[:: -1 if number % 2 else 1]:
                try:
                    times[one.name].append(response_times(one, mode, arguments))
                except (Skipped, subprocess.CalledProcessError) as reason:
                    print(f"skipped: {one.name}: {reason}", file=sys.stderr)
        print(f"\nhandlers of 5 ms, {mode}\n  {'':18}{'p50 ms':>10}{'p99 ms':>10}{'p99.9 ms':>10}")
        for name, rounds in times.items():
            if rounds:
                cells = (f"{statistics.median(column):10.2f}" for column in zip(*rounds))
                print(f"  {name:18}" + "".join(cells), flush=True)


def show_memory(contestants, arguments):
    """Measures and prints the memory that idle clients take."""
    print(f"\n{CLIENTS} idle clients\n  {'':18}{'KiB each':>10}")
    for one in taking_part(contestants, arguments):
        try:
            print(f"  {one.name:18}{idle_memory(one) / 1024:10.2f}", flush=True)
        except (Skipped, OSError) as reason:
            print(f"skipped: {one.name}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
