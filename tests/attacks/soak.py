#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The hostile soak: hostile traffic of every kind, beside one honest client.

    OURS_DIR=target/dist tests/attacks/soak.py [--seconds 3600] [--report DIRECTORY]

One of our daemons (multicast, TCP and a serial line; libvirt's test driver). Eve's processes send 10 000 datagrams of junk
a second and all the rest beside them, each kind by itself, so that none waits for another. The honest client asks once a
second with our agent (multicast and TCP by turns), and every tenth time shoots its domain and starts it again.

A peer's machine has processors of its own; here all share these. So the daemon and the honest client come before Eve and
before whatever else the machine does (NICE, in sessions of their own, because a kernel with autogroups knows niceness
only between sessions), and Eve's share where they want the same is a tenth. And attack and quiet take turns: in each
cycle Eve is stopped for a quarter of the time and as many processes as there are processors only calculate, in her
place. What differs is the hostility: not the scheduler, and not the hour.

It fails when

- an honest request is lost;
- one is slower than twice what it is in the quiet (the median, the 99th percentile, and the slowest of all), plus a floor
  for the scheduler, which is far below the second that a packet costs that has to be sent again;
- an attack is not at its rate (RATES) over the whole time, or one kind of it stops;
- memory, descriptors or threads of the daemon grow after the warm-up;
- it logs more than its limit, says a secret, or dies.

A summary is printed; soak.json in the report's directory has the figures, with what the kernel dropped meanwhile and
during each of the slowest requests: what is dropped before it reaches the daemon is not the daemon's doing.
"""

import argparse
import collections
import contextlib
import ctypes
import json
import multiprocessing
import os
import pathlib
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from attacks.scene import OURS, Scene  # noqa: E402
from lab import net, testdriver, wire  # noqa: E402

#: What the machine may add to a request, milliseconds: to the median, to the 99th percentile, to the slowest.
FLOORS = {"median_ms": 10.0, "p99_ms": 100.0, "worst_ms": 300.0}
#: Fewer quiet requests than this have no 99th percentile.
ENOUGH = 100
#: The niceness of daemon and honest client; Eve and the others have 0. Ten steps are nine times the share.
NICE = -10
#: What the daemon may grow after the warm-up: memory in KiB, and descriptors and threads.
GROWTH_KIB, GROWTH_COUNT = 16 * 1024, 64
WARM_UP = 0.2
#: The part of each cycle in which Eve is stopped, and the longest cycle in seconds.
QUIET, CYCLE = 0.25, 60.0
#: What Eve does in a second of attack when she gets the processor for it.
RATES = {"junk datagrams": 10_000, "replays": 1_000, "dead call-backs": 10, "silent connections": 250,
         "dripping connections": 25, "reflections": 5, "half frames": 100, "lists never read": 1}
#: The share of that which must have been reached over the whole attack, and in its last quarter of what was before.
REACHED, KEPT = 0.5, 0.5
#: Entries of the list that nobody reads.
DOMAINS = 1000
#: Eve's further addresses: the daemon gives each a share of its places, and she wants all of them.
ADDRESSES = 10
#: How long things take to settle when Eve is stopped or goes on, in seconds.
SETTLE = 1.0


def main():
    """Runs it; exit code 1 when a criterion does not hold."""
    parser = argparse.ArgumentParser(description="hostile traffic beside honest requests")
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("SOAK_SECONDS", 3600)))
    parser.add_argument("--report", type=pathlib.Path, default=pathlib.Path("target/soak"))
    options = parser.parse_args()
    in_a_session_of_its_own()
    net.exit_on_sigterm()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="fvlab-soak-"))
    scene = Scene(directory)
    # A wiretap in Python would take more of the machine than Eve.
    scene.wiretap.close()
    # A switch that sends the group to the host alone: what other machines throw away is no load of the host's.
    for node in scene.net.nodes.values():
        if node is not scene.host_node:
            subprocess.run(["bridge", "-n", scene.net.switch, "link", "set", "dev", f"p{node.index}", "mcast_flood", "off"],
                           check=True)
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
    for number in range(ADDRESSES):
        scene.eve.add_address(f"10.77.50.{number + 1}")
    honest, eve, burners = Honest(scene, host), Eve(scene, host, serial), Others([calculate] * os.cpu_count())
    watch, kernel = Watch(host.daemon), Kernel(host.daemon.pid)
    quiet, loud, rates = Times(), Times(), []
    lines_before, attacked, end = len(host.daemon.lines), 0.0, time.monotonic() + seconds
    cycle = min(CYCLE, seconds / 4)
    try:
        while time.monotonic() < end - cycle / 2:
            with burners.working():
                honest.run(cycle * QUIET, quiet, kernel)
            before, since = eve.done(), time.monotonic()
            with eve.working():
                honest.run(cycle * (1 - QUIET), loud, kernel, watch)
            took = time.monotonic() - since
            attacked += took
            rates.append({kind: round((now - before[kind]) / took, 2) for kind, now in eve.done().items()})
    finally:
        burners.close()
        eve.close()
    for times in (quiet, loud):
        times.explain(host.audit_file, scene.other.ip)
    # What Eve left is closed by the daemon's own limits.
    time.sleep(6)
    watch.look()
    alive = host.daemon.alive()
    leaks = scene.secrets.find(host.daemon.log.encode("utf-8", "backslashreplace"))
    report = {
        "seconds": seconds, "attacked_seconds": round(attacked, 1), "processors": os.cpu_count(),
        "load": os.getloadavg(), "attacks": eve.done(), "rates": rates,
        "quiet": quiet.figures(), "under_attack": loud.figures(), "daemon": watch.figures(),
        "lines_about_drops": sum("audit:" not in line for line in host.daemon.lines[lines_before:]),
        "daemon_alive": alive, "leaks": len(leaks),
    }
    report["failures"] = failures(report)
    code = host.daemon.stop()
    if code != 0:
        report["failures"].append(f"fence_virtd ended with {code}")
    return report


def in_a_session_of_its_own():
    """Goes on in a child that leads a session and comes first; this process waits for it, and hands signals on."""
    child = os.fork()
    if child:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: os.kill(child, signal.SIGTERM))
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xff)
    end_with_the_parent(signal.SIGTERM)
    os.setsid()
    be_nice(NICE)


def end_with_the_parent(number):
    """Whatever ends the parent, this process gets that signal: what is stopped would stay for ever."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(number))


def be_nice(niceness):
    """This process, and all of its session where the kernel makes one group of them."""
    os.setpriority(os.PRIO_PROCESS, 0, niceness)
    with contextlib.suppress(FileNotFoundError):
        pathlib.Path("/proc/self/autogroup").write_text(str(niceness))


def calculate():
    """Keeps one processor busy with nothing."""
    while True:
        pass


class Others:
    """Processes that work only at times and are stopped otherwise, in one session, at the usual niceness."""

    def __init__(self, works):
        self._leader = multiprocessing.Process(target=self._lead, args=(works,))
        self._leader.start()
        # The group is there as soon as it has stopped itself.
        os.waitid(os.P_PID, self._leader.pid, os.WSTOPPED)

    @contextlib.contextmanager
    def working(self):
        """They work in the block; it begins and ends with a moment for what is still under way."""
        os.killpg(self._leader.pid, signal.SIGCONT)
        time.sleep(SETTLE)
        try:
            yield
        finally:
            os.killpg(self._leader.pid, signal.SIGSTOP)
            time.sleep(SETTLE)

    def close(self):
        """Ends them."""
        os.killpg(self._leader.pid, signal.SIGKILL)
        self._leader.join()

    @staticmethod
    def _lead(works):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_with_the_parent(signal.SIGKILL)
        os.setsid()
        be_nice(0)
        # In the group from the start: what is forked stops with it.
        for work in works:
            if not os.fork():
                end_with_the_parent(signal.SIGKILL)
                work()
        os.killpg(0, signal.SIGSTOP)
        while True:
            signal.pause()


class Kernel:
    """What the kernel dropped or had to do again, in the daemon's namespace and (backlog) on the whole machine."""

    _SNMP = {"Udp": ("InErrors", "RcvbufErrors"), "Tcp": ("RetransSegs", "AttemptFails")}
    _NETSTAT = {"TcpExt": ("ListenDrops", "ListenOverflows", "SyncookiesSent", "TCPReqQFullDrop", "TCPTimeouts",
                           "TCPSynRetrans", "TCPBacklogDrop")}

    def __init__(self, pid):
        self._pid = pid

    def counters(self):
        """Their values now, by name."""
        out = {}
        for file, wanted in (("snmp", self._SNMP), ("netstat", self._NETSTAT)):
            lines = pathlib.Path(f"/proc/{self._pid}/net/{file}").read_text().splitlines()
            for names, values in zip(lines[::2], lines[1::2], strict=True):
                protocol, *names = names.split()
                known = dict(zip(names, map(int, values.split()[1:]), strict=True))
                for name in wanted.get(protocol[:-1], ()):
                    out[name] = known.get(name, 0)
        for line in pathlib.Path(f"/proc/{self._pid}/net/dev").read_text().splitlines()[2:]:
            name, _, values = line.partition(":")
            if name.strip() == "eth0":
                out["eth0 dropped"] = int(values.split()[3]) + int(values.split()[11])
        with open("/proc/net/softnet_stat") as f:
            out["backlog dropped"] = sum(int(line.split()[1], 16) for line in f)
        with open("/proc/net/stat/arp_cache") as f:
            names = next(f).split()
            rows = [dict(zip(names, (int(it, 16) for it in line.split()), strict=True)) for line in f]
        for name in ("unresolved_discards", "table_fulls", "forced_gc_runs"):
            out[f"neighbours {name}"] = sum(row.get(name, 0) for row in rows)
        return out

    @staticmethod
    def difference(before, after):
        """What has changed."""
        return {name: after[name] - value for name, value in before.items() if after[name] != value}


class Times:
    """What became of honest requests."""

    def __init__(self):
        self.millis, self.lost, self.slowest, self.dropped = [], [], [], {}

    def figures(self):
        """For the report: milliseconds of whole agent runs."""
        ordered = sorted(self.millis)

        def at(share):
            return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2) if ordered else None
        return {"requests": len(self.millis) + len(self.lost), "lost": self.lost, "median_ms": at(0.5), "p99_ms": at(0.99),
                "worst_ms": at(1.0), "dropped": self.dropped, "slowest": self.slowest}

    def add(self, took, **about):
        """One that was answered, in `took` seconds."""
        self.millis.append(took * 1000)
        self.slowest.append({"ms": round(took * 1000, 1), "ended": time.time(), **about})
        self.slowest.sort(key=lambda it: it["ms"], reverse=True)
        del self.slowest[20:]

    def explain(self, audit_file, client):
        """Adds the daemon's own account of the slowest: what its audit record says about milliseconds."""
        with open(audit_file) as f:
            records = [record for record in map(json.loads, f) if record["peer"].startswith(f"{client}:")]
        for it in self.slowest:
            record = next((record for record in reversed(records) if record["time"] <= it["ended"] + 0.05
                           and record["action"] == it["action"]), None)
            if record:
                it["daemon"] = {name: value for name, value in record.items() if name.endswith("_ms")}
                # How long the agent took to end after it was answered; what is left came before it was heard.
                it["end_after_ms"] = round((it["ended"] - record["time"]) * 1000, 1)


class Honest:
    """The honest client: our agent, once a second."""

    def __init__(self, scene, host):
        self._scene, self._host, self._number = scene, host, 0

    def run(self, seconds, times, kernel, watch=None):
        """Asks for so long; adds to the Times."""
        end, due, before = time.monotonic() + seconds, time.monotonic(), kernel.counters()
        while time.monotonic() < end:
            self._number += 1
            self._ask(times, kernel, "status", 0)
            if self._number % 10 == 0:
                self._ask(times, kernel, "off", 0)
                self._ask(times, kernel, "status", 2)
                self._ask(times, kernel, "on", 0)
            if watch:
                watch.look()
            due += 1
            time.sleep(max(0.0, due - time.monotonic()))
        for name, count in kernel.difference(before, kernel.counters()).items():
            times.dropped[name] = times.dropped.get(name, 0) + count

    def _ask(self, times, kernel, action, expected):
        # Each kind of action by both ways.
        by_tcp = (self._number + self._number // 10) % 2
        args = ["-T", self._host.node.ip] if by_tcp else []
        scene, before = self._scene, kernel.counters()
        got = scene.quiet_agent(scene.other, *args, "-o", action, "-H", "honest",
                                name="fence_virt" if by_tcp else "fence_xvm")
        meanwhile = kernel.difference(before, kernel.counters())
        if got.rc == expected:
            times.add(got.seconds, action=action, by="tcp" if by_tcp else "multicast", number=self._number, kernel=meanwhile)
        else:
            times.lost.append([self._number, action, got.rc, got.err[-600:], meanwhile])


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
                             "worst": max(it[place] for it in self._looks), "after": self._looks[-1][place],
                             "course": [it[place] for it in self._looks[::max(1, n // 60)]]}
        return figures


def failures(report):
    """Which criteria do not hold, in words."""
    out = []
    quiet, loud = report["quiet"], report["under_attack"]
    for name, times in (("quiet", quiet), ("under attack", loud)):
        if times["lost"]:
            out.append(f"{len(times['lost'])} honest requests lost ({name}), first: {times['lost'][0]}")
    for what, floor in FLOORS.items():
        if quiet[what] is None or loud[what] is None:
            out.append(f"no {what}")
        elif what == "p99_ms" and quiet["requests"] < ENOUGH:
            # Of so few it is the slowest, which is judged by its own floor.
            continue
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
    for kind, rate in RATES.items():
        rates = [it[kind] for it in report["rates"]]
        mean, last = sum(rates) / len(rates), rates[-max(1, len(rates) // 4):]
        if mean < REACHED * rate:
            out.append(f"{kind}: {mean:.1f} a second instead of {rate}")
        if sum(last) / len(last) < KEPT * mean:
            out.append(f"{kind}: {mean:.1f} a second, {sum(last) / len(last):.1f} at last")
    # 20 lines for each reason in ten seconds, and one for what was left out.
    allowed = 40 * 21 * (report["seconds"] / 10 + 2)
    if report["lines_about_drops"] > allowed:
        out.append(f"{report['lines_about_drops']} lines about drops")
    return out


def print_summary(report):
    """A few lines for people."""
    rates = {kind: sum(it[kind] for it in report["rates"]) / len(report["rates"]) for kind in RATES}
    print(f"hostile soak, {report['seconds']:.0f} s, {report['attacked_seconds']:.0f} s of them under attack; a second: "
          + ", ".join(f"{rate:.0f} {kind}" for kind, rate in rates.items()))
    for name in ("quiet", "under_attack"):
        it = report[name]
        print(f"  honest, {name.replace('_', ' ')}: {it['requests']} requests, {len(it['lost'])} lost, median {it['median_ms']} ms, "
              f"p99 {it['p99_ms']} ms, worst {it['worst_ms']} ms; kernel: {it['dropped'] or 'nothing dropped'}")
    for name, it in report["daemon"].items():
        print(f"  {name}: {it['warm']} after the warm-up, {it['end']} at the end, worst {it['worst']}, {it['after']} afterwards")
    print(f"  {report['lines_about_drops']} log lines about drops")
    for failure in report["failures"]:
        print(f"  FAILED: {failure}")


class Eve:
    """What she does: each kind in a process of its own, so that one that has to wait keeps no other from its rate."""

    def __init__(self, scene, host, serial):
        self._scene, self._node, self._key, self._to = scene, scene.eve, scene.key, (host.node.ip, wire.PORT)
        self._serial = serial
        self._counts = {kind: multiprocessing.Value("Q", 0) for kind in RATES}
        self._chance = random.Random(1229)
        self._others = Others([self._junk, self._replays, self._dead, self._silent, self._dripping, self._lines,
                               *[self._reflections] * 5, *[self._lists] * 5])

    def working(self):
        """See Others."""
        return self._others.working()

    def close(self):
        """The end."""
        self._others.close()

    def done(self):
        """How much of each kind so far."""
        return {kind: count.value for kind, count in self._counts.items()}

    def _paced(self, kind, step=1, share=1):
        """Yields as often as it takes to do `kind` at its rate, `step` at a time; what was missed in 0.1 s (because she
        was stopped, or had no processor) is left out."""
        every = step * share / RATES[kind]
        due = time.monotonic()
        while True:
            yield
            with self._counts[kind].get_lock():
                self._counts[kind].value += step
            due = max(due + every, time.monotonic() - 0.1)
            time.sleep(max(0.0, due - time.monotonic()))

    def _junk(self):
        junk = [self._chance.randbytes(176) for _ in range(256)]
        send = self._sender()
        for _ in self._paced("junk datagrams", 20):
            for it in self._chance.sample(junk, 20):
                send(it)

    def _replays(self):
        replay = wire.Request(wire.OFF, "honest", address=self._scene.owner.ip).build(self._key)
        send = self._sender()
        for _ in self._paced("replays", 2):
            send(replay)
            send(replay)

    def _dead(self):
        """Requests of others, recorded and kept from the host: nobody is there any more."""
        send = self._sender()
        for _ in self._paced("dead call-backs"):
            address = f"10.77.{self._chance.randrange(60, 100)}.{self._chance.randrange(1, 255)}"
            send(wire.Request(wire.STATUS, "vm1", address=address).build(self._key))

    def _silent(self):
        held = collections.deque()
        for _ in self._paced("silent connections"):
            held.append(self._connect(self._chance.randrange(ADDRESSES)))
            if len(held) > 1200:
                held.popleft().close()

    def _dripping(self):
        dripping = collections.deque()
        for _ in self._paced("dripping connections"):
            dripping.append(self._connect(self._chance.randrange(ADDRESSES)))
            if len(dripping) > 100:
                dripping.popleft().close()
            for sock in dripping:
                # Those that the daemon has closed tell so.
                with contextlib.suppress(OSError):
                    sock.send(b"\1")

    def _reflections(self):
        """Two connections with requests that are new to the host, and its challenge sent back to it."""
        for _ in self._paced("reflections", share=5):
            with self._connect() as one, self._connect() as two, contextlib.suppress(wire.Closed, OSError):
                a, b = wire.Stream(one, 5), wire.Stream(two, 5)
                a.send(wire.Request(wire.OFF, "honest").build(self._key) + self._chance.randbytes(64))
                challenge = a.recv(128)[64:]
                b.send(wire.Request(wire.STATUS, "honest").build(self._key) + challenge)
                a.send(b.recv(64))

    def _lists(self):
        """A long list, asked for by somebody who has the key and does not read it."""
        unread = collections.deque()
        for _ in self._paced("lists never read", share=5):
            sock = self._connect(receive_buffer=1)
            with contextlib.suppress(wire.Closed, OSError):
                stream = wire.Stream(sock, 5)
                stream.send(wire.Request(wire.LIST).build(self._key))
                wire.challenge_as_client(stream, self._key)
            unread.append(sock)
            if len(unread) > 4:
                unread.popleft().close()

    def _lines(self):
        """Half frames, magic numbers and noise on the line of Eve's own domain. None shoots anybody."""
        frame = wire.SerialRequest(wire.STATUS, "vm1").build()
        line = None
        for _ in self._paced("half frames"):
            try:
                if line is None:
                    line, _ = self._serial.accept()
                    line.settimeout(1)
                line.sendall(frame[:self._chance.randrange(74)] + wire.SERIAL_MAGIC * 20 + self._chance.randbytes(200))
                if self._chance.random() < 0.05:
                    while select.select([line], [], [], 0)[0]:
                        if not line.recv(65536):
                            raise ConnectionResetError
            except OSError:
                line.close()
                line = None

    def _connect(self, address=None, receive_buffer=None):
        """A connection to the daemon, made in spite of everything, from one of her further addresses."""
        while True:
            sock = self._node.socket()
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.settimeout(1)
            with contextlib.suppress(OSError):
                if address is not None:
                    sock.bind((f"10.77.50.{address + 1}", 0))
                sock.connect(self._to)
                return sock
            sock.close()

    def _sender(self):
        udp = self._node.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, bytes(8) + struct.pack("@i", self._node.interface_index()))

        def send(data):
            with contextlib.suppress(OSError):
                udp.sendto(data, (wire.GROUP4, wire.PORT))
        return send


if __name__ == "__main__":
    sys.exit(main())
