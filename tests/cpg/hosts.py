# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts of one corosync cluster, each with a hypervisor and a daemon of its own, and guests that ask them.

    with Hosts(directory) as hosts:
        hosts.domains(h1=["a"], h2=["b"])            # running, nothing else
        hosts.serve(h1="ours", h2="reference")       # whose daemon runs where
        hosts.ask("h1", "off", "b")                  # a guest asks h1 alone
        hosts.h2.kill(); hosts.h2.power_on()

Each host listens on a multicast group of its own, so that a test says whom it asks. The hypervisors stand outside
the hosts (a host that is killed leaves its domains "running" there) and are libvirtd with the test driver: what a
domain is, `hosts.h1.state("a")` tells without the daemons.
"""

import contextlib
import os
import pathlib
import signal
import threading
import time

from lab import corosync, net, process, programs
from lab.cpg_member import Member
from lab.corosync import PATIENCE
from lab.hypervisor import Pretended, until

GROUP = "fence-agents"
#: The one of our daemons alone.
SECOND = "fence-agents-2"

#: Milliseconds of silence after which corosync takes a host for lost; that it is agreed takes three times that.
TOKEN = 2000


class Host(corosync.Machine):
    """One host; `number` is its node id."""

    def __init__(self, hosts, name, number):
        super().__init__(hosts.net.node(name), hosts.directory / name)
        self.hosts, self.number = hosts, number
        self.group = f"225.0.1.{number}"
        self.hypervisor = Pretended(None)
        self.daemon, self.waker, self.side, self._served, self._daemon_end = None, None, None, 0, None

    # -- its domains --------------------------------------------------------------------------------------

    def has(self, name, **options):
        """A domain, as of `Hypervisor.domain`: running unless told otherwise."""
        return self.hypervisor.domain(name, **options)

    def state(self, name):
        """libvirt's word for a domain's state; None when it knows none of that name."""
        asked = self.hypervisor.virsh("domstate", name, check=False)
        return asked.stdout.strip() if asked.returncode == 0 else None

    # -- its daemon ---------------------------------------------------------------------------------------

    def serve(self, side, *, wait=True, virtd=None, **options):
        """Starts the side's daemon in place of the one that ran; `options` as of `start`."""
        self.stop_serving()
        self._served += 1
        self.side = side
        self.audit = self.directory / f"audit-{self._served}"
        if side == "ours":
            virtd = {"audit_log": self.audit, **(virtd or {})}
            # Each host has a multicast group of its own here: nobody else could answer.
            options["listener"] = {"negative_delay": 0, **(options.get("listener") or {})}
        self.daemon = self.start(side, f"fence_virt-{self._served}", virtd=virtd, **options)
        if side == "reference":
            self.waker = Waker(self)
        if wait:
            self.wait_joined()

    def start(self, side, name, *, uri=None, virtd=None, listener=None, groups=None, devices=(), peers="none", **options):
        """A daemon of that side, in its multicast group: a `programs.Daemon`. `name` is that of its config file; `options` are
        those of `cpg`, `virtd`, `listener` and `groups` of the other blocks. `devices`: blocks of the agent backend beside it.
        `peers`: as of `programs.write_config`."""
        text = programs.config_text(
            backend="cpg",
            listener_options={"key_file": self.hosts.key, "family": "ipv4", "interface": "eth0", "address": self.group,
                              **(listener or {})},
            backend_options={"uri": uri or self.hypervisor.uri, "name_mode": "name", **options}, daemon_options=virtd, groups=groups)
        if devices:
            text = text.replace('backend = "cpg"', 'backend = "cpg, agent"')
            text = text.replace("backends {\n", "backends {\nagent {\n" + "\n".join(devices) + "\n}\n")
        config = programs.write_config(self.directory / f"{name}.conf", text, peers=peers)
        program = programs.program(side, "fence_virtd")
        for _ in range(40):
            daemon = programs.Daemon(self, config, program=program, debug=2 if side == "reference" else 3,
                                     ready="udp", wait=60)
            # Some starts of the C daemon leave it without the thread that hears the group.
            if side == "ours" or thread_count(daemon.pid) > 1:
                return daemon
            daemon.stop(signal.SIGKILL)
        raise AssertionError("the C daemon was deaf in each of 40 starts")

    def wait_joined(self):
        """Returns when the daemon is a member of its groups."""
        for group in [SECOND] if self.side == "ours" else [GROUP]:
            until(lambda group=group: self.number in self.group_members(group), PATIENCE,
                  f"{self.name} is in {group}\n{self.daemon.log[-3000:]}")

    def group_members(self, group=GROUP):
        """Node ids in a process group, as this host's corosync sees it."""
        listed = self.run("corosync-cpgtool", "-e", check=False).stdout
        found, here = set(), False
        for line in listed.splitlines():
            words = line.replace("\\x00", "").split()
            if not line.startswith("\t"):
                here = bool(words) and words[0] == group
            elif here and words and words[0].isdigit():
                # pid, node id (address)
                found.add(int(words[1]))
        return found

    def stop_serving(self, number=signal.SIGTERM):
        """No daemon runs here from now on; returns its exit code."""
        daemon, self.daemon = self.daemon, None
        waker, self.waker = self.waker, None
        if waker:
            waker.close()
        # A C daemon that waits for an answer does not hear a SIGTERM.
        return daemon.stop(number, timeout=3 if self.side == "reference" else 30) if daemon else None

    def records(self):
        """The audit records of our daemon since it was started, oldest first."""
        return programs.audit_records(self.audit)

    # -- its power ----------------------------------------------------------------------------------------

    def kill(self):
        """Its power fails: corosync and daemon are gone at once. What becomes of its domains the test says."""
        runs = self.daemon and self.daemon.process.poll() is None
        self._daemon_end = process.Process(self.daemon.pid) if runs else None
        super().kill()
        self.daemon = self.waker = self._daemon_end = None

    def _gone(self):
        # A stopped nsenter, which stops with its child, keeps a dead child, and that keeps the namespace.
        # Not before the child is dead: nsenter, once it goes on, lets its child go on, and that would do its work.
        if self._daemon_end and self._daemon_end.ended():
            self.daemon.process.send_signal(signal.SIGCONT)
        return super()._gone()

    def power_on(self):
        """It is back, with corosync and without a daemon."""
        self.boot()
        self.wait_up()


class Hosts:
    """The cluster, its hosts as attributes, and two guests."""

    def __init__(self, directory, names=("h1", "h2", "h3")):
        self.directory = pathlib.Path(directory)
        self.net = net.Net()
        self.guests = [self.net.node(name) for name in ("g1", "g2")]
        self.key = programs.write_key(self.directory / "fence_xvm.key")
        self.all = [Host(self, name, number) for number, name in enumerate(names, 1)]
        self.__dict__.update({host.name: host for host in self.all})
        corosync.join(self.all, token=TOKEN)
        for host in self.all:
            host.hypervisor.start()
            host.boot()
        self.wait_whole()

    def wait_whole(self):
        """Returns when every host's corosync sees all."""
        for host in self.all:
            host.wait_up(len(self.all))

    def recover(self):
        """All hosts up, whole and without daemons or domains, whatever a test did."""
        for host in self.all:
            host.stop_serving(signal.SIGKILL)
            host.heal()
            if not host.alive():
                host.boot()
            elif not host.members():
                host.start_corosync()
            host.hypervisor.recover()
            for name in host.hypervisor.virsh("list", "--all", "--name").stdout.split():
                host.hypervisor.virsh("destroy", name, check=False)
                host.hypervisor.virsh("undefine", name, check=False)
        self.wait_whole()

    def stop_serving(self):
        """No daemon runs anywhere."""
        for host in self.all:
            host.stop_serving(signal.SIGKILL)

    def domains(self, **names):
        """Domains of each host, running: h1=["a", "b"]."""
        for host, these in names.items():
            for name in these:
                self.__dict__[host].has(name)

    def serve(self, **sides):
        """Daemons: h1="ours"."""
        for host, side in sides.items():
            self.__dict__[host].serve(side, wait=False)
        for host in sides:
            self.__dict__[host].wait_joined()

    def agent(self, host, action, target=None, *, guest=0, timeout=30, side=programs.SIDE, extra=()):
        """An agent in the background that asks one host."""
        args = ["-o", action, *(["-n", target] if target else []), "-k", self.key, "-t", timeout,
                "-a", self.__dict__[host].group, *extra]
        program = programs.program(side, "fence_xvm")
        return programs.Agent(self.guests[guest], *args, program=program)

    def ask(self, host, action, target=None, **options):
        """Runs an agent that asks one host, to its end; returns its Result."""
        return self.agent(host, action, target, **options).finish(options.get("timeout", 30) + 30)

    def wait_status(self, host, target, code, **options):
        """Returns when that host answers a status with that exit code."""
        results = [None]

        def said():
            results.append(self.ask(host, "status", target, **options))
            return results[-1].rc == code
        try:
            until(said, 60, f"{host} says {code} of {target}")
        except AssertionError as late:
            raise AssertionError(f"{late}; last {results[-1]}\n{self.logs()}") from None

    def logs(self, lines=15):
        """The ends of all daemons' logs, for messages of failed tests."""
        return "\n".join(f"== {h.name} ({h.side})\n" + "\n".join(h.daemon.lines[-lines:]) for h in self.all if h.daemon)

    def close(self):
        """Ends everything."""
        for host in self.all:
            host.kill()
            host.hypervisor.stop()
        self.net.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def listed(result):
    """{name: "on" or "off"} of a list that an agent printed."""
    assert result.rc == 0, result
    return {words[0]: words[-1] for line in result.out.splitlines() if len(words := line.split()) == 3}


def refused(result):
    """Whether the host answered that it was not done, as against no answer in time."""
    return result.rc == 1 and "imed out" not in result.out + result.err


class Waker(Member):
    """A C daemon misses a reply that is delivered before it waits for it, and waits for ever: about one in a hundred on a busy machine.
    The same reply once more wakes it. This member, beside a C daemon, says again what that one replies."""

    def __init__(self, host):
        super().__init__(host, GROUP)
        threading.Thread(target=self._wake, daemon=True).start()

    def _wake(self):
        with contextlib.suppress(TimeoutError, ValueError, OSError):
            while True:
                event = self.wait(lambda e: e.get("message", b"")[:1] == b"\1" and e["node"] == self.node and
                                  e["pid"] != self.pid, 3600)
                time.sleep(0.3)
                self.send(event["message"])


def thread_count(pid):
    """How many threads a process has."""
    return len(os.listdir(f"/proc/{pid}/task"))
