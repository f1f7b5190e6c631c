#!/usr/bin/env python3
"""Runs web servers side by side and prints what a request costs each of them.

    cargo build --release && benches/compare.py

Every server answers `Hello, world!` with two workers. The servers run in turn, round after round,
every other round in reverse, so that other load on the machine affects all alike. The figure to
compare is CPU time a request,
user and system, of the server's whole process tree. The load generator shares the cores, so
requests a second depend on wrk as much as on the server. PSS is measured at the end of the last
round.

With --access-log, nginx and ostler also run with an access log in a file (Combined Log Format). With
--control, ostler also runs with control_socket and metrics_bind, and once more while a client asks for
/metrics each second. The last column but two is the ratio to the same server without these.

Needs Python 3.8, Linux and wrk. nginx, gunicorn and cc are used if they are installed.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
WORKERS = 2
TICKS = os.sysconf("SC_CLK_TCK")

NGINX = """
worker_processes {workers}; daemon off; pid {directory}/nginx.pid; error_log {directory}/nginx.log;
events {{ worker_connections 4096; }}
http {{
    access_log {log}; keepalive_requests 1000000000;
    client_body_temp_path {directory}/a; proxy_temp_path {directory}/b; fastcgi_temp_path {directory}/c;
    uwsgi_temp_path {directory}/d; scgi_temp_path {directory}/e;
    server {{
        listen 127.0.0.1:{port} reuseport;
        location / {{ default_type text/plain; return 200 "Hello, world!\\n"; }}
    }}
}}
"""

WSGI = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "14")])
    return [b"Hello, world!\\n"]
"""

# Prints the sum of wrk's error counts in a form that this script parses.
LUA = """
done = function(summary, latency)
    local e = summary.errors
    io.write(string.format("RESULT %d %d %d\\n", summary.requests, summary.duration,
        e.connect + e.read + e.write + e.status + e.timeout))
end
"""


# The end of the name of a server that writes an access log, that has a control interface, and whose
# metrics are asked for each second.
LOG, CONTROL, SCRAPED = " +log", " +control", " +scraped"


class Skipped(Exception):
    """A server that cannot take part, with the reason."""


class Contestant:
    """A server: its name, its command, and its results."""

    def __init__(self, name, command, modes=("keep-alive", "close"), log=None, metrics=None):
        self.name, self.command, self.modes = name, command, modes
        self.log, self.metrics = log, metrics
        self.costs = {mode: [] for mode in modes}
        self.rates = {mode: [] for mode in modes}
        self.failed = {mode: 0 for mode in modes}
        self.memory = None


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def tool(name):
    path = shutil.which(name)
    if path is None:
        raise Skipped(f"{name} is not installed")
    return path


def nginx(with_log):
    def make(directory):
        path = tool("nginx")
        log = directory / "nginx.access" if with_log else None

        def command(port):
            config = directory / "nginx.conf"
            access = f"{log} combined" if log else "off"
            config.write_text(
                NGINX.format(directory=directory, port=port, workers=WORKERS, log=access)
            )
            return [path, "-p", str(directory), "-c", str(config)]

        return Contestant("nginx" + LOG * with_log, command, log=log)

    return make


def bare_epoll(directory):
    program = directory / "bare_epoll"
    source = HERE / "bare_epoll.c"
    subprocess.run([tool("cc"), "-O2", "-o", str(program), str(source)], check=True)
    return Contestant("bare epoll", lambda port: [str(program), str(port), str(WORKERS)])


def gunicorn(kind, modes):
    def make(directory):
        path = tool("gunicorn")
        (directory / "hello.py").write_text(WSGI)
        flags = ["--chdir", str(directory), "--workers", str(WORKERS), "--log-level", "error"]
        flags += ["--worker-class", kind] + (["--threads", "4"] if kind == "gthread" else [])

        def command(port):
            return [path, *flags, "--bind", f"127.0.0.1:{port}", "hello:application"]

        return Contestant(f"gunicorn {kind}", command, modes)

    return make


def ostler(binary, kind, modes, build="ostler", extra=""):
    def make(directory):
        if not binary.is_file():
            raise Skipped(f"{binary} is not built")
        flags = ["--worker-class", kind, "--workers", str(WORKERS), "--log-level", "error"]
        log = directory / f"{kind}.access" if extra == LOG else None
        flags += ["--access-logfile", str(log)] if log else []
        metrics = directory / f"{kind}.metrics"
        if extra in (CONTROL, SCRAPED):
            control = directory / f"{kind}.control"
            flags += ["--control-socket", str(control), "--metrics-bind", f"unix:{metrics}"]

        def command(port):
            return [str(binary), *flags, "--bind", f"127.0.0.1:{port}"]

        metrics = metrics if extra == SCRAPED else None
        return Contestant(f"{build} {kind}{extra}", command, modes, log, metrics)

    return make


def process_tree(root):
    """Returns the process and all its descendants."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = pathlib.Path("/proc", entry, "stat").read_text()
                parent = int(stat.rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    tree = [root]
    for pid in tree:
        tree.extend(children.get(pid, []))
    return tree


def cpu_seconds(root):
    """Returns the user and system time of the tree, with that of its reaped children."""
    total = 0
    for pid in process_tree(root):
        with contextlib.suppress(OSError):
            stat = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(field) for field in stat[11:15])
    return total / TICKS


def pss_mib(root):
    total = 0
    for pid in process_tree(root):
        with contextlib.suppress(OSError):
            text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(re.search(r"^Pss:\s+(\d+) kB", text, re.M).group(1))
    return total / 1024


def ask(port):
    with socket.create_connection(("127.0.0.1", port), timeout=1) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := client.recv(4096):
            answer += piece
        return answer


@contextlib.contextmanager
def running(contestant):
    """Starts a server, waits until it answers, and ends its whole session in every case."""
    port = free_port()
    with tempfile.TemporaryFile() as errors:
        # setpriv: if this script is killed, the kernel ends the server.
        guard = [shutil.which("setpriv"), "--pdeathsig", "TERM", "--"]
        server = subprocess.Popen(
            (guard if guard[0] else []) + contestant.command(port),
            stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 10
            while True:
                with contextlib.suppress(OSError):
                    if ask(port).endswith(b"\r\n\r\nHello, world!\n"):
                        break
                if server.poll() is not None or time.monotonic() > deadline:
                    errors.seek(0)
                    said = errors.read()[-2000:].decode(errors="replace").strip()
                    raise Skipped(f"it does not answer: {said or 'it says nothing'}")
                time.sleep(0.02)
            yield server.pid, port
        finally:
            with contextlib.suppress(ProcessLookupError):
                server.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            if contestant.log:
                contestant.log.unlink(missing_ok=True)


def load(port, mode, seconds, connections, script):
    """Runs wrk. Returns how many requests were answered, in how many seconds, and how many failed."""
    command = [tool("wrk"), "-t2", f"-c{connections}", f"-d{seconds}s", "-s", str(script)]
    if mode == "close":
        command += ["-H", "Connection: close"]
    output = subprocess.run(
        command + [f"http://127.0.0.1:{port}/"], check=True, capture_output=True, text=True
    ).stdout
    requests, micros, failed = map(int, re.search(r"RESULT (\d+) (\d+) (\d+)", output).groups())
    return requests, micros / 1e6, failed


@contextlib.contextmanager
def scraping(path):
    """Asks for the metrics at a unix socket each second, if there is one."""
    end, answers = threading.Event(), []

    def scrape():
        while not end.wait(1):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(str(path))
                client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                answer = b""
                while piece := client.recv(1 << 16):
                    answer += piece
                answers.append(answer.startswith(b"HTTP/1.1 200"))

    thread = threading.Thread(target=scrape) if path else None
    if thread:
        thread.start()
    try:
        yield
    finally:
        end.set()
        if thread:
            thread.join()
            if not answers or not all(answers):
                raise Skipped("its metrics are not answered")


def play(contestant, arguments, script):
    """Runs one round of one server."""
    with running(contestant) as (pid, port), scraping(contestant.metrics):
        for mode in contestant.modes:
            if mode not in arguments.modes:
                continue
            load(port, mode, 1, arguments.connections, script)  # warm-up
            before = cpu_seconds(pid)
            requests, seconds, failed = load(
                port, mode, arguments.seconds, arguments.connections, script
            )
            spent = cpu_seconds(pid) - before
            contestant.failed[mode] += failed
            if requests:
                contestant.costs[mode].append(spent * 1e6 / requests)
                contestant.rates[mode].append(requests / seconds)
        contestant.memory = pss_mib(pid)


def report(contestants, modes):
    for mode in modes:
        present = [one for one in contestants if one.costs.get(mode)]
        base = next((one for one in present if one.name == "nginx"), None)
        loop = next((one for one in present if one.name == "bare epoll"), None)
        print(f"\n{mode}")
        before = {
            one.name.replace("before", "ostler"): one
            for one in present
            if one.name.startswith("before ")
        }
        plain = {one.name + extra: one for one in present for extra in (LOG, CONTROL, SCRAPED)}
        head = (
            "requests/s", "CPU µs/req", "× nginx", "× bare", "× before", "× plain", "PSS MiB",
            "failed",
        )
        print(f"  {'':18}" + "".join(f"{title:>12}" for title in head))
        for one in present:
            cost = statistics.median(one.costs[mode])

            def ratio(other):
                return f"{cost / statistics.median(other.costs[mode]):.2f}" if other else "-"

            cells = (
                f"{statistics.median(one.rates[mode]):.0f}", f"{cost:.2f}", ratio(base),
                ratio(loop), ratio(before.get(one.name)), ratio(plain.get(one.name)),
                f"{one.memory:.1f}", str(one.failed[mode]),
            )
            print(f"  {one.name:18}" + "".join(f"{cell:>12}" for cell in cells))


def medians(contestants, arguments):
    """Returns what charts.py draws: CPU time a request in microseconds, by mode and server."""
    return {
        mode: {
            one.name: statistics.median(one.costs[mode]) for one in contestants if one.costs.get(mode)
        }
        for mode in arguments.modes
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server (3)")
    parser.add_argument("--seconds", type=int, default=5, help="length of a turn (5)")
    parser.add_argument("--connections", type=int, default=64, help="open at once (64)")
    parser.add_argument("--mode", action="append", dest="modes", choices=["keep-alive", "close"])
    parser.add_argument("--only", help="a regular expression for the names of the servers")
    parser.add_argument(
        "--binary", type=pathlib.Path, help="the ostler to measure (target/release/ostler)"
    )
    parser.add_argument(
        "--before", type=pathlib.Path, help="an earlier ostler, to measure beside the other one"
    )
    parser.add_argument("--json", type=pathlib.Path, help="write the medians to this file as well")
    parser.add_argument(
        "--access-log", action="store_true", help="measure the cost of an access log as well"
    )
    parser.add_argument(
        "--control", action="store_true", help="measure the cost of the control interface as well"
    )
    arguments = parser.parse_args()
    arguments.modes = arguments.modes or ["keep-alive", "close"]
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target"))
    binary = (arguments.binary or target / "release" / "ostler").resolve()
    if shutil.which("wrk") is None:
        sys.exit("compare.py: wrk is not installed, and nothing can be measured without it")

    both = ("keep-alive", "close")
    makers = {
        "nginx": nginx(False),
        "bare epoll": bare_epoll,
        "ostler mio": ostler(binary, "mio", both),
        "ostler threads": ostler(binary, "threads", both),
        "ostler uring": ostler(binary, "uring", both),  # skipped without that feature
        # These two close after each answer, with or without `Connection: close`.
        "ostler sync": ostler(binary, "sync", ("close",)),
        "gunicorn sync": gunicorn("sync", ("close",)),
        "gunicorn gthread": gunicorn("gthread", both),
    }
    if arguments.access_log:
        makers["nginx" + LOG] = nginx(True)
        for kind in ("mio", "threads", "sync"):
            modes = ("close",) if kind == "sync" else both
            makers[f"ostler {kind}{LOG}"] = ostler(binary, kind, modes, extra=LOG)
    if arguments.control:
        for extra in (CONTROL, SCRAPED):
            makers[f"ostler mio{extra}"] = ostler(binary, "mio", both, extra=extra)
    if arguments.before:
        earlier = arguments.before.resolve()
        makers["before mio"] = ostler(earlier, "mio", both, "before")
        makers["before threads"] = ostler(earlier, "threads", both, "before")
        makers["before sync"] = ostler(earlier, "sync", ("close",), "before")
    with tempfile.TemporaryDirectory(prefix="ostler-compare-") as directory:
        directory = pathlib.Path(directory)
        directory.chmod(0o755)  # nginx's workers run as another user
        script = directory / "report.lua"
        script.write_text(LUA)
        contestants = []
        for name, make in makers.items():
            if not re.search(arguments.only or "", name):
                continue
            try:
                contestants.append(make(directory))
            except (Skipped, subprocess.CalledProcessError) as reason:
                print(f"skipped: {name}: {reason}", file=sys.stderr)
        for number in range(arguments.rounds):
            for one in contestants[:: -1 if number % 2 else 1]:
                print(f"\rround {number + 1}: {one.name:18}", end="", file=sys.stderr, flush=True)
                try:
                    play(one, arguments, script)
                except (Skipped, subprocess.CalledProcessError) as reason:
                    print(f"\rskipped: {one.name}: {reason}", file=sys.stderr)
                    contestants.remove(one)
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
        report(contestants, arguments.modes)
        if arguments.json:
            arguments.json.write_text(json.dumps(medians(contestants, arguments), indent=1))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
