#!/usr/bin/env python3
"""Changes a server under load repeatedly, and reports lost requests. None may be lost.

    cargo build --release && benches/endurance.py

For each worker class there are HUP reloads, full USR2 upgrades, reloads that change the only
address, recycled workers, and a TERM. Meanwhile clients send requests without a pause, each over a
connection of its own or over one that is kept. One line a phase reports how many requests failed,
the least number of ready workers, and whether the master's descriptors, processes and memory have
returned to their level.

A request fails unless it is answered in full. Two cases are tolerated. A connection that was idle
for more than 50 ms may be closed before any byte of the next answer. The kernel reports the idle
time, since a delayed client does not know when its answer arrived. Connections to an address that
is no longer configured may be refused. Exits with 1 if anything failed.

Needs Python 3.8 and Linux.
"""

import argparse
import collections
import contextlib
import ctypes
import json
import os
import pathlib
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
TIMEOUT = 60.0
IDLE = 0.05
# How much a heap that is not full may grow, in KiB.
SLACK = 256
BODY = b"Hello, world!\n"
PR_SET_CHILD_SUBREAPER = 36


class Wrong(Exception):
    """The server has failed a requirement."""


class Closed(Exception):
    """A connection has ended after `size` bytes of an answer."""

    def __init__(self, size, why):
        super().__init__(f"{why}, after {size} bytes")
        self.size = size


# The load


class Load:
    """Clients in threads, each with one request at a time."""

    def __init__(self, port):
        self.port, self.ending, self.stop = port, False, False
        self.lock = threading.Lock()
        self.answers, self.tolerated, self.failures = 0, 0, []
        customs = [self.fresh] * 3 + [lambda: self.kept(0)] * 3 + [lambda: self.kept(0.15)] * 2
        self.threads = [threading.Thread(target=self.repeat, args=(c,)) for c in customs]
        for thread in self.threads:
            thread.start()

    def repeat(self, custom):
        while not self.stop:
            try:
                custom()
            except Wrong as error:
                with self.lock:
                    self.failures.append(str(error))
                if len(self.failures) > 1000:
                    return
            except ConnectionRefusedError:
                return  # at the end

    def connect(self):
        """Returns a connection. If the server is stopping, a refusal is raised instead."""
        port, since = self.port, time.monotonic()
        while True:
            try:
                client = socket.create_connection(("127.0.0.1", port), TIMEOUT)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # Closed with a reset: thousands of connections need not stay in TIME-WAIT.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return client
            except ConnectionRefusedError:
                if self.ending:
                    raise
                # The address may have changed; `self.port` is updated a little later.
                while self.port == port:
                    if time.monotonic() > since + 2:
                        raise Wrong(f"refused at {port}, which is served") from None
                    time.sleep(0.001)
                port, since = self.port, time.monotonic()
            except OSError as error:
                raise Wrong(f"connect: {error}") from None

    def fresh(self):
        with contextlib.closing(self.connect()) as client:
            connected = time.monotonic()
            try:
                ask(client, b"Connection: close\r\n")
                self.judge(*answer(client))
            except (Closed, OSError) as error:
                late = time.monotonic() - connected
                raise Wrong(f"first request, {late:.3f} s after it had connected: {error}") from None

    def kept(self, think):
        with contextlib.closing(self.connect()) as client:
            first = True
            while not self.stop:
                idle = 0.0
                try:
                    ask(client, b"")
                    idle = 0.0 if first else silence(client)
                    head, body = answer(client)
                except (Closed, OSError) as error:
                    idle = idle if first else idle or silence(client)
                    if getattr(error, "size", 0) == 0 and idle > IDLE:
                        with self.lock:
                            self.tolerated += 1
                        return
                    raise Wrong(f"later request, idle for {idle:.3f} s: {error}") from None
                self.judge(head, body)
                if b"\r\nconnection: close" in head.lower():
                    return
                first = False
                if think:
                    time.sleep(random.uniform(0, think))

    def judge(self, head, body):
        if not head.startswith(b"HTTP/1.1 200 ") or body != BODY:
            raise Wrong(f"answered {head!r} {body!r}")
        with self.lock:
            self.answers += 1

    def wait_answers(self, more):
        """Waits for more answers, so that the effects of earlier events have been seen."""
        goal, end = self.answers + more, time.monotonic() + TIMEOUT
        while self.answers < goal:
            if time.monotonic() > end:
                raise Wrong("clients are not answered")
            time.sleep(0.002)

    def finish(self):
        self.stop = True
        for thread in self.threads:
            thread.join()


def ask(client, fields):
    client.sendall(b"GET / HTTP/1.1\r\nHost: endurance\r\n" + fields + b"\r\n")


def silence(client):
    """Returns the seconds since data arrived last, from the kernel (tcpi_last_data_recv)."""
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return struct.unpack_from("I", info, 52)[0] / 1000


def answer(client):
    """Reads the next answer: its head and its body."""
    data = b""
    while True:
        head, found, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: *(\d+)", head.lower()) if found else None
        if length and len(body) >= int(length.group(1)):
            return head, body
        try:
            piece = client.recv(65536)
        except OSError as error:
            raise Closed(len(data), error) from None
        if not piece:
            raise Closed(len(data), "closed")
        data += piece


# The server


class Server:
    """A server and its upgraded masters, as seen in their log."""

    def __init__(self, program, cls, workers, directory):
        self.directory, self.workers = directory, workers
        self.settings = {"worker_class": cls, "workers": workers, "log_format": "json"}
        self.settings["bind"] = [f"127.0.0.1:{free_port()}"]
        self.write()
        self.changed = threading.Condition()
        self.records, self.wrong = [], []
        self.ready, self.least = set(), 0
        command = [str(program), "--config", str(directory / "settings.yaml")]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("DEMO_", "OSTLER_"))}
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment,
            start_new_session=True,
        )
        self.master = self.session = self.process.pid
        threading.Thread(target=self.listen, daemon=True).start()
        self.wait("all workers ready", 0)
        self.least = len(self.ready)

    def write(self):
        # JSON is YAML.
        lines = [f"{key}: {json.dumps(value)}\n" for key, value in self.settings.items()]
        (self.directory / "settings.yaml").write_text("".join(lines))

    def listen(self):
        for line in self.process.stderr:
            with self.changed:
                try:
                    self.note(json.loads(line))
                except ValueError:
                    self.wrong.append(f"no record: {line!r}")
                self.changed.notify_all()

    def note(self, record):
        self.records.append(record)
        message, pid = record.get("msg"), record.get("pid")
        if message == "worker ready":
            self.ready.add(pid)
        elif message in ("worker draining", "worker exited"):
            self.ready.discard(pid)
        self.least = min(self.least, len(self.ready))
        is_bad = record.get("level") not in ("INFO", "DEBUG")
        if is_bad and message != "master event loop stalled":
            self.wrong.append(json.dumps(record))

    def mark(self):
        with self.changed:
            return len(self.records)

    def wait(self, message, mark):
        """Waits for a record behind a mark."""
        end = time.monotonic() + TIMEOUT
        with self.changed:
            while True:
                for record in self.records[mark:]:
                    if record.get("msg") == message:
                        return record
                    mark += 1
                left = end - time.monotonic()
                if left <= 0 or not self.changed.wait(left):
                    raise Wrong(f"no record of: {message}; the last is {self.records[-1]}")

    def send(self, number):
        os.kill(self.master, number)

    def reload(self):
        mark = self.mark()
        self.write()
        self.send(signal.SIGHUP)
        self.wait("reload complete", mark)

    def upgrade(self):
        with self.changed:
            mark, earlier = len(self.records), set(self.ready)
        self.send(signal.SIGUSR2)
        successor = self.wait("new master ready", mark)["pid"]
        with self.changed:
            self.ready -= earlier  # they are about to drain
            self.least = min(self.least, len(self.ready))
        self.send(signal.SIGTERM)
        self.wait("upgrade complete", mark)
        self.expect_exit()
        self.master = successor

    def expect_exit(self):
        end = time.monotonic() + TIMEOUT
        while True:
            pid, status = os.waitpid(self.master, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end:
                raise Wrong(f"master {self.master} stays")
            time.sleep(0.01)
        if status != 0:
            self.wrong.append(f"master {self.master} has ended with status {status}")

    def members(self):
        """Returns the processes of the server's session."""
        return [pid for pid, stat in everybody() if stat[3] == self.session and stat[0] != "Z"]

    def wait_members(self, count):
        end = time.monotonic() + TIMEOUT
        while len(self.members()) != count:
            if time.monotonic() > end:
                raise Wrong(f"{len(self.members())} processes, not {count}")
            time.sleep(0.01)

    def footprint(self):
        """Returns descriptors, processes, and PSS and RSS in KiB, after all drains have ended."""
        self.wait_members(1 + self.workers)
        descriptors = len(os.listdir(f"/proc/{self.master}/fd"))
        text = pathlib.Path(f"/proc/{self.master}/smaps_rollup").read_text()
        memory = [int(re.search(rf"^{key}:\s+(\d+)", text, re.M).group(1)) for key in ("Pss", "Rss")]
        return Footprint(descriptors, len(self.members()), *memory)

    def kill(self):
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


Footprint = collections.namedtuple("Footprint", "descriptors processes pss rss")


def everybody():
    """Returns all processes: pid, and the fields of /proc/PID/stat from the state on."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                text = pathlib.Path(f"/proc/{name}/stat").read_text()
                fields = text[text.rindex(")") + 2:].split()
                yield int(name), [fields[0]] + [int(field) for field in fields[1:6]]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# The phases


def hangups(server, _load, count):
    for _ in range(count):
        server.reload()


def upgrades(server, load, count):
    for _ in range(count):
        server.upgrade()
        load.wait_answers(20)


def rebinds(server, load, count):
    """Changes the only address by reloads, while workers take a second to boot."""
    server.settings["env"] = ["DEMO_BOOT_SLEEP_MS=1000"]
    for _ in range(count):
        port = free_port()
        server.settings["bind"] = [f"127.0.0.1:{port}"]
        mark = server.mark()
        server.write()
        server.send(signal.SIGHUP)
        server.wait("listening", mark)
        load.port = port
        server.wait("reload complete", mark)
        load.wait_answers(20)
    del server.settings["env"]
    server.reload()


def recycles(server, _load, count):
    mark = server.mark()
    server.settings.update(max_requests=200, max_requests_jitter=50)
    server.reload()
    end = time.monotonic() + TIMEOUT
    while True:
        with server.changed:
            done = [r for r in server.records[mark:] if r.get("reason") == "recycled"]
        if sum(r["msg"] == "worker exited" for r in done) >= count:
            break
        if time.monotonic() > end:
            raise Wrong(f"{len(done)} records of recycling only")
        time.sleep(0.01)
    del server.settings["max_requests"], server.settings["max_requests_jitter"]
    server.reload()


def stop(server, load, _count):
    load.ending = True
    server.send(signal.SIGTERM)
    server.expect_exit()
    server.wait_members(0)
    for thread in load.threads:
        thread.join(TIMEOUT)


PHASES = [
    ("HUP reloads", hangups, 100),
    ("USR2 upgrades", upgrades, 10),
    ("rebinds, slow boot", rebinds, 20),
    ("recycled workers", recycles, 50),
    ("TERM", stop, 1),
]


def endure(server, load, cls, scale):
    """Runs all phases. Returns whether all passed."""
    # The first of each phase makes what is made only once.
    for phase, count in ((hangups, 10), (upgrades, 1), (hangups, 10)):
        phase(server, load, count)
    load.wait_answers(100)
    before, fine = server.footprint(), True
    for name, phase, count in PHASES:
        count = max(1, count // scale)
        server.least = len(server.ready)
        answers, tolerated, failed = load.answers, load.tolerated, len(load.failures)
        wrong, begun, after = len(server.wrong), time.monotonic(), None
        try:
            phase(server, load, count)
            if phase is not stop:
                load.wait_answers(100)
                after = server.footprint()
        except Wrong as error:
            server.wrong.append(str(error))
        faults = load.failures[failed:] + server.wrong[wrong:]
        if phase is not stop:
            if server.least < server.workers:
                faults.append(f"only {server.least} workers were ready")
            faults += differences(before, after)
        show(cls, name, count, time.monotonic() - begun, load.answers - answers,
             len(load.failures) - failed, load.tolerated - tolerated,
             "-" if phase is stop else server.least, *compare(before, after))
        for fault in faults[:10]:
            print(f"        {fault}", flush=True)
        fine &= not faults
        if phase is not stop and after is None:
            return False
    return fine


def differences(before, after):
    """Returns what has not returned to its level."""
    if after is None:
        return []
    faults = []
    for key in ("descriptors", "processes"):
        was, now = getattr(before, key), getattr(after, key)
        if was != now:
            faults.append(f"{now} {key}, {was} before")
    grown = min(after.pss - before.pss, after.rss - before.rss)
    if grown > SLACK:
        faults.append(f"the master has grown by {grown} KiB")
    return faults


def compare(before, after):
    after = after or Footprint(*"----")
    return [f"{was} {now}" for was, now in zip(before, after)]


def show(*cells):
    widths = (9, 20, 7, 9, 9, 8, 9, 7, 7, 11, 11, 11)
    cells = [f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells]
    print("".join(cell.ljust(width) for cell, width in zip(cells, widths)), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target"))
    parser.add_argument("--program", type=pathlib.Path, default=target / "release" / "ostler")
    parser.add_argument("--class", dest="classes", action="append", help="may be repeated")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scale", type=int, default=1, help="do so many times less of everything")
    args = parser.parse_args()
    if not args.program.exists():
        sys.exit(f"{args.program} does not exist: cargo build --release")
    # Masters whose old master has exited become children of this process.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    show("class", "phase", "times", "seconds", "answers", "failed", "tolerated", "ready", "fds",
         "processes", "PSS KiB", "RSS KiB")
    fine = True
    for cls in args.classes or ["sync", "threads", "mio"]:
        with tempfile.TemporaryDirectory() as directory:
            server = Server(args.program, cls, args.workers, pathlib.Path(directory))
            port = int(server.settings["bind"][0].rsplit(":", 1)[1])
            load = Load(port)
            try:
                fine &= endure(server, load, cls, args.scale)
            finally:
                load.ending = True
                server.kill()
                load.finish()
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
