#!/usr/bin/env python3
"""Measures the class `tokio` against the same axum router on tokio alone.

    cargo build --release --example axum_hello && benches/tokio.py

For each number of threads the two servers run in turn, pair after pair, so that other load on the
machine affects both alike. The figure is CPU time a request, user and system, of the server's whole
process tree; the ratio is the median of those of the pairs. With --latency, clients send half of the
top rate, and the ratio is that of the 99th percentiles.

Needs Python 3.8, Linux and wrk; h2load (Debian: nghttp2-client) for HTTP/2 and for --latency.
"""

import argparse
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

import compare
from compare import Contestant, cpu_seconds, load, running

H2_STREAMS = 8


def contestants(binary, threads):
    """Returns axum alone and the class, with as many threads."""

    def alone(port):
        return [str(binary), "alone", f"127.0.0.1:{port}", str(threads)]

    def under(port):
        flags = ["--threads", str(threads), "--log-level", "error"]
        return [str(binary), *flags, "--bind", f"127.0.0.1:{port}"]

    return Contestant("axum alone", alone), Contestant("class tokio", under)


def h2load(port, seconds, connections, *flags):
    """Runs h2load. Returns its output, and how many requests succeeded."""
    command = ["h2load", "-t2", f"-c{connections}", f"-D{seconds}", *flags]
    output = subprocess.run(
        command + [f"http://127.0.0.1:{port}/"], check=True, capture_output=True, text=True
    ).stdout
    done, failed = re.search(r"(\d+) succeeded, (\d+) failed", output).groups()
    if int(failed):
        sys.exit(f"tokio.py: {failed} requests failed:\n{output}")
    return output, int(done)


def cost(contestant, mode, arguments, script):
    """Returns the CPU time a request of one turn, in microseconds, and the requests a second."""
    with running(contestant) as (pid, port):

        def turn(seconds):
            if mode == "http/2":
                done = h2load(port, seconds, arguments.connections, f"-m{H2_STREAMS}")[1]
                return done, seconds
            done, time, failed = load(port, mode, seconds, arguments.connections, script)
            if failed:
                sys.exit(f"tokio.py: {failed} requests failed")
            return done, time

        turn(1)  # warm-up
        before = cpu_seconds(pid)
        done, seconds = turn(arguments.seconds)
        return (cpu_seconds(pid) - before) * 1e6 / done, done / seconds


def p99(contestant, rate, arguments):
    """Returns the 99th percentile of the response times at a rate, in milliseconds."""
    with running(contestant) as (_, port), tempfile.NamedTemporaryFile("r") as log:
        per_client = max(1, round(rate / arguments.connections))
        flags = ["--h1", f"--rps={per_client}", f"--log-file={log.name}"]
        h2load(port, arguments.seconds, arguments.connections, *flags)
        micros = sorted(int(line.split()[2]) for line in log)
        return micros[len(micros) * 99 // 100] / 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="pairs of turns (5)")
    parser.add_argument("--seconds", type=int, default=4, help="length of a turn (4)")
    parser.add_argument("--connections", type=int, default=64, help="open at once (64)")
    parser.add_argument("--threads", type=int, action="append", help="of each server (1 and 2)")
    modes = ["keep-alive", "close", "http/2"]
    parser.add_argument("--mode", action="append", dest="modes", choices=modes)
    parser.add_argument("--latency", action="store_true", help="measure response times as well")
    parser.add_argument("--binary", type=pathlib.Path, help="the example axum_hello")
    arguments = parser.parse_args()
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", compare.HERE.parent / "target"))
    binary = (arguments.binary or target / "release" / "examples" / "axum_hello").resolve()
    if not binary.is_file() or shutil.which("wrk") is None:
        sys.exit(f"tokio.py: {binary} is not built, or wrk is not installed")
    chosen = arguments.modes or modes
    if shutil.which("h2load") is None:
        print("skipped: http/2 and --latency: h2load is not installed", file=sys.stderr)
        chosen = [mode for mode in chosen if mode != "http/2"]
        arguments.latency = False
    print(f"{'':24}{'axum alone':>12}{'class':>12}{'ratio':>8}   of the pairs")
    with tempfile.TemporaryDirectory(prefix="ostler-tokio-") as directory:
        script = pathlib.Path(directory, "report.lua")
        script.write_text(compare.LUA)

        def line(title, pairs):
            ratios = [class_ / alone for alone, class_ in pairs]
            alone, class_ = (statistics.median(column) for column in zip(*pairs))
            spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
            print(f"{title:24}{alone:12.2f}{class_:12.2f}{statistics.median(ratios):8.3f}   {spread}")

        for threads in arguments.threads or [1, 2]:
            pair = contestants(binary, threads)
            rates = []
            for mode in chosen:
                turns = [
                    [cost(one, mode, arguments, script) for one in pair]
                    for _ in range(arguments.rounds)
                ]
                if mode == "keep-alive":
                    rates = [rate for turn in turns for _, rate in turn]
                line(f"{mode}, {threads} threads, µs", [[it[0] for it in turn] for turn in turns])
            if arguments.latency and rates:
                rate = statistics.median(rates) / 2
                pairs = [[p99(one, rate, arguments) for one in pair] for _ in range(arguments.rounds)]
                line(f"p99, {threads} threads, ms", pairs)


if __name__ == "__main__":
    main()
