# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts, each with one or two libvirtds and a daemon of ours, guests that ask them, and all that can be wrong with them.

    with World(directory, Shape("qemu", places=(1, 1))) as world:
        world.place("h1.0").start("a")
        world.host("h1").cut_off()
        world.heal()

Each host is a network namespace, and what it has in memory is lost with it, but not what its daemon keeps in its
state directory. Nothing here judges.
"""

import contextlib
import dataclasses
import pathlib
import signal
import subprocess
import threading
import uuid as uuids

import libvirt

from lab import net, process, programs
from lab.hypervisor import Hypervisor, Pretended, machine_xml

from .readings import Seen, clock, look_at_qemu, look_at_test_driver, monitor, read

libvirt.registerErrorHandler(lambda *_: None, None)

DOMAINS = ("a", "b")
#: One that is defined everywhere and never runs: a daemon that says so has heard all places.
IDLE = "idle"
UUIDS = {str(uuids.uuid5(uuids.NAMESPACE_DNS, f"truth-{name}")): name for name in (*DOMAINS, IDLE)}
#: How long a daemon may take to serve, and a world to be well again once nothing is wrong with it.
PATIENCE = 60


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a world is made of. `places`: libvirtds of each host. `peers`: "found" (nothing is configured), "listed" (each
    knows the others' addresses) or "none" (a host is alone, and says so)."""

    driver: str
    places: tuple = (1, 1)
    peers: str = "found"
    negative_delay: float = 0.3
    reboot_starts: bool = True


class Place:
    """A libvirtd of a host. Calls to it are made only while it answers: `well`."""

    def __init__(self, host, number, driver):
        self.host, self.name = host, f"{host.name}.{number}"
        self.driver = driver
        self.hypervisor = Pretended(None) if driver == "test" else Hypervisor(host.node.ns)
        self.lock = threading.RLock()
        self.state, self._lives, self._last = "dead", 0, Seen()
        self.raise_up()

    # -- libvirtd -----------------------------------------------------------------------------------------

    @property
    def well(self):
        """Whether libvirtd answers."""
        return self.state == "well"

    def raise_up(self):
        """libvirtd is started. QEMUs of before are still there; of the test driver's domains none is."""
        with self.lock:
            self.hypervisor.start()
            self._lives += 1
            self._connection = libvirt.open(self.hypervisor.uri)
            self.state = "well"

    def kill(self):
        """SIGKILL."""
        with self.lock:
            self.hypervisor.kill()
            self.state, self._last = "dead", Seen()

    def forget(self, domain):
        """libvirtd is started anew, and remembers no run of this domain, of which there is no process here. A libvirtd that
        waits for a machine which is gone would not end it either."""
        with self.lock:
            self.kill()
            for suffix in ("xml", "pid"):
                self.hypervisor.path(f"/run/libvirt/qemu/{domain}.{suffix}").unlink(missing_ok=True)
            self.raise_up()

    def freeze(self):
        """SIGSTOP. Nothing that the daemon has asked for is under way then, so what is read now stays true."""
        daemon = self.host.daemon
        held = daemon and daemon.alive() and not process.is_frozen(daemon.pid)
        if held:
            process.freeze(daemon.pid)
        try:
            with self.lock:
                before = None
                while before != (before := self.look()):
                    threading.Event().wait(0.01)
                self.hypervisor.freeze()
                self.state, self._last = "frozen", before
        finally:
            if held:
                process.thaw(daemon.pid)
                daemon.process.send_signal(signal.SIGCONT)

    def thaw(self):
        """SIGCONT."""
        with self.lock:
            self.hypervisor.thaw()
            self.state = "well"

    def heal(self):
        """It answers."""
        with self.lock:
            if self.state == "dead":
                self.raise_up()
            elif self.state == "frozen":
                self.thaw()

    # -- truth --------------------------------------------------------------------------------------------

    def look(self):
        """A Seen, see `readings`."""
        if self.driver == "qemu":
            return look_at_qemu(self.name, self.hypervisor._init, UUIDS)
        if not self.well:
            return self._last
        try:
            return look_at_test_driver(self.name, self._connection, self._lives)
        except libvirt.libvirtError:
            with self.lock:
                if not self.hypervisor.ended_by_itself():
                    raise
                # It crashed, and the test driver's domains are gone with it. What is healed next starts it anew.
                self.state, self._last = "dead", Seen()
                return self._last

    def has(self, domain):
        """Whether an instance is here, running or not."""
        return any(name == domain for name, _ in self.look().sights)

    def claims(self, domain):
        """Whether libvirtd says that it is on although nothing of it is here. After a migration whose libvirtd was killed it
        may; who asks libvirtd can't know better then."""
        if self.driver == "test" or not self.well or self.has(domain):
            return False
        try:
            said = self.hypervisor.virsh("domstate", domain, check=False, timeout=10)
        except subprocess.TimeoutExpired:
            return True
        return said.returncode == 0 and said.stdout.strip() != "shut off"

    def defines(self, domain):
        """Whether its definition is here."""
        return domain in self.look().defined

    def monitor(self, domain, *commands):
        """See `readings.monitor`."""
        return monitor(self.hypervisor.path("/"), domain, *commands)

    # -- its domains; libvirt's errors are the caller's -----------------------------------------------------

    def domain(self, name):
        """libvirt's handle."""
        return self._connection.lookupByName(name)

    def define(self, name):
        """Its definition is here."""
        self._connection.defineXML(self._xml(name))

    def undefine(self, name):
        """Its definition is gone; a domain that runs becomes transient."""
        self.domain(name).undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE if not self.has(name) else 0)

    def start(self, name):
        """From its definition if there is one, else transient."""
        if self.defines(name):
            self.domain(name).create()
        else:
            self._connection.createXML(self._xml(name))

    def destroy(self, name):
        """Off, at once."""
        self.domain(name).destroy()

    def save(self, name):
        """Off, with its memory in a file."""
        self.domain(name).managedSave()

    def _xml(self, name):
        (uuid,) = (uuid for uuid, it in UUIDS.items() if it == name)
        if self.driver == "test":
            return (f"<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><memory>1024</memory>"
                    "<os><type arch='i686'>hvm</type></os></domain>")
        # A monitor of our own: QEMU's word is had without libvirt, and its migrations can be held up.
        text = machine_xml(name, uuid, self.hypervisor.accel, bios=True)
        text = text.replace("<domain ", "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' ", 1)
        return text.replace("</domain>", "<qemu:commandline><qemu:arg value='-qmp'/>"
                            f"<qemu:arg value='unix:/run/truth-{name},server=on,wait=off'/></qemu:commandline></domain>")


class Host:
    """A machine with its daemon. `links`: whether it is on the network."""

    def __init__(self, world, name, places):
        self.world, self.name, self.node = world, name, world.net.node(name)
        self.daemon, self.linked, self.logs = None, True, []
        self.places = [Place(self, number, world.shape.driver) for number in range(places)]

    def configure(self):
        """Writes the daemon's configuration."""
        shape, others = self.world.shape, [it.node.ip for it in self.world.hosts if it is not self]
        virtd = {"audit_log": self.world.directory / f"{self.name}.audit", "wait_for_init": "yes",
                 "state_dir": self.world.directory / f"{self.name}.state"}
        if shape.peers != "found":
            virtd["peers"] = ", ".join(others) if shape.peers == "listed" else "none"
        keys = {"key_file": self.world.key}
        text = programs.config_text(
            listener="multicast, tcp", daemon_options=virtd,
            backend_options={"uri" + (str(n) if n else ""): it.hypervisor.uri for n, it in enumerate(self.places)}
            | {"reboot_starts": "yes" if shape.reboot_starts else "no"})
        blocks = {"multicast": {**keys, "family": "ipv4", "interface": "eth0", "negative_delay": shape.negative_delay},
                  "tcp": {**keys, "address": self.node.ip}}
        listeners = "".join(f"{name} {{\n" + "".join(f'{key} = "{value}";\n' for key, value in block.items()) + "}\n"
                            for name, block in blocks.items())
        start, end = text.index("listeners {"), text.index("backends {")
        self.config = programs.write_config(self.world.directory / f"{self.name}.conf",
                                            f"{text[:start]}listeners {{\n{listeners}}}\n{text[end:]}", peers=None)

    def serve(self, wait=10):
        """The daemon is started."""
        self.daemon = programs.Daemon(self.node, self.config, program=VIRTD, debug=3, ready=None)
        self.logs.append(self.daemon)
        with contextlib.suppress(TimeoutError):
            self.daemon.wait_serving(wait)

    def end(self, number):
        """The daemon is ended by a signal."""
        self.go_on()
        daemon, self.daemon = self.daemon, None
        return daemon.stop(number) if daemon else None

    def hold(self):
        """The daemon stands still."""
        process.freeze(self.daemon.pid)

    def go_on(self):
        """Undoes `hold`."""
        if self.held():
            process.thaw(self.daemon.pid)
            self.daemon.process.send_signal(signal.SIGCONT)

    def held(self):
        """Whether the daemon stands still."""
        return bool(self.daemon and self.daemon.alive() and process.is_frozen(self.daemon.pid))

    def cut_off(self):
        """Its cable is pulled."""
        self.node.link(False)
        self.linked = False

    def plug(self):
        """Undoes `cut_off`."""
        self.node.link(True)
        self.linked = True

    def heal(self):
        """Nothing is wrong with it. Its daemon may need a moment to see that."""
        for place in self.places:
            place.heal()
        if not self.linked:
            self.plug()
        self.go_on()
        if not self.daemon:
            self.serve()

    def wrote(self):
        """How many lines its daemons have written."""
        return sum(len(it.lines) for it in self.logs)

    def log(self, since, most=160):
        """What its daemons wrote from line `since` on and a little before; of more than `most` lines the beginning and the end."""
        lines = [line for it in self.logs for line in it.lines][max(0, since - 10):]
        if len(lines) > most:
            lines[most // 2:-(most // 2)] = [f"… {len(lines) - most // 2 * 2} lines …"]
        return "\n".join(lines)

    def close(self):
        """Ends all of it."""
        with contextlib.suppress(Exception):
            self.end(signal.SIGKILL)
        for place in self.places:
            place.hypervisor.stop()


class World:
    """See the module's head."""

    def __init__(self, directory, shape, guests=4):
        self.directory, self.shape = pathlib.Path(directory), shape
        self.net = net.Net()
        self.hosts = []
        try:
            self.key = programs.write_key(self.directory / "key")
            self.guests = [self.net.node(f"g{n}", index=100 + n) for n in range(guests)]
            for number, places in enumerate(shape.places, 1):
                self.hosts.append(Host(self, f"h{number}", places))
            self.places = [place for host in self.hosts for place in host.places]
            for host in self.hosts:
                host.configure()
                host.serve()
        except BaseException:
            self.close()
            raise

    def host(self, name):
        """The host of that name."""
        return next(it for it in self.hosts if it.name == name)

    def place(self, name):
        """The place of that name."""
        return next(it for it in self.places if it.name == name)

    def read(self):
        """A Reading of all places."""
        return read(self.places, clock)

    def wrongs(self):
        """What is wrong at this moment: (kind, name)."""
        found = [(it.state, it.name) for it in self.places if not it.well]
        found += [("cut off", it.name) for it in self.hosts if not it.linked]
        found += [("held", it.name) for it in self.hosts if it.held()]
        return found + [("no daemon", it.name) for it in self.hosts if not it.daemon]

    def heal(self):
        """Nothing is wrong anywhere."""
        for host in self.hosts:
            host.heal()

    def agent(self, action, domain, way, guest, seconds):
        """An agent in the background. `way`: "multicast" or the name of a host that is asked over TCP."""
        args = ["-o", action, "-H", domain, "-k", self.key, "-t", seconds]
        if way == "multicast":
            return programs.Agent(self.guests[guest], *args, "-i", "ipv4", program=XVM)
        return programs.Agent(self.guests[guest], *args, "-T", self.host(way).node.ip, program=VIRT)

    def migration(self, domain, here, there):
        """A live migration in the background, slow enough to be stopped on its way: a Popen of its client."""
        return programs.Agent(
            here.host.node, "-q", "-k", "0", "-c", here.hypervisor.uri, "migrate", "--live", "--unsafe", "--bandwidth", "1",
            *(["--persistent"] if self.shape.peers == "listed" else []), domain, there.hypervisor.uri, "--migrateuri",
            f"tcp://{there.host.node.ip if there.host is not here.host else '127.0.0.1'}", program="virsh")

    def close(self):
        """Ends all of it."""
        for host in self.hosts:
            host.close()
        self.net.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


VIRTD, XVM, VIRT = (programs.program("ours", name) for name in ("fence_virtd", "fence_xvm", "fence_virt"))
