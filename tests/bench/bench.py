#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The reference and ours side by side in one run: ratios, medians, 95th percentiles.

    make bench                                          # installs and builds what is needed
    OURS_DIR=… /usr/bin/python3 tests/bench/bench.py    # as root; a few minutes
    … bench.py --quick                                  # below a minute, few samples
    … bench.py --only raw,silent                        # some parts

A table goes to standard output, all samples and what the machine is to a JSON file in $BENCH_DIR (default
$CARGO_TARGET_DIR/bench, else target/bench). Every sample of one side has its neighbours from the other, so that a
machine that is busy for a while is busy for both. Exit code 1 when a measurement could not be made; figures are
never judged here. docs/performance.md says what they mean.
"""

import argparse
import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target")
os.environ.setdefault("OURS_DIR", str(TARGET / "dist"))

from bench.peer import Failed, Peer  # noqa: E402
from bench.report import OURS, REFERENCE, Row, table  # noqa: E402
from cpg.hosts import Hosts  # noqa: E402
from lab import net, programs, testdriver, wire  # noqa: E402
from lab.hypervisor import Hypervisor  # noqa: E402

SIDES = (REFERENCE, OURS)
#: The column of our hosts with `host_down = "never"`, which take a lost host's domains for neither on nor off.
NO_PROOF = "ours, host_down never"
#: (agent, daemon), and the column of each: the plain pairs are what the ratios compare.
PAIRS = {REFERENCE: (REFERENCE, REFERENCE), OURS: (OURS, OURS),
         "our agent, ref. host": (OURS, REFERENCE), "ref. agent, our host": (REFERENCE, OURS)}

DIRECTORIES = {REFERENCE: programs.REFERENCE_DIR, OURS: programs.OURS_DIR}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is measured. Counts are samples of each side."""

    short: int = 60            # a client run of milliseconds
    raw: int = 150             # an exchange without a client process
    long_list: int = 20        # a list of the largest size
    reboot: int = 4            # the reference takes a second for each
    sizes: tuple = (3, 100, 1000)
    at_once: tuple = (1, 8, 32)
    rounds: int = 8            # times that many clients come at once
    reboots_at_once: int = 8
    reboot_rounds: int = 1
    silent: int = 100
    patience: float = 30       # when a client between silent peers gives up, as agents do
    silent_rounds: int = 3
    between_silent: int = 10
    starts: int = 12
    machines: int = 6          # off and on of a real virtual machine
    routed: int = 20           # status, off and on by way of another host, in each block
    routed_blocks: int = 3
    killed: int = 2            # hosts that are killed


QUICK = Plan(short=6, raw=10, long_list=3, reboot=1, sizes=(3, 100), at_once=(1, 8), rounds=2, reboots_at_once=0,
             patience=4, silent_rounds=1, between_silent=4, starts=2, machines=0, routed=6, routed_blocks=1, killed=0)


@dataclasses.dataclass
class Host:
    """A daemon in a namespace of its own. `size`: how many domains it has; `group`: its multicast group."""

    side: str
    peer: Peer
    group: str | None
    size: int
    pid: int

    @property
    def where(self):
        """How `Orders.ask` finds it."""
        return {"group": self.group} if self.group else {"host": self.peer.node.ip}


class Bench:
    """The hosts, the guests, and one method for each part; `rows` is what came out."""

    PARTS = ("start", "client", "raw", "at_once", "silent", "machine", "cluster", "memory", "size")

    def __init__(self, plan, network, directory):
        self.plan, self.net, self.directory = plan, network, directory
        self.rows, self.hosts, self.guests = [], {}, []
        self.accelerator, self.groups = None, 0
        self.key = str(programs.write_key(directory / "key"))
        self.uris = {size: testdriver.write(directory / f"{size}.xml", [f"vm{i}" for i in range(1, size + 1)])
                     for size in plan.sizes}
        for _ in range(max(plan.at_once)):
            self.guests.append(self._peer(f"g{len(self.guests)}"))
        for size in plan.sizes:
            for side in SIDES:
                self._host(side, size, size=size)

    def run(self, parts):
        """Measures these parts, in the order of PARTS."""
        for part in self.PARTS:
            if part in parts:
                started = time.monotonic()
                getattr(self, part)()
                print(f"{part}: {time.monotonic() - started:.0f} s", file=sys.stderr)

    # -- the parts ------------------------------------------------------------------------------------------

    def start(self):
        """From the start of the process to its socket, bound and in its group, and to its first answer."""
        bound, answered = (self._row("start of the daemon", name) for name in ("socket bound", "first answer"))
        guest = self.guests[0]
        homes = {side: self._peer(f"start-{side[0]}") for side in SIDES}
        configs = {side: self._config(f"start-{side[0]}", "multicast", self.plan.sizes[0]) for side in SIDES}
        for _ in range(self.plan.starts):
            for side in SIDES:
                config, group = configs[side]
                with self._noting(bound, side):
                    begun = self._daemon(homes[side], side, config, group)
                    bound.add(side, begun["ended"] - begun["started"])
                    with self._noting(answered, side):
                        got = guest.order("ask", action=wire.STATUS, domain="vm1", group=group, timeout=5)
                        self._expect(got["code"] == wire.SUCCESS,
                                     f"status: {got['code'] if got['code'] is not None else 'no answer in 5 s'}; "
                                     f"the daemon's log ends with: {_tail(config + '.log')}")
                        answered.add(side, got["ended"] - begun["started"])
                    homes[side].order("end", pid=begun["pid"])

    def client(self):
        """A whole run of fence_xvm over multicast: process, packets, challenge, answer."""
        section, plan = "client run", self.plan
        small = plan.sizes[0]
        self._runs(section, "status", small, plan.short, [("status", "vm1")])
        for size in plan.sizes:
            count = plan.long_list if size > 100 else plan.short
            self._runs(section, f"list of {size}", size, count, [("list", None)])
        self._runs(section, ("off", "on"), small, plan.short, [("off", "vm2"), ("on", "vm2")])
        self._runs(section, "reboot", small, plan.reboot, [("reboot", "vm3")])

    def raw(self):
        """The same exchanges by hand: what the daemon alone takes."""
        section, plan = "exchange without a client process", self.plan
        small = plan.sizes[0]
        self._exchanges(section, "status", small, plan.raw, [(wire.STATUS, "vm1")])
        for size in plan.sizes:
            count = plan.long_list if size > 100 else plan.raw
            self._exchanges(section, f"list of {size}", size, count, [(wire.LIST, "")])
        self._exchanges(section, ("off", "on"), small, plan.raw, [(wire.OFF, "vm2"), (wire.ON, "vm2")])
        self._exchanges(section, "reboot", small, plan.reboot, [(wire.REBOOT, "vm3")])
        tcp = {side: self._host(side, "tcp", "tcp") for side in SIDES}
        row = self._row(section, "status, tcp")
        for side in self._interleaved(plan.raw, SIDES):
            self._ask(row, side, tcp[side], wire.STATUS, "vm1")

    def at_once(self):
        """Clients at the same time, each in its guest: until the last has its answer, and what each one waits."""
        size = self.plan.sizes[1]
        for count in self.plan.at_once:
            self._crowd("status", count, size, self.plan.rounds)
        for count in self.plan.at_once:
            self._crowd("off", count, size, self.plan.rounds)
        if self.plan.reboots_at_once:
            self._crowd("reboot", self.plan.reboots_at_once, size, self.plan.reboot_rounds)

    def silent(self):
        """One client asks while others have fallen silent."""
        kinds = {"tcp": "tcp, connected and silent", "gone": "multicast, call-back to nobody",
                 "mute": "multicast, called back and silent"}
        homes = {(side, kind): self._host(side, f"silent-{kind}", "tcp" if kind == "tcp" else "multicast")
                 for side in SIDES for kind in kinds}
        fresh = {kind: self._host(REFERENCE, f"silent-{kind}", "tcp" if kind == "tcp" else "multicast", again="2")
                 for kind in kinds}
        rows = {(kind, count): self._row("status beside silent peers", f"{count} {text}")
                for kind, text in kinds.items() for count in (0, 1, self.plan.silent)}
        for kind in kinds:
            for side in self._interleaved(self.plan.between_silent, SIDES):
                self._ask(rows[kind, 0], side, homes[side, kind], wire.STATUS, "vm1")

        def blocked(kind, asker, crowd):
            """The reference is held up for so long that its three daemons are measured side by side."""
            for count in (1, self.plan.silent):
                home = homes[REFERENCE, kind]
                if count > 1:
                    # A fresh one: it may be busy with the one silent peer still.
                    home = fresh[kind]
                crowd.order("silence", kind=kind, count=count, **home.where)
                self._ask(rows[kind, count], REFERENCE, home, wire.STATUS, "vm1", guest=asker)
                crowd.order("hush")

        peers = {kind: (self._peer(f"asks-{kind}"), self._peer(f"crowd-{kind}")) for kind in kinds}
        threads = [threading.Thread(target=blocked, args=(kind, *peers[kind])) for kind in kinds]
        for thread in threads:
            thread.start()
        for kind in kinds:
            crowd = self._peer(f"mutes-{kind}")
            for count in (1, self.plan.silent):
                for _ in range(self.plan.silent_rounds):
                    crowd.order("silence", kind=kind, count=count, **homes[OURS, kind].where)
                    for _ in range(self.plan.between_silent):
                        self._ask(rows[kind, count], OURS, homes[OURS, kind], wire.STATUS, "vm1")
                    crowd.order("hush")
        for thread in threads:
            thread.join()

    def machine(self):
        """Off, on and reboot of a QEMU machine through a libvirtd: what an administrator sees."""
        if not self.plan.machines:
            return
        rows = {action: self._row("client run, a real machine", action) for action in ("off", "on", "reboot")}
        hypervisor_node = self.net.node("hypervisor")
        with Hypervisor(hypervisor_node.ns, self._directory("hypervisor")) as hypervisor:
            homes = {}
            for side in SIDES:
                hypervisor.domain(f"m-{side}")
                homes[side] = self._host(side, "machine", uri=hypervisor.uri)
            for actions, count in ((("off", "on"), self.plan.machines), (("reboot",), self.plan.reboot)):
                for side in self._interleaved(count, SIDES):
                    for action in actions:
                        self._run(rows[action], side, side, homes[side], action, f"m-{side}")
            self.accelerator = hypervisor.accel

    def cluster(self):
        """Three hosts with the cpg backend and real corosync. A host has one daemon at a time, so sides take turns in blocks."""
        size = self.plan.sizes[1]
        kinds = {REFERENCE: (REFERENCE, {}), OURS: (OURS, {"host_down": "membership"}), NO_PROOF: (OURS, {})}
        with Hosts(self._directory("cluster")) as hosts:
            guest = Peer(hosts.guests[0], self._directory("asking"), str(hosts.key))
            uris = {host: testdriver.write(self.directory / f"{host.name}.xml",
                                           [f"{host.name}-vm{i}" for i in range(1, size + 1)]) for host in hosts.all}

            def ask(host, action, domain, timeout=self.plan.patience):
                return guest.order("ask", action=action, domain=domain, group=host.group, timeout=timeout)

            def begin(column):
                side, options = kinds[column]
                for host in hosts.all:
                    host.serve(side, wait=False, uri=uris[host], **options)
                for domain in ("h1-vm1", "h2-vm1", "h3-vm1"):
                    for host in hosts.all:
                        net.wait_until(lambda h=host, d=domain: ask(h, wire.STATUS, d, 5)["code"] == wire.SUCCESS, 60)

            def measure(row, column, host, action, domain, codes):
                with self._noting(row, column):
                    got = ask(host, action, domain)
                    self._expect(got["code"] in (*codes, None), f"answer {got['code']}")
                    late = got["code"] is None
                    row.add(column, self.plan.patience if late else got["ended"] - got["started"], beyond=late)

            section = f"three hosts, {size} domains each"
            rows = {(action, where): self._row(section, f"{action}, {where}") for action in ("status", "off", "on")
                    for where in ("own host", "other host")}
            for column in self._interleaved(self.plan.routed_blocks, SIDES):
                begin(column)
                for _ in range(self.plan.routed):
                    for (action, where), row in rows.items():
                        measure(row, column, hosts.h1, wire.ACTIONS[action],
                                "h1-vm2" if where == "own host" else "h2-vm2", (wire.SUCCESS,))
            if not self.plan.killed:
                return
            section = "status of a killed host's domain"
            at_once, noticed = (self._row(section, name, "s") for name in ("asked as it is killed", "asked afterwards"))
            for column in self._interleaved(self.plan.killed, kinds):
                hosts.stop_serving()
                hosts.wait_whole()
                begin(column)
                hosts.h3.kill()
                codes = (wire.FAILURE,) if column == NO_PROOF else (wire.RESPONSE_OFF,)
                # Not known yet to be lost, its domains may be anything: no answer is wrong but "on".
                measure(at_once, column, hosts.h1, wire.STATUS, "h3-vm1", (wire.FAILURE, wire.RESPONSE_OFF))
                hosts.h2.wait_members(2)
                measure(noticed, column, hosts.h2, wire.STATUS, "h3-vm1", codes)
                hosts.h3.power_on()

    def memory(self):
        """The most that the processes ever had in memory."""
        for size in self.plan.sizes:
            row = self._row("memory, most ever", f"daemon, {size} domains", "MiB")
            for side in SIDES:
                row.add(side, _high_water(self.hosts[side, size].pid))
        for name in dict.fromkeys(name for _, name in self.hosts if str(name).startswith("silent")):
            row = self._row("memory, most ever", f"daemon, after {self.plan.silent} {name.replace('-', ' ')}", "MiB")
            for side in SIDES:
                row.add(side, _high_water(self.hosts[side, name].pid))
        row = self._row("memory, most ever", "agent", "MiB")
        guest = self._peer("memory")
        for side in SIDES:
            # A host that asks for the proof, gets it, and then says nothing: the agent has done all its work.
            with wire.FakeHost(self.net.node(f"fake-{side[0]}"), pathlib.Path(self.key).read_bytes(),
                               stop=wire.Stop.PROVED, how="hang") as fake:
                pid = guest.order("begin", argv=self._argv(side, None, "status", "vm1"))["pid"]
                with self._noting(row, side):
                    net.wait_until(lambda: fake.proofs)
                    row.add(side, _high_water(pid))
                guest.order("end", pid=pid)

    def size(self):
        """Bytes of the program files."""
        modules = list(pathlib.Path(programs.MODULE_PATH).glob("*.so"))
        for name in ("fence_virtd", "fence_xvm"):
            row = self._row("program files", name, "bytes")
            for side in SIDES:
                path = DIRECTORIES[side] / name
                more = modules if (side, name) == (REFERENCE, "fence_virtd") else []
                row.add(side, sum(p.stat().st_size for p in [path, *more]))

    # -- how ------------------------------------------------------------------------------------------------

    def _runs(self, section, names, size, count, steps):
        """Runs of an agent for every pair; `steps` are done one after the other, each with a row."""
        rows = [self._row(section, name) for name in ([names] if isinstance(names, str) else names)]
        for pair in self._interleaved(count, PAIRS):
            agent, daemon = PAIRS[pair]
            for row, (action, domain) in zip(rows, steps):
                self._run(row, pair, agent, self.hosts[daemon, size], action, domain)

    def _run(self, row, column, agent, host, action, domain):
        with self._noting(row, column):
            got = self.guests[0].order("agent", argv=self._argv(agent, host.group, action, domain))
            self._expect(got["rc"] == 0, f"{action}: exit code {got['rc']}: {got['said']}")
            self._expect(action != "list" or got["lines"] == host.size, f"list of {got['lines']}")
            row.add(column, got["ended"] - got["started"])

    def _exchanges(self, section, names, size, count, steps):
        rows = [self._row(section, name) for name in ([names] if isinstance(names, str) else names)]
        for side in self._interleaved(count, SIDES):
            for row, (action, domain) in zip(rows, steps):
                self._ask(row, side, self.hosts[side, size], action, domain)

    def _ask(self, row, side, host, action, domain, guest=None):
        with self._noting(row, side):
            limit = self.plan.patience
            got = (guest or self.guests[0]).order("ask", action=action, domain=domain, entries=host.size,
                                                  timeout=limit, **host.where)
            self._expect(got["code"] in (wire.SUCCESS, None), f"answer {got['code']}")
            late = got["code"] is None
            row.add(side, limit if late else got["ended"] - got["started"], beyond=late)

    def _crowd(self, action, count, size, rounds):
        clients = "client" if count == 1 else "clients"
        whole, each = (self._row("clients at once", f"{count} {clients}, {action}: {what}") for what in ("all", "each"))
        for side in self._interleaved(rounds, SIDES):
            host = self.hosts[side, size]
            at = time.monotonic() + 0.05
            for number, guest in enumerate(self.guests[:count], 1):
                guest.send("agent", argv=self._argv(side, host.group, action, f"vm{number}"), at=at)
            got = [guest.receive() for guest in self.guests[:count]]
            wrong = [g for g in got if g["rc"] != 0]
            for g in got:
                with self._noting(each, side):
                    self._expect(g["rc"] == 0, f"exit code {g['rc']}: {g['said']}")
                    each.add(side, g["ended"] - g["started"])
            with self._noting(whole, side):
                self._expect(not wrong, f"{len(wrong)} of {count} failed")
                whole.add(side, max(g["ended"] for g in got) - at)
            if action == "off":
                for number in range(1, count + 1):
                    self.guests[0].order("ask", action=wire.ON, domain=f"vm{number}", **host.where)

    def _interleaved(self, count, columns):
        """A B A B …, and what comes first changes, so that nobody always has the same one before it."""
        columns = list(columns)
        for number in range(count):
            turn = number % len(columns)
            yield from columns[turn:] + columns[:turn]

    def _row(self, *args):
        self.rows.append(Row(*args))
        return self.rows[-1]

    @contextlib.contextmanager
    def _noting(self, row, side):
        """A measurement that fails is a fact to be shown, not the end of the others."""
        try:
            yield
        except (Failed, TimeoutError, FileNotFoundError) as error:
            row.add(side, None, failed=str(error))
            print(f"{row.section}, {row.name}, {side}: {error}", file=sys.stderr)

    @staticmethod
    def _expect(holds, otherwise):
        if not holds:
            raise Failed(otherwise)

    def _argv(self, agent, group, action, domain):
        argv = [str(DIRECTORIES[agent] / "fence_xvm"), "-k", self.key, "-o", action]
        argv += ["-a", group] if group else []
        return argv + (["-H", domain] if domain else [])

    def _peer(self, name):
        return Peer(self.net.node(name), self._directory("peers"), self.key)

    def _host(self, side, name, listener="multicast", size=None, uri=None, again=""):
        """A daemon that runs until the end. `self.hosts` has the latest of each name; `again` tells namesakes apart."""
        size = size or self.plan.sizes[0]
        config, group = self._config(f"{name}-{side[0]}{again}", listener, size, uri)
        peer = self._peer(f"{name}-{side[0]}{again}")
        begun = self._daemon(peer, side, config, group)
        host = Host(side, peer, group, size, begun["pid"])
        self.hosts[side, name] = host
        return host

    def _config(self, name, listener, size, uri=None):
        """A config file and the multicast group in it: one for each daemon, so that each has its own guests."""
        self.groups += 1
        group = f"225.0.1.{self.groups}" if listener == "multicast" else None
        options = {"interface": "eth0", "address": group} if group else {"address": "0.0.0.0"}
        path = programs.write_config(self.directory / f"{name}.conf", listener=listener,
                                     listener_options={"key_file": self.key, **options},
                                     backend_options={"uri": uri or self.uris[size]})
        return str(path), group

    def _daemon(self, peer, side, config, group):
        argv = ["/usr/bin/env", f"STATE_DIRECTORY={config}.state", str(DIRECTORIES[side] / "fence_virtd"), "-F", "-f", config,
                "-p", config + ".pid"]
        return peer.order("daemon", argv=argv, kind="udp" if group else "tcp", port=wire.PORT, log=config + ".log",
                          group=group)

    def _directory(self, name):
        path = self.directory / name
        path.mkdir(exist_ok=True)
        return path


def main():
    """The program."""
    words = argparse.ArgumentParser(description="fence-virt: the reference and ours side by side")
    words.add_argument("--quick", action="store_true", help="few samples, below a minute")
    words.add_argument("--only", default=",".join(Bench.PARTS), help="parts, with commas: %(default)s")
    options = words.parse_args()
    parts = options.only.split(",")
    missing = [str(d / n) for d in DIRECTORIES.values() for n in ("fence_virtd", "fence_xvm")
               if not os.access(d / n, os.X_OK)]
    missing += [f"a part called {part}" for part in parts if part not in Bench.PARTS]
    missing += ["root, for network namespaces"] if os.geteuid() != 0 else []
    if missing:
        words.error("what is missing: " + ", ".join(missing))
    net.exit_on_sigterm()
    started, load = time.monotonic(), os.getloadavg()
    directory = programs.scratch("fvlab-bench-")
    try:
        with net.Net() as network:
            bench = Bench(QUICK if options.quick else Plan(), network, directory)
            bench.run(parts)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    seconds = time.monotonic() - started
    machine = {**_machine(), "load before": load, "load after": os.getloadavg(), "accelerator": bench.accelerator}
    path = _write({"quick": options.quick, "plan": dataclasses.asdict(bench.plan), "seconds": seconds,
                   "machine": machine, "programs": _programs(), "rows": [row.json() for row in bench.rows]})
    print(f"{machine['cores']} cores ({machine['processor']}), Linux {machine['kernel']}, libvirt {machine['libvirt']}, "
          f"load {load[0]:.1f} before and {machine['load after'][0]:.1f} after; ratio = ours / reference\n")
    print(table(bench.rows))
    print(f"{seconds:.0f} s; all samples: {path}")
    failed = sum(len(s.failed) for row in bench.rows for s in row.series.values())
    return 1 if failed else 0


def _write(result):
    directory = pathlib.Path(os.environ.get("BENCH_DIR") or TARGET / "bench")
    directory.mkdir(parents=True, exist_ok=True)
    made = datetime.datetime.now(datetime.UTC)
    path = directory / f"{made:%Y%m%dT%H%M%SZ}.json"
    with open(path, "w") as file:
        json.dump({"made": made.isoformat(timespec="seconds"), **result}, file, indent=1)
    return path


def _machine():
    with open("/proc/cpuinfo") as file:
        model = re.search(r"model name\s*: (.*)", file.read())
    with open("/proc/meminfo") as file:
        memory = int(re.search(r"MemTotal:\s+(\d+)", file.read())[1])
    return {"cores": os.cpu_count(), "processor": model[1].strip() if model else os.uname().machine,
            "kernel": os.uname().release, "memory KiB": memory, "python": sys.version.split()[0],
            "libvirt": _said("libvirtd", "--version").split()[-1],
            "qemu": _said("qemu-system-x86_64", "--version").split("\n")[0]}


def _programs():
    out = {}
    for side, directory in DIRECTORIES.items():
        out[side] = {name: {"path": str(directory / name), "version": _said(directory / name, option),
                            "sha256": hashlib.sha256((directory / name).read_bytes()).hexdigest()}
                     for name, option in (("fence_virtd", "-h"), ("fence_xvm", "-V"))}
    return out


def _said(*argv):
    done = subprocess.run(list(map(str, argv)), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    return (done.stdout + done.stderr).strip()


def _tail(path):
    return " | ".join(pathlib.Path(path).read_text(errors="backslashreplace").splitlines()[-6:])


def _high_water(pid):
    """VmHWM in KiB."""
    with open(f"/proc/{pid}/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+)", file.read())[1])


if __name__ == "__main__":
    sys.exit(main())
