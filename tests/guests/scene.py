# SPDX-License-Identifier: GPL-2.0-or-later
"""What the cases stand on: the ways out of a guest, the pairs of programs, and a host with two guests.

Environment: GUESTS_PAIRS="ours-ours,reference-ours" (agent-daemon) chooses pairs.
"""

import dataclasses
import os
import shlex

from lab import guest, net, programs
from lab.hypervisor import Hypervisor

PAIRS = ("reference-reference", "ours-ours", "reference-ours", "ours-reference")
CHOSEN = [p.strip() for p in os.environ.get("GUESTS_PAIRS", "").split(",") if p.strip()]

OK, FAILED, OFF, DENIED = 0, 1, 2, 3

#: The bridge that both guests and the host are on.
BRIDGE, MAC, HOST4, HOST6 = "br0", "52:54:00:fe:0c:01", "10.78.0.1", "fd78::1"


def inside(side, name):
    """Its path inside a guest."""
    return f"/{side}/{name}"


@dataclasses.dataclass(frozen=True)
class Pair:
    """Who asks inside the guest and who answers on the host."""

    agent: str
    daemon: str


@dataclasses.dataclass(frozen=True)
class Way:
    """A way from a guest to the host: the daemon's listener with its options, the agent with its arguments.

    `has_key`: the agent proves itself with a key; on the others the socket itself is the proof. `socket`: the kind of
    socket (see Guest.sockets) that the daemon connects to."""

    name: str
    listener: str
    options: dict
    agent: str
    arguments: str
    has_key: bool = True
    socket: str | None = None

    def block(self, scene, side):
        """The listener's options in that side's daemon's configuration."""
        if self.socket:
            # The reference does not start without a key, though no request by these ways is proved with one.
            key = {"key_file": scene.key} if side == "reference" else {}
            directory = scene.hypervisor.directory / self.socket
            return {"uri": scene.hypervisor.uri, "path": directory, **self.options, **key}
        return {"key_file": scene.key, **self.options}

    def ready(self, daemon, guests):
        """Whether the daemon hears requests by it."""
        if not self.socket:
            return daemon.bound("tcp" if self.listener == "tcp" else "udp")
        # Both daemons tell it for each guest: ours names it, the reference its UUID.
        return all(any(f"domain={it.name} " in line and "connected to" in line or f"Registered {it.uuid}" in line
                       for line in daemon.lines) for it in guests)


WAYS = {way.name: way for way in (
    Way("multicast", "multicast", {"interface": BRIDGE}, "fence_xvm", ""),
    Way("multicast6", "multicast", {"interface": BRIDGE, "family": "ipv6"}, "fence_xvm", "-i ipv6"),
    Way("tcp", "tcp", {"address": HOST4}, "fence_virt", f"-T {HOST4}"),
    Way("serial", "serial", {"mode": "serial"}, "fence_virt", "-D /dev/ttyS1", False, "serial"),
    Way("channel", "serial", {"mode": "vmchannel"}, "fence_virt", f"-D /dev/virtio-ports/{guest.CHANNEL}", False,
        "channel"),
    Way("guestfwd", "serial", {"mode": "vmchannel"}, "fence_virt", "", False, "forward"),
)}


class Scene:
    """A host with its hypervisor, and two guests on one bridge; one for the whole session."""

    def __init__(self, scratch):
        self.scratch = scratch
        self.key = programs.write_key(scratch / "key")
        self.wrong_key = programs.write_key(scratch / "wrong_key", bytes(4095) + b"\x01")
        self.kernel = guest.Kernel.fetched()
        self.net = net.Net()
        self.host = self.net.node("host")
        self.make_bridge()
        self.hypervisor = Hypervisor(self.host.ns).start()
        image = self.agents_root().write(scratch / "guest.cpio")
        self.guests = [
            guest.Guest(self.hypervisor, f"n{number}", self.kernel, image, ip=f"10.78.0.1{number}/24",
                        ip6=f"fd78::1{number}/64", bridge=BRIDGE) for number in (1, 2)]

    def agents_root(self, *modules):
        """The root file system of a guest with the agents of both sides and the keys."""
        tree = guest.root(self.kernel, *modules)
        for side in ("reference", "ours"):
            for name in ("fence_xvm", "fence_virt"):
                tree.program(programs.program(side, name), inside(side, name))
        for library in ("libsoftokn3", "libfreebl3", "libfreeblpriv3"):     # the reference loads them when it runs
            path = f"/usr/lib/{os.uname().machine}-linux-gnu/{library}.so"
            if os.path.exists(path):
                tree.program(path)
        tree.text("/etc/key", self.key.read_bytes(), 0o600)
        tree.text("/etc/wrong_key", self.wrong_key.read_bytes(), 0o600)
        return tree

    def make_bridge(self):
        """The bridge, without its ports."""
        # Snooping would drop groups until a querier shows up, and there is none on this bridge.
        self.host.ip_cmd(f"link add {BRIDGE} address {MAC} type bridge mcast_snooping 0")
        self.host.ip_cmd(f"addr add {HOST4}/24 dev {BRIDGE}")
        self.host.ip_cmd(f"addr add {HOST6}/64 dev {BRIDGE} nodad")
        self.host.ip_cmd(f"link set {BRIDGE} up")

    def taps(self):
        """Names of the guests' interfaces on the host."""
        listed = self.host.ip_cmd("-o link show type tun")
        return [line.split(":")[1].strip() for line in listed.splitlines()]

    def guests_up(self):
        """Both guests run and answer. Costs next to nothing where they do."""
        for it in self.guests:
            it.start()
        for it in self.guests:
            it.up()
        return self.guests

    def config(self, path, ways, side, groups=None, devices=()):
        """A configuration of that side's daemon with the listeners of these ways. `groups`: dicts of values. `devices`: blocks
        of the agent backend, which is the only one then."""
        listeners = "".join(f"{way.listener} {{ {values(way.block(self, side))} }}\n" for way in ways)
        text = f"""fence_virtd {{
    listener = "{", ".join(way.listener for way in ways)}";
    backend = "{"agent" if devices else "libvirt"}";
    module_path = "{programs.MODULE_PATH}";
}}
listeners {{
{listeners}}}
backends {{
libvirt {{ uri = "{self.hypervisor.uri}"; }}
{"".join(["agent {", *devices, "}"]) if devices else ""}
}}
"""
        if groups is not None:
            text += "groups {\n" + "".join(f"group {{ {values(it)} }}\n" for it in groups) + "}\n"
        return programs.write_config(path, text)

    def close(self):
        """Ends everything."""
        self.hypervisor.stop()
        self.net.close()


def command(side, way, *args, key="/etc/key"):
    """The shell command for an agent inside a guest."""
    keys = ("-k", key) if way.has_key else ()
    return f"{inside(side, way.agent)} {way.arguments} {shlex.join([*keys, *map(str, args)])}"


def values(options):
    """Assignments of a configuration; a list assigns its key several times."""
    lists = {key: given if isinstance(given, list) else [given] for key, given in options.items()}
    return " ".join(f'{key} = "{value}";' for key, given in lists.items() for value in given)
