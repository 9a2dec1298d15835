# SPDX-License-Identifier: GPL-2.0-or-later
"""A site with its hypervisor, hosts with a daemon of either side, and cluster nodes that die.

A `Machine` is a cluster node: a QEMU domain and a namespace where the node's agent runs. The moment QEMU's process
ends, seen at the kernel and not told by libvirt or by the daemon under test, the agent is stopped, the cable is
pulled, the serial line is closed and the agent is killed, in this order: so that nothing is proved and no FIN
leaves after the death, as with a real machine. A machine that boots again gets a new namespace and knows nothing of
its old streams.

Must never judge what the programs under test did: that is for the cases.
"""

import concurrent.futures
import contextlib
import datetime
import os
import pathlib
import re
import select
import signal
import socket
import threading
import tty

from lab import net, process, programs, wire
from lab.hypervisor import Hypervisor

#: Whose daemon is under test. What the reference does in the same rig is noted and not required.
SIDE = os.environ.get("SIDE", "ours")
AGENTS = ("ours", "reference")

OK, FAILED, OFF, DENIED = 0, 1, 2, 3


class Site:
    """A host with its hypervisor, on a bridge where machines and guests join; one for the whole session."""

    def __init__(self, scratch):
        self.scratch = scratch
        self.net = net.Net()
        self.host = self.net.node("host")
        # Where libvirt plugs the cards of domains that need one: it leads nowhere.
        self.host.ip_cmd("link add cards type bridge")
        self.host.ip_cmd("link set cards up")
        self.key = programs.write_key(scratch / "key")
        self.hypervisor = Hypervisor(self.host.ns).start()
        self.reaper = Reaper()

    def node(self, name):
        """A node with addresses that nobody had before."""
        return self.net.node(name)

    def guest(self):
        """A guest that nothing happens to."""
        return self.net.nodes.get("guest") or self.node("guest")

    def agent(self, side, *args, node=None, name="fence_xvm", wait=True, at=None):
        """Runs an agent on a node: a Result, or with `wait=False` the Agent that runs.

        `at`: a Gun; the agent is loaded and starts when the gun fires."""
        node = node or self.guest()
        argv = [programs.program(side, name), *(["-k", self.key] if name == "fence_xvm" or "-T" in args else []), *args]
        if at:
            argv = ["sh", "-c", 'echo >&2; read _; exec "$@"', "sh", *argv]
        agent = programs.Agent(node, *programs.own_run(node, self.scratch / f"run-{node.ns}", *argv), program="unshare",
                               stdin=b"" if at else None)
        if at:
            at.load(agent)
        return agent.finish(60) if wait else agent

    def close(self):
        """Ends everything."""
        self.reaper.close()
        self.hypervisor.stop()
        self.net.close()


class Gun:
    """Starts agents that are loaded in the same moment."""

    def __init__(self):
        self._loaded = []

    def load(self, agent):
        """Waits until the agent's shell is about to become the agent."""
        assert agent.process.stderr.read1(1) == b"\n"
        self._loaded.append(agent.process.stdin)

    def fire(self):
        """All at once."""
        for stdin in self._loaded:
            os.write(stdin.fileno(), b"\n")


class Machine:
    """See the module's head. `mac`: the domain has a card with this address, and so has the namespace, so that the
    host can tell where a request comes from. `relay`: the namespace has this address instead, which is another domain's, as
    behind one that answers for others (proxy ARP). `cards`: the domain has one for each of these addresses. `serial`: the domain has
    a serial port, and the namespace its line."""

    def __init__(self, site, name, *, mac=None, relay=None, serial=False, cards=()):
        self.site, self.name, self.mac, self.relay = site, name, mac, relay
        # The same path twice: in libvirt's mount namespace /run is another one, and there QEMU binds it. Here it is
        # ours, and the daemon under test connects to it: what a guest's kernel would do to the line, we do.
        self.path = f"/run/lock/fvlab-{os.getpid()}-{name}" if serial else None
        self._machine = {"serial": (self.path,)} if serial else \
            {"interface": tuple((it, "cards") for it in sorted(cards) or [mac])} if mac else {}
        self.domain = self.node = self.qemu = self.line = None
        self.agents = []

    def boot(self):
        """Up and running. One that runs already is the same as before, but for its old agents."""
        self.agents.clear()
        if self.qemu and not self.qemu.ended():
            return self
        if self.node:
            self.site.reaper.wait(self)
            # The machine comes back with another address, and the host still knows the old one.
            self.site.host.run(["ip", "neigh", "flush", "to", self.node.ip])
            self.site.net.remove(self.node.name)
        self.node = self.site.node(self.name)
        if self.mac:
            if self.relay:
                # Frames for the relay reach all who are behind it.
                self.site.net.flood(self.node)
            self.node.ip_cmd(f"link set eth0 address {self.relay or self.mac}")
        if self.path:
            self.line = Line(self.path)
        self.domain = self.site.hypervisor.domain(self.name, **self._machine)
        self.qemu = self.domain.process()
        self.site.reaper.watch(self)
        return self

    def shoot(self, side, target, *args, gun=None, transport="multicast"):
        """An agent of this machine that fences another, in the background."""
        where = ["-T", self.site.host.ip] if transport == "tcp" else []
        name = "fence_xvm" if transport == "multicast" else "fence_virt"
        if transport == "serial":
            self.line.wait_connected()
            where = ["-D", self.line.device]
        agent = self.site.agent(side, *where, "-H", target.name, *args, node=self.node, name=name, wait=False, at=gun)
        self.agents.append(agent)
        return agent

    def die(self):
        """QEMU has ended."""
        for agent in self.agents:
            with contextlib.suppress(ProcessLookupError):
                agent.process.send_signal(signal.SIGSTOP)
        self.node.link(False)
        if self.line:
            self.line.close()
        for agent in self.agents:
            agent.process.kill()

    def close(self):
        """Leaves no file behind, whether it is up or down."""
        if self.line:
            self.line.close()


class Reaper:
    """Waits for the ends of machines, in a thread."""

    def __init__(self):
        self._wake, self._woken = os.pipe()
        self._new, self._watched, self._dead = [], {}, set()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def watch(self, machine):
        """The machine dies with its QEMU from now on."""
        with self._changed:
            self._dead.discard(machine)
            self._new.append((os.pidfd_open(machine.qemu.pid), machine))
        os.write(self._woken, b"x")

    def wait(self, machine):
        """Returns when the machine, whose QEMU has ended, is dead."""
        with self._changed:
            assert self._changed.wait_for(lambda: machine in self._dead, 60), f"{machine.name} was not seen to die"

    def close(self):
        """Ends the thread."""
        os.write(self._woken, b".")
        self._thread.join(10)

    def _run(self):
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._wake:
                    if b"." in os.read(self._wake, 64):
                        return
                    with self._changed:
                        for pidfd, machine in self._new:
                            self._watched[pidfd] = machine
                            poll.register(pidfd, select.POLLIN)
                        self._new.clear()
                    continue
                machine = self._watched.pop(fd)
                poll.unregister(fd)
                os.close(fd)
                machine.die()
                with self._changed:
                    self._dead.add(machine)
                    self._changed.notify_all()


class Line:
    """A serial line: a terminal for the agent at one end, the socket that QEMU would bind at the other."""

    def __init__(self, path):
        self.path = path
        pathlib.Path(path).unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(1)
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.device = os.ttyname(self._slave)
        self._connected, self._closed = threading.Event(), False
        self._stream = None
        threading.Thread(target=self._serve, daemon=True).start()

    def wait_connected(self):
        """Returns when the daemon is connected."""
        assert self._connected.wait(60), f"nobody connects to {self.path}"

    def close(self):
        """The machine is gone: both ends are."""
        self._closed = True
        pathlib.Path(self.path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        if self._stream:
            with contextlib.suppress(OSError):
                self._stream.shutdown(socket.SHUT_RDWR)

    def _serve(self):
        threading.Thread(target=self._from_guest, daemon=True).start()
        while not self._closed:
            try:
                self._stream, _ = self._listener.accept()
            except OSError:
                break
            self._connected.set()
            with contextlib.suppress(OSError), self._stream:
                while data := self._stream.recv(4096):
                    os.write(self._master, data)
            self._connected.clear()
        self._listener.close()

    def _from_guest(self):
        with contextlib.suppress(OSError):
            while not self._closed and (data := os.read(self._master, 4096)):
                self._stream.sendall(data)


class Asker:
    """A client over TCP that goes step by step: it has asked, and knows that the host holds the key."""

    def __init__(self, host, action, target, *, node=None, timeout=40.0):
        site = host.site
        self._key = wire.read_key(site.key)
        sock = (node or site.guest()).socket()
        sock.settimeout(timeout)
        sock.connect((host.node.ip, wire.PORT))
        self.stream = wire.Stream(sock, timeout)
        self.stream.send(wire.Request(wire.ACTIONS[action], target).build(self._key))
        c1 = os.urandom(64)
        self.stream.send(c1)
        assert self.stream.recv(64) == wire.digest(wire.SHA256, self._key, c1)
        self._c2, self._proved = None, False

    def wait_asked(self):
        """Returns when the host asks for the proof."""
        self._c2 = self.stream.recv(64)
        return self

    def prove(self, wrong=False):
        """The proof, which must have been asked for."""
        self._proved = True
        self.stream.send(bytes(64) if wrong else wire.digest(wire.SHA256, self._key, self._c2))
        return self

    def answer(self):
        """The response byte; b"" when the host hangs up without."""
        try:
            return self.stream.recv(1)
        except wire.Closed:
            return b""

    def whole(self):
        """Proves when it is asked to, unless it has, and returns the response byte."""
        try:
            if self._c2 is None:
                self.wait_asked()
            if not self._proved:
                self.prove()
            return self.answer()
        except wire.Closed:
            return b""

    def close(self):
        """Hangs up."""
        self.stream.close()


def answers(askers):
    """The response bytes of all, in their order; each proves the moment it is asked to, in whatever order that is."""
    with concurrent.futures.ThreadPoolExecutor(len(askers)) as pool:
        return list(pool.map(Asker.whole, askers))


@contextlib.contextmanager
def slow_to_die(domain):
    """The domain's QEMU stands still: libvirt's wish to end it stays pending until the end of the block, or until
    libvirt loses patience, 10 s after that wish. Yields a function that waits for the wish."""
    qemu = domain.process()
    process.freeze(qemu.pid)
    try:
        yield lambda: net.wait_until(lambda: process.is_pending(qemu.pid, signal.SIGTERM), 60)
    finally:
        if not qemu.ended():
            process.thaw(qemu.pid)


class Host:
    """A daemon of one side on a node, with an audit file where it writes one."""

    def __init__(self, site, directory, *, side=SIDE, node=None, uri=None, listener="multicast", options=None,
                 backend=None, **rest):
        self.site, self.node, self.side = site, node or site.host, side
        directory.mkdir(exist_ok=True)
        self.audit_file = directory / "audit"
        defaults = {"multicast": {"key_file": site.key, "interface": "eth0"},
                    "tcp": {"key_file": site.key, "address": self.node.ip},
                    "serial": {"uri": uri or site.hypervisor.uri, "path": "/run/lock", "mode": "serial"}}[listener]
        config = programs.write_config(
            directory / "fence_virt.conf", listener=listener, listener_options={**defaults, **(options or {})},
            backend_options={"uri": uri or site.hypervisor.uri, **(backend or {})},
            daemon_options={"audit_log": self.audit_file} if side == "ours" else None, **rest)
        ready = {"multicast": "udp", "tcp": "tcp", "serial": None}[listener]
        self.daemon = programs.Daemon(self.node, config, program=programs.shelved(side, directory), ready=ready, debug=3)
        if side == "ours":
            self.daemon.wait_serving()

    def records(self):
        """All audit records so far."""
        return programs.audit_records(self.audit_file)

    def arrival(self, record):
        """When the request of a record came in, seconds of the clock, by the daemon's log."""
        when = self.daemon.wait_log(rf"^(\S+)Z .*: heard id={record['id']} ")[1]
        return datetime.datetime.fromisoformat(when).timestamp()

    def wait_recognised(self, machine, side):
        """Returns when the daemon knows which domain the machine's requests come from."""
        def recognised():
            before = len(self.records())
            self.site.agent(side, "-o", "status", "-H", machine.name, node=machine.node)
            return self.wait_records(1, since=before)[0]["source_domain"] == machine.domain.uuid
        net.wait_until(recognised)

    def wait_records(self, count, since=0, timeout=60, which=lambda _: True):
        """The records from number `since` on, those that `which` wants, as soon as there are `count` of them."""
        def enough():
            found = [it for it in self.records()[since:] if which(it)]
            return found if len(found) >= count else None
        try:
            return net.wait_until(enough, timeout)
        except TimeoutError:
            raise AssertionError(f"not {count} audit records: {self.records()[since:]}\n{self.daemon.log[-4000:]}") from None

    def stop(self):
        """Ends the daemon, which must have been alive and end well."""
        self.daemon.end((0, "killed") if self.side == "reference" else (0,))


def starts(hypervisor, domain):
    """How often QEMU was started for a domain since it was defined, by QEMU's own log."""
    log = pathlib.Path(f"/proc/{hypervisor._init}/root/var/log/libvirt/qemu/{domain.name}.log")
    return log.read_text().count(": starting up")


def without_what_came_first(reason):
    """The reason of a request that had no turn, as it is whatever it waited for."""
    return re.sub(r": off of [0-9a-f-]{36} \(request \d+\) comes first$", "", reason)
