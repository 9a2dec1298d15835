#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The hostile soak: hostile traffic of every kind without a pause, beside one honest client.

    OURS_DIR=target/dist tests/attacks/soak.py [--seconds 3600] [--report DIRECTORY]

One of our daemons (multicast, TCP and a serial line; libvirt's test driver). A process of Eve's sends
10 000 datagrams a second and the rest beside it, or as many as it can: it runs at nice 19, so that the scheduler gives the
daemon and the honest client the processor when they want it; that is what "full rate" means here. The honest client asks once a second with our agent
(multicast and TCP by turns), and every tenth time shoots its domain and starts it again.

First the honest client for a tenth of the time (10 s at least, two minutes at most) beside a process that only
calculates, at nice 19 too, then beside Eve: what differs is not the processor but the hostility. It fails
when an honest request is lost, when the median or the 99th percentile under attack is more than twice the quiet one plus
a floor for the scheduler, or when memory, descriptors or threads of the daemon grow after the warm-up. A summary is
printed; soak.json in the report's directory has the figures.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import pathlib
import random
import select
import shutil
import socket
import struct
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from attacks.scene import OURS, Scene  # noqa: E402
from lab import net, testdriver, wire  # noqa: E402

#: What the machine may add to a request on two processors beside Eve and the softirqs of her packets, milliseconds.
FLOOR_MEDIAN, FLOOR_P99 = 10.0, 100.0
#: What the daemon may grow after the warm-up: memory in KiB, and descriptors and threads.
GROWTH_KIB, GROWTH_COUNT = 16 * 1024, 64
WARM_UP = 0.2
#: Turns of Eve in a second, each with 200 datagrams of junk.
ROUNDS = 50
#: Entries of the list that nobody reads.
DOMAINS = 1000


def main():
    """Runs it; exit code 1 when a criterion does not hold."""
    parser = argparse.ArgumentParser(description="hostile traffic beside honest requests")
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("SOAK_SECONDS", 3600)))
    parser.add_argument("--report", type=pathlib.Path, default=pathlib.Path("target/soak"))
    options = parser.parse_args()
    net.exit_on_sigterm()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="fvlab-soak-"))
    scene = Scene(directory)
    # A wiretap in Python would take more of the machine than Eve.
    scene.wiretap.close()
    try:
        report = soak(scene, options.seconds)
    finally:
        scene.close()
        shutil.rmtree(directory, ignore_errors=True)
    options.report.mkdir(parents=True, exist_ok=True)
    (options.report / "soak.json").write_text(json.dumps(report, indent=1) + "\n")
    print_summary(report)
    return 1 if report["failures"] else 0


def soak(scene, seconds):
    """The whole run; returns the report."""
    line_path = scene.directory / "line"
    serial = socket.socket(socket.AF_UNIX)
    serial.bind(str(line_path))
    serial.listen(1)
    domains = [testdriver.Domain("honest"), testdriver.Domain("eves", devices=testdriver.serial_device(line_path)),
               *(testdriver.Domain(f"vm{n}") for n in range(DOMAINS))]
    host = scene.host("multicast, tcp, serial", side=OURS, domains=domains,
                      options={"serial": {"path": scene.directory}},
                      # Eve's own domain may ask on its line, and shoot nobody but itself.
                      groups=[{"uuid": [d.uuid for d in domains if d.name != "eves"],
                               "ip": [scene.other.ip, scene.owner.ip, scene.eve.ip]},
                              {"uuid": [testdriver.uuid_of("eves")]}])
    quiet_seconds = min(max(seconds / 10, 10), 120)
    honest = Honest(scene, host)
    burner = multiprocessing.Process(target=calculate, daemon=True)
    burner.start()
    quiet = honest.run(quiet_seconds)
    burner.kill()
    burner.join()
    watch = Watch(host.daemon)
    counts = multiprocessing.Array("Q", len(Eve.KINDS))
    stop = multiprocessing.Event()
    eve = multiprocessing.Process(target=attack, args=(scene, host, serial, counts, stop), daemon=True)
    lines_before = len(host.daemon.lines)
    eve.start()
    try:
        loud = honest.run(seconds, watch)
    finally:
        stop.set()
        eve.join(20)
        if eve.is_alive():
            eve.kill()
    # What Eve left is closed by the daemon's own limits.
    time.sleep(6)
    watch.look()
    alive = host.daemon.alive()
    leaks = scene.secrets.find(host.daemon.log.encode("utf-8", "backslashreplace"))
    report = {
        "seconds": seconds, "quiet_seconds": quiet_seconds, "processors": os.cpu_count(),
        "attacks": dict(zip(Eve.KINDS, list(counts), strict=True)),
        "quiet": quiet.figures(), "under_attack": loud.figures(), "daemon": watch.figures(),
        "lines_about_drops": sum("audit:" not in line for line in host.daemon.lines[lines_before:]),
        "daemon_alive": alive, "leaks": len(leaks),
    }
    report["failures"] = failures(report)
    code = host.daemon.stop()
    if code != 0:
        report["failures"].append(f"fence_virtd ended with {code}")
    return report


def calculate():
    """Keeps one processor busy with nothing."""
    os.nice(19)
    while True:
        pass


class Times:
    """What became of honest requests."""

    def __init__(self):
        self.millis, self.lost, self.slowest = [], [], []

    def figures(self):
        """For the report: milliseconds of whole agent runs."""
        ordered = sorted(self.millis)

        def at(share):
            return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2) if ordered else None
        return {"requests": len(self.millis) + len(self.lost), "lost": self.lost, "median_ms": at(0.5), "p99_ms": at(0.99),
                "worst_ms": at(1.0), "slowest": sorted(self.slowest, reverse=True)[:10]}


class Honest:
    """The honest client: our agent, once a second."""

    def __init__(self, scene, host):
        self._scene, self._host, self._number = scene, host, 0

    def run(self, seconds, watch=None):
        """Asks for so long; returns the Times."""
        times, end, due = Times(), time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < end:
            self._number += 1
            self._ask(times, "status", 0)
            if self._number % 10 == 0:
                self._ask(times, "off", 0)
                self._ask(times, "status", 2)
                self._ask(times, "on", 0)
            if watch:
                watch.look()
            due += 1
            time.sleep(max(0.0, due - time.monotonic()))
        return times

    def _ask(self, times, action, expected):
        by_tcp = self._number % 2
        args = ["-T", self._host.node.ip] if by_tcp else []
        scene = self._scene
        got = scene.quiet_agent(scene.other, *args, "-o", action, "-H", "honest",
                                name="fence_virt" if by_tcp else "fence_xvm")
        if got.rc == expected:
            times.millis.append(got.seconds * 1000)
            times.slowest.append([round(got.seconds * 1000, 1), action, "tcp" if by_tcp else "multicast"])
        else:
            times.lost.append([self._number, action, got.rc, got.err[-600:]])


class Watch:
    """Memory, descriptors and threads of the daemon, one look a second."""

    def __init__(self, daemon):
        self._daemon, self._looks = daemon, []

    def look(self):
        """Takes note of how it is."""
        threads = len(os.listdir(f"/proc/{self._daemon.pid}/task"))
        self._looks.append((self._daemon.rss_kib(), self._daemon.descriptors(), threads))

    def figures(self):
        """After the warm-up, in the last tenth, after the attack."""
        # The worst of the tenth after the warm-up against the worst of the last one: single looks jump.
        n = len(self._looks)
        first = self._looks[int(n * WARM_UP):int(n * (WARM_UP + 0.1)) + 1] or self._looks
        last = self._looks[int(n * 0.9):-1] or self._looks
        figures = {}
        for place, name in enumerate(("rss_kib", "descriptors", "threads")):
            figures[name] = {"warm": max(it[place] for it in first), "end": max(it[place] for it in last),
                             "worst": max(it[place] for it in self._looks), "after": self._looks[-1][place]}
        return figures


def failures(report):
    """Which criteria do not hold, in words."""
    out = []
    quiet, loud = report["quiet"], report["under_attack"]
    for name, times in (("quiet", quiet), ("under attack", loud)):
        if times["lost"]:
            out.append(f"{len(times['lost'])} honest requests lost ({name}), first: {times['lost'][0]}")
    for what, floor in (("median_ms", FLOOR_MEDIAN), ("p99_ms", FLOOR_P99)):
        if quiet[what] is None or loud[what] is None:
            out.append(f"no {what}")
        elif loud[what] > 2 * quiet[what] + floor:
            out.append(f"{what}: {loud[what]} under attack, {quiet[what]} quiet")
    for what, growth in (("rss_kib", GROWTH_KIB), ("descriptors", GROWTH_COUNT), ("threads", GROWTH_COUNT)):
        figures = report["daemon"][what]
        if figures["end"] > figures["warm"] + growth:
            out.append(f"{what} grew from {figures['warm']} to {figures['end']}")
    if not report["daemon_alive"]:
        out.append("the daemon died")
    if report["leaks"]:
        out.append(f"{report['leaks']} secrets in the log")
    if not all(report["attacks"].values()):
        out.append(f"an attack that did not happen: {report['attacks']}")
    # 20 lines for each reason in ten seconds, and one for what was left out.
    allowed = 40 * 21 * (report["seconds"] / 10 + 2)
    if report["lines_about_drops"] > allowed:
        out.append(f"{report['lines_about_drops']} lines about drops")
    return out


def print_summary(report):
    """A few lines for people."""
    print(f"hostile soak, {report['seconds']:.0f} s: " + ", ".join(f"{k} {v}" for k, v in report["attacks"].items()))
    for name in ("quiet", "under_attack"):
        it = report[name]
        print(f"  honest, {name.replace('_', ' ')}: {it['requests']} requests, {len(it['lost'])} lost, median {it['median_ms']} ms, "
              f"p99 {it['p99_ms']} ms, worst {it['worst_ms']} ms")
    for name, it in report["daemon"].items():
        print(f"  {name}: {it['warm']} after the warm-up, {it['end']} at the end, worst {it['worst']}, {it['after']} afterwards")
    print(f"  {report['lines_about_drops']} log lines about drops")
    for failure in report["failures"]:
        print(f"  FAILED: {failure}")


def attack(scene, host, serial, counts, stop):
    """Eve's process."""
    os.nice(19)
    eve = Eve(scene, host, serial, counts)
    deadline_of_serial = threading.Thread(target=eve.serial_for_ever, args=(stop,), daemon=True)
    deadline_of_serial.start()
    due = time.monotonic()
    while not stop.is_set():
        eve.one_of_each()
        due = max(due + 1 / ROUNDS, time.monotonic() - 1)
        time.sleep(max(0.0, due - time.monotonic()))
    eve.close()


class Eve:
    """What she does, each a little at a time; `counts` are shared with the parent."""

    KINDS = ("junk datagrams", "replays", "dead call-backs", "silent connections", "dripping connections", "reflections",
             "half frames", "lists never read")

    def __init__(self, scene, host, serial, counts):
        self._scene, self._host, self._serial, self._counts = scene, host, serial, counts
        self._chance = random.Random(1229)
        self._node, self._key = scene.eve, scene.key
        self._udp = self._node.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF,
                             bytes(8) + struct.pack("@i", self._node.interface_index()))
        self._junk = [self._chance.randbytes(176) for _ in range(256)]
        self._replay = wire.Request(wire.OFF, "honest", address=scene.owner.ip).build(self._key)
        self._held, self._dripping, self._lists = [], [], []
        self._round = 0

    def one_of_each(self):
        """A turn of all kinds. Mostly datagrams: they cost least."""
        self._round += 1
        for _ in range(200):
            self._send(self._chance.choice(self._junk))
        self._count(0, 200)
        for _ in range(20):
            self._send(self._replay)
        self._count(1, 20)
        if self._round % 5 == 0:
            # Of others, recorded and kept from the host: nobody is there any more.
            address = f"10.77.{self._chance.randrange(60, 100)}.{self._chance.randrange(1, 255)}"
            self._send(wire.Request(wire.STATUS, "vm1", address=address).build(self._key))
            self._count(2, 1)
        for _ in range(5):
            if sock := self._connect():
                self._held.append(sock)
                self._count(3, 1)
        self._trim(self._held, 400)
        if self._round % 3 == 0 and (sock := self._connect()):
            self._dripping.append(sock)
        for sock in self._dripping:
            with contextlib.suppress(OSError):
                sock.send(b"\1")
        self._count(4, len(self._dripping))
        self._trim(self._dripping, 100)
        if self._round % 10 == 0:
            self._reflect()
        if self._round % 50 == 0:
            self._list()

    def serial_for_ever(self, stop):
        """Half frames, magic numbers and noise on the line of Eve's own domain. None shoots anybody."""
        self._serial.settimeout(1)
        frame = wire.SerialRequest(wire.STATUS, "vm1").build()
        while not stop.is_set():
            try:
                line, _ = self._serial.accept()
            except TimeoutError:
                continue
            line.settimeout(5)
            with line, contextlib.suppress(OSError):
                while not stop.is_set():
                    line.sendall(frame[:self._chance.randrange(74)] + wire.SERIAL_MAGIC * 20 + self._chance.randbytes(200))
                    self._count(6, 1)
                    if self._chance.random() < 0.05:
                        while select.select([line], [], [], 0)[0] and line.recv(65536):
                            pass
                    time.sleep(0.005)

    def close(self):
        """Lets go of everything."""
        for sock in (*self._held, *self._dripping, *self._lists, self._udp):
            sock.close()

    def _reflect(self):
        """Two connections with requests that are new to the host, and its challenge sent back to it."""
        one, two = self._connect(5), self._connect(5)
        try:
            if one and two:
                a, b = wire.Stream(one, 5), wire.Stream(two, 5)
                a.send(wire.Request(wire.OFF, "honest").build(self._key) + self._chance.randbytes(64))
                challenge = a.recv(128)[64:]
                b.send(wire.Request(wire.STATUS, "honest").build(self._key) + challenge)
                answer = b.recv(64)
                a.send(answer)
                self._count(5, 1)
        except wire.Closed:
            self._count(5, 1)       # refused
        except OSError:
            pass
        finally:
            for sock in (one, two):
                if sock:
                    sock.close()

    def _list(self):
        """A long list, asked for by somebody who has the key and does not read it."""
        sock = self._node.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        try:
            sock.settimeout(5)
            sock.connect((self._host.node.ip, wire.PORT))
            stream = wire.Stream(sock, 5)
            stream.send(wire.Request(wire.LIST).build(self._key))
            if wire.challenge_as_client(stream, self._key):
                self._count(7, 1)
            self._lists.append(sock)
            self._trim(self._lists, 20)
        except (wire.Closed, OSError):
            sock.close()

    def _connect(self, timeout=0.5):
        sock = self._node.socket()
        sock.settimeout(timeout)
        try:
            sock.connect((self._host.node.ip, wire.PORT))
            return sock
        except OSError:
            sock.close()
            return None

    def _send(self, data):
        with contextlib.suppress(OSError):
            self._udp.sendto(data, (wire.GROUP4, wire.PORT))

    def _count(self, kind, number):
        with self._counts.get_lock():
            self._counts[kind] += number

    def _trim(self, socks, most):
        while len(socks) > most:
            socks.pop(0).close()


if __name__ == "__main__":
    sys.exit(main())
