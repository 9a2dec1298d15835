# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts on one network that corosync does not know, each with a libvirtd and QEMU of its own, and a guest that asks them.

    with Hosts(directory) as hosts:
        hosts.h1.has("x"); hosts.h2.has("x", start=False)
        hosts.serve("h1", "h2")                      # our daemons; each knows of the other then
        answer = hosts.ask("off", "x")
        assert not answer.lie()

Whether a domain runs is read at the QEMU processes: neither libvirt nor a daemon is asked.
Must never judge more than that: what a case expects beside the truth stands in the case.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import re
import signal
import socket
import subprocess
import threading
import time
import uuid as uuids

from lab import judged, net, programs, wire
from lab.hypervisor import EMULATOR, Hypervisor, until

OK, FAILED, OFF = 0, 1, 2

#: Seconds for what takes a second or two.
PATIENCE = 60

#: Seconds for the record of a request that was answered; a disk that is full never gets it.
RECORDED = 3

#: The daemons of this run know nothing of other hosts: what each row shows there (a daemon of an older version).
UNAWARE = bool(os.environ.get("UNAWARE"))

#: Rounds of what is a matter of moments.
ROUNDS = int(os.environ.get("ROUNDS", "3"))


def uuid_of(name):
    """The UUID of a domain of that name, at every host."""
    return str(uuids.uuid5(uuids.NAMESPACE_DNS, name))


class Host:
    """One host. `kind` of its daemon: "ours" or "reference"."""

    def __init__(self, hosts, name):
        self.hosts, self.name = hosts, name
        self.node = hosts.net.node(name)
        self.directory = hosts.directory / name
        self.directory.mkdir()
        self.hypervisor = Hypervisor(self.node.ns).start()
        self._second, self.daemon, self.kind, self.audit = None, None, None, None

    # -- its domains --------------------------------------------------------------------------------------

    @property
    def second(self):
        """A second hypervisor of this host, made when it is first asked for."""
        if self._second is None:
            self._second = Hypervisor(self.node.ns).start()
        return self._second

    @property
    def hypervisors(self):
        """All that there are."""
        return [it for it in (self.hypervisor, self._second) if it]

    def has(self, name, **options):
        """A domain, as of `Hypervisor.domain`: running unless told otherwise."""
        return self.hypervisor.domain(name, **options)

    def state(self, name):
        """libvirt's word for a domain's state; None when it knows none of that name."""
        asked = self.hypervisor.virsh("domstate", name, check=False)
        return asked.stdout.strip() if asked.returncode == 0 else None

    def reason(self, name):
        """The state with libvirt's reason for it: "paused (user)"."""
        return self.hypervisor.virsh("domstate", "--reason", name).stdout.strip()

    def processes(self, name):
        """{pid: whether it was made for a domain that comes in} of the QEMU processes of a domain."""
        found = {}
        for hypervisor in self.hypervisors:
            pid = hypervisor.processes().get(uuid_of(name))
            if pid:
                words = _words(pid)
                if words[0] == EMULATOR.encode():
                    found[pid] = b"-incoming" in words
        return found

    def migrate(self, name, to, *extra, source=None, target=None):
        """A live migration in the background: a Popen that ends with it. `source`, `target`: Relays in place of the libvirtds."""
        return subprocess.Popen(
            ["virsh", "-q", "-c", (source or self.hypervisor).uri, "migrate", "--live", "--unsafe", name,
             (target or to.hypervisor).uri,
             "--migrateuri", f"tcp://{to.node.ip}:49200", *extra],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def copies(self, name):
        """Whether QEMU sends the domain's memory somewhere at this moment."""
        asked = self.hypervisor.virsh("qemu-monitor-command", name, "--hmp", "info migrate", check=False)
        return "status: active" in asked.stdout

    # -- its daemon ---------------------------------------------------------------------------------------

    def serve(self, kind="ours", *, listener="multicast", options=None, virtd=None, backend=None, at=None, called=None):
        """Starts a daemon that remembers nothing. `options`, `virtd`, `backend`: those of the blocks in the configuration.
        `at`, `called`: a node in place of this host's, and a host name."""
        self.stop_serving()
        number = next(self.hosts.numbers)
        self.kind, self._listener, self._at = kind, listener, at or self.node
        self._program = programs.program(kind, "fence_virtd")
        if kind == "ours":
            self._program = _named(self.directory / f"fence_virtd-{number}", called or self.name, self._program)
        own = {"multicast": {"family": "ipv4", "interface": "eth0"}, "tcp": {"address": self.node.ip}}[listener]
        self.audit = self.directory / f"audit-{number}"
        self._config = programs.write_config(
            self.directory / f"fence_virt-{number}.conf", peers=None, listener=listener,
            listener_options={"key_file": self.hosts.key, **own, **(options or {})},
            backend_options={"uri": self.hypervisor.uri, **(backend or {})},
            daemon_options={**({"audit_log": self.audit} if kind == "ours" else {}), **(virtd or {})})
        return self.serve_again()

    def serve_again(self):
        """Starts the daemon anew, with what it remembers."""
        self.stop_serving()
        ready = {"multicast": "udp", "tcp": "tcp"}[self._listener]
        self.daemon = programs.Daemon(self._at, self._config, program=self._program, ready=ready,
                                      debug=3 if self.kind == "ours" else 2)
        if self.kind == "ours":
            self.daemon.wait_serving()
        return self.daemon

    def stop_serving(self, number=signal.SIGTERM):
        """No daemon runs here from now on."""
        daemon, self.daemon = self.daemon, None
        if daemon:
            daemon.stop(number, timeout=30 if self.kind == "ours" else 3)

    def run(self, *args):
        """Our fence_virtd where the daemon is, with its configuration, to its end: `--status`, `--check`, …"""
        argv = [programs.program("ours", "fence_virtd"), *args, "-f", self._config]
        env = {**os.environ, "STATE_DIRECTORY": str(self.state_directory)}
        ran = self._at.popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = ran.communicate()
        return subprocess.CompletedProcess(argv, ran.returncode, out, err)

    @property
    def state_directory(self):
        """Where its daemon remembers."""
        return pathlib.Path(f"{self._config}.state")

    def remembers(self, other):
        """Whether this daemon has another host in its memory."""
        path = self.state_directory / "hosts"
        return path.exists() and other.node.ip in re.split(r"[\s,]", path.read_text())

    def records(self):
        """The audit records of our daemon, oldest first."""
        return programs.audit_records(self.audit)

    # -- its network --------------------------------------------------------------------------------------

    def filter(self, *rules):
        """What its firewall does from now on: nft rules, each after "in" or "out"."""
        filter_at(self.node, *rules)

    def unfilter(self):
        """Undoes `filter`."""
        unfilter_at(self.node)

    def does_not_call_back(self):
        """Its call-backs fail from now on, so that another host's is the first."""
        self.filter(self.hosts.no_call_backs)

    # -- its end ------------------------------------------------------------------------------------------

    def recover(self):
        """Well, without daemon and domains, whatever a case did."""
        self.stop_serving(signal.SIGKILL)
        self.unfilter()
        self.node.link(True)
        for hypervisor in self.hypervisors:
            hypervisor.recover()
            for name in hypervisor.virsh("list", "--all", "--name").stdout.split():
                hypervisor.virsh("destroy", name, check=False)
                hypervisor.virsh("undefine", "--managed-save", name, check=False)

    def close(self):
        """Ends it."""
        self.stop_serving(signal.SIGKILL)
        for hypervisor in self.hypervisors:
            hypervisor.stop()


@dataclasses.dataclass
class Answer:
    """What a client was told. `through`: {host: QEMU processes that ran all the time from question to answer}."""

    hosts: "Hosts"
    action: str
    name: str
    result: programs.Result
    through: dict

    @property
    def rc(self):
        """The agent's exit code."""
        return self.result.rc

    def says_off(self):
        """Whether the answer is that the domain is off."""
        return self.rc == {"status": OFF, "off": OK}.get(self.action)

    def says_on(self):
        """Whether the answer is that it is on."""
        return self.action == "status" and self.rc == OK

    def lie(self):
        """Why the answer is not true; None when it is, or when it is a failure. A process that waits for a migration
        proves nothing: for these `lie_afterwards`."""
        ran = sorted({name for name, pids in self.through.items() if not all(pids.values())})
        if self.says_off() and ran:
            return self._untrue(f"it ran at {' and '.join(ran)} all the time")
        return None

    def lie_afterwards(self):
        """The same when nothing moves any more and nobody has started it since: what runs now has run then."""
        runs = self.hosts.where(self.name)
        if self.says_off() and runs:
            return self._untrue(f"it runs at {' and '.join(runs)}")
        return self.lie()

    def _untrue(self, why):
        text = f"{self.action} {self.name}: off, and {why}"
        if not UNAWARE:
            judged.untrue(text)
        return text


class Hosts:
    """The hosts as attributes, and a guest with the key."""

    def __init__(self, directory, names=("h1", "h2", "h3")):
        self.directory = pathlib.Path(directory)
        self.net = net.Net()
        self.guest = self.net.node("guest")
        self.key = programs.write_key(self.directory / "fence_xvm.key")
        #: A rule for `Host.filter`. Refused at once: a C daemon does nothing else while it waits for a connection.
        self.no_call_backs = f"out ip daddr {self.guest.ip} tcp dport {wire.PORT} reject with tcp reset"
        self.numbers = itertools.count(1)
        self.all, self.answers = [], []
        for name in names:
            host = Host(self, name)
            self.all.append(host)
            setattr(self, name, host)

    def serve(self, *names, **options):
        """Daemons of ours at these hosts, which know of each other then."""
        served = [getattr(self, name) for name in names]
        for host in served:
            host.serve(**options)
        self.acquaint(*served)
        return served

    def acquaint(self, *hosts):
        """Returns when each daemon of ours knows of all these hosts."""
        if UNAWARE:
            return
        for host, other in itertools.permutations(hosts, 2):
            if host.kind == "ours":
                until(lambda host=host, other=other: host.remembers(other), PATIENCE,
                      f"{host.name} knows of {other.name}\n{host.daemon.log[-3000:]}")

    def where(self, name):
        """Names of the hosts at which the domain has a QEMU process."""
        return [host.name for host in self.all if host.processes(name)]

    def agent(self, action, name=None, *extra, node=None, timeout=30, key=None):
        """An agent in the background."""
        argv = [programs.program("ours", "fence_virt" if "-T" in extra else "fence_xvm"), "-o", action, *(["-H", name] if name else []),
                "-k", key or self.key, "-t", timeout, *extra]
        node = node or self.guest
        return programs.Agent(node, *programs.own_run(node, self.directory / f"run-{node.name}", *argv), program="unshare")

    def ask(self, action, name, *extra, judged=True, **options):
        """An agent to its end: an Answer. `judged` False: an answer that is not true is no fault."""
        before = {host.name: host.processes(name) for host in self.all}
        written = self._records()
        result = self.agent(action, name, *extra, **options).finish(options.get("timeout", 30) + 30)
        through = {}
        for host in self.all:
            still = {pid: comes for pid, comes in host.processes(name).items() if pid in before[host.name]}
            if still:
                through[host.name] = still
        answer = Answer(self, action, name, result, through)
        if "Timed out" not in result.err and not any(host.kind == "reference" for host in self.all):
            # The record is written after the answer, and cases read it.
            with contextlib.suppress(TimeoutError):
                net.wait_until(lambda: self._records() > written, RECORDED)
        # Also where the case goes by the exit code alone.
        if judged:
            answer.lie()
            self.answers = [*self.answers[-1:], answer]
        return answer

    def _records(self):
        return sum(len(host.records()) for host in self.all if host.kind == "ours" and host.audit)

    def logs(self):
        """The ends of the daemons' logs, for messages of failed tests."""
        return "\n".join(f"-- {host.name}\n{host.daemon.log[-4000:]}" for host in self.all if host.daemon)

    def recover(self):
        """All hosts well, without daemons and domains."""
        for host in self.all:
            host.recover()

    def close(self):
        """Ends everything."""
        for host in self.all:
            host.close()
        self.net.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Tally:
    """Rounds of one question: how each ended, and the lies among them."""

    def __init__(self, note):
        self._note, self.ends, self.lies, self._began = note, [], [], time.monotonic()

    def add(self, answer, lie=None, what=""):
        """One round."""
        lie = lie or answer.lie()
        self.ends.append((answer.action, answer.rc))
        if lie:
            self.lies.append(f"round {len(self.ends)} {what}: {lie}, after {answer.result.seconds:.2f} s")

    def none(self, logs=""):
        """There must be none; notes what was told."""
        said = ", ".join(f"{action} {rc}: {self.ends.count((action, rc))}" for action, rc in sorted(set(self.ends)))
        self._note(f"{len(self.ends)} answers in {time.monotonic() - self._began:.0f} s ({said}), {len(self.lies)} lies")
        assert not self.lies, "\n".join(self.lies) + f"\n{logs}"


class Tap:
    """What comes by at a node, and what it sends: `datagrams` has (source, destination, payload) of UDP over IPv4."""

    def __init__(self, node):
        self.datagrams, self._closed = [], False
        with node.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        self._socket.settimeout(0.2)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def of_hosts(self):
        """What hosts say to each other, (source, destination, payload)."""
        return [it for it in self.datagrams if it[2][:1] == b"H"]

    def close(self):
        """Ends it."""
        self._closed = True
        self._thread.join(5)
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _run(self):
        while not self._closed:
            with contextlib.suppress(TimeoutError):
                packet = self._socket.recv(65536)
                begins = (packet[0] & 15) * 4
                if packet[9] == socket.IPPROTO_UDP and packet[begins + 2:begins + 4] == wire.PORT.to_bytes(2, "big"):
                    length = int.from_bytes(packet[begins + 4:begins + 6], "big")
                    self.datagrams.append((socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20]),
                                           packet[begins + 8:begins + length]))


def filter_at(node, *rules):
    """What a node's firewall does from now on: nft rules, each after "in" or "out"."""
    unfilter_at(node)
    text = "table inet cut {\n"
    for chain, hook in (("in", "input"), ("out", "output")):
        lines = "\n".join(rule.removeprefix(f"{chain} ") for rule in rules if rule.startswith(f"{chain} "))
        text += f"chain {chain}ward {{ type filter hook {hook} priority 0;\n{lines}\n}}\n"
    done = node.run(["nft", "-f", "-"], input=text + "}\n")
    assert done.returncode == 0, done.stderr


def unfilter_at(node):
    """Undoes `filter_at`."""
    node.run(["nft", "delete", "table", "inet", "cut"])


def _named(wrapper, name, program):
    """Writes a program that gives itself a host name and then becomes `program`: namespaces of one machine share its name."""
    wrapper.write_text(f"""#!/bin/sh
if [ "$1" != named ]; then exec unshare --uts "$0" named "$@"; fi
shift
hostname {name}
exec {program} "$@"
""")
    wrapper.chmod(0o755)
    return str(wrapper)


def _words(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return [b""]
