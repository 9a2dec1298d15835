# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts and guests as network namespaces on one bridge.

    with Net() as net:
        host, guest = net.node("host"), net.node("guest")
        guest.popen([...])              # a process inside the guest's namespace
        with guest.entered():           # sockets made by this thread belong to the guest
            s = socket.socket()

The bridge has a namespace of its own and every veth is made inside it, so no interface ever shows up in the
root namespace and no packet can leave. Names carry the pid and start time of the process that made them:
several test runs at once don't meet, and what a killed run left behind is found and removed by the next one.
This module must never touch an interface of the root namespace.
"""

import atexit
import contextlib
import ctypes
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

_PREFIX = "fvlab"
_NETNS_DIR = "/run/netns"
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL("libc.so.6", use_errno=True)


class Node:
    """One host or guest: a namespace with `lo` and `eth0`.

    `name`, `ns` (name of the namespace), `ip` (10.77.0.N), `ip6` (fd77::N), `prefix4`, `prefix6`.
    """

    def __init__(self, net, name, index):
        self.net, self.name, self.index = net, name, index
        self.ns = f"{net.prefix}-{name}"
        self.ip = f"10.77.{index // 256}.{index % 256}"
        self.ip6 = f"fd77::{index:x}"
        self.prefix4, self.prefix6 = 16, 64

    def address(self, family):
        """The node's address text for `socket.AF_INET` or `socket.AF_INET6`."""
        return self.ip6 if family == socket.AF_INET6 else self.ip

    @contextlib.contextmanager
    def entered(self):
        """Sockets that this thread makes inside the `with` belong to the node."""
        with _in_ns(self.ns):
            yield self

    def socket(self, family=socket.AF_INET, kind=socket.SOCK_STREAM, proto=0):
        """A socket that belongs to the node."""
        with self.entered():
            return socket.socket(family, kind, proto)

    def command(self, argv):
        """`argv` wrapped so that it runs in the node's namespace; the pid stays that of the program."""
        return ["nsenter", f"--net={_NETNS_DIR}/{self.ns}", "--", *map(str, argv)]

    def popen(self, argv, **kw):
        """`subprocess.Popen` inside the node."""
        return subprocess.Popen(self.command(argv), **kw)

    def run(self, argv, **kw):
        """`subprocess.run` inside the node, output captured as text unless told otherwise."""
        kw.setdefault("capture_output", True)
        kw.setdefault("text", True)
        return subprocess.run(self.command(argv), **kw)

    def ip_cmd(self, text):
        """Runs `ip` with the words of `text` in the node; raises on failure; returns its output."""
        return _ip(f"-n {self.ns} {text}")

    def add_address(self, address):
        """One more address on eth0 (IPv4 or IPv6)."""
        self.ip_cmd(f"addr add {address}/{64 if ':' in address else 16} dev eth0"
                    + (" nodad" if ":" in address else ""))

    def know_ports(self, run=pathlib.Path("/run"), first=1229):
        """Writes the agents' ledgers of their ports: nothing was sent since the machine booted. Without them our agents hang up on
        64 call-backs of a host that names no request: somebody may have removed the ledgers. Also ends what earlier cases left
        without an answer. `run`: what agents of the node see as /run."""
        directory = run / "fence_virt"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        for port in range(first, first + 16):
            # A new file, not a change of the old one: an agent that still has that does not matter any more.
            new = directory / f"{port}-{self.number()}.new"
            new.write_text(f"calls {boot}\nend\n")
            new.chmod(0o600)
            new.rename(new.with_suffix(".lock"))

    def forget_ports(self):
        """Removes the agents' ledgers of the node's ports."""
        for ledger in pathlib.Path("/run/fence_virt").glob(f"*-{self.number()}.lock"):
            ledger.unlink()

    def number(self):
        """Inode of the node's namespace: agents name their ledgers by it."""
        return os.stat(f"{_NETNS_DIR}/{self.ns}").st_ino

    def link(self, up):
        """Pulls or plugs the node's cable (at the bridge's end, so the node sees its carrier go)."""
        _ip(f"-n {self.net.switch} link set p{self.index} {'up' if up else 'down'}")

    def interface_index(self, name="eth0"):
        """Kernel index of an interface inside the node."""
        with self.entered():
            return socket.if_nametoindex(name)


class Net:
    """One bridge and the nodes on it. Use it with `with`, or call `close`; exit closes it in any case."""

    _count = 0

    def __init__(self):
        remove_stale()
        Net._count += 1
        self.prefix = f"{_PREFIX}-{os.getpid()}-{_start_time(os.getpid())}-{Net._count}"
        self.switch = f"{self.prefix}-sw"
        self.nodes = {}
        self._last = 0
        self._closed = False
        atexit.register(self.close)
        _ip(f"netns add {self.switch}")
        with _in_ns(self.switch):
            _sysctl("net/ipv6/conf/all/disable_ipv6", 1)
            _sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        # Snooping would drop groups until a querier shows up, and there is none on this bridge.
        _ip_batch(self.switch, "link set lo up", "link add br0 type bridge mcast_snooping 0", "link set br0 up")

    def node(self, name, index=None, extra=()):
        """A new node; `index` chooses the addresses (10.77.0.index, fd77::index), else it has some that no node of this
        net had before, removed ones included. `extra` adds more."""
        if index is None:
            index = 1 + self._last
        if name in self.nodes:
            raise ValueError(f"node {name} is there already: another case made it, and may have it stand")
        if any(n.index == index for n in self.nodes.values()):
            raise ValueError(f"index {index} is another node's, {name} can't have it")
        self._last = max(self._last, index)
        node = Node(self, name, index)
        _ip(f"netns add {node.ns}")
        self.nodes[name] = node
        with node.entered():
            for where in ("all", "default"):
                # A tentative address can't be bound for a second or two: don't look for duplicates.
                _sysctl(f"net/ipv6/conf/{where}/accept_dad", 0)
                _sysctl(f"net/ipv6/conf/{where}/disable_ipv6", 0)
                _sysctl(f"net/ipv6/conf/{where}/accept_ra", 0)
        _ip_batch(self.switch, f"link add p{index} type veth peer name eth0 netns {node.ns}",
                  f"link set p{index} master br0 up")
        _ip_batch(node.ns, "link set lo up", "link set eth0 up",
                  f"addr add {node.ip}/16 dev eth0", f"addr add {node.ip6}/64 dev eth0 nodad",
                  "route add 224.0.0.0/4 dev eth0")
        for address in extra:
            node.add_address(address)
        node.know_ports()
        return node

    def flood(self, node):
        """The bridge learns nothing from this node's frames, and sends it those for addresses that it does not know: several
        nodes may have one MAC address."""
        port = ["bridge", "-n", self.switch, "link", "set", "dev", f"p{node.index}", "learning", "off", "flood", "on"]
        subprocess.run(port, check=True)

    def remove(self, name):
        """Takes a node away: its processes, its addresses and every connection go as with a machine that burnt."""
        node = self.nodes.pop(name)
        _remove(node.ns)
        # The kernel removes it some time after the namespace, and a new node may have the same index.
        subprocess.run(["ip", "-n", self.switch, "link", "del", f"p{node.index}"], capture_output=True)

    def close(self):
        """Ends every process that still runs in the nodes and removes the namespaces. May be called twice."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        for ns in [n.ns for n in self.nodes.values()] + [self.switch]:
            _remove(ns)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Stage:
    """What most suites stand on: a bridge with a host, guests by number, and a directory."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.net = Net()
        self.host = self.net.node("host")

    def guest(self, number=1):
        """The guest of that number."""
        name = f"g{number}"
        return self.net.nodes.get(name) or self.net.node(name)

    def close(self):
        """Ends everything."""
        self.net.close()


def remove_stale():
    """Removes namespaces of lab runs whose process is gone. Leaves those of living ones alone."""
    try:
        names = os.listdir(_NETNS_DIR)
    except FileNotFoundError:
        return
    for name in names:
        m = re.fullmatch(_PREFIX + r"-(\d+)-(\d+)-\d+-.*", name)
        if m and _start_time(int(m[1])) != int(m[2]):
            _remove(name)


def exit_on_sigterm():
    """Makes SIGTERM an ordinary exit, so that `finally` and atexit clean up."""
    def leave(*_):
        raise SystemExit(143)
    signal.signal(signal.SIGTERM, leave)


def wait_until(check, timeout=60.0, step=0.005):
    """Calls `check` until it returns something true and returns that; raises TimeoutError otherwise."""
    end = time.monotonic() + timeout
    while True:
        got = check()
        if got:
            return got
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout} s: {getattr(check, '__doc__', None) or check}")
        time.sleep(step)


def _remove(ns):
    # Only processes that live in a namespace of the lab can be listed here, so none is a stranger's.
    pids = subprocess.run(["ip", "netns", "pids", ns], capture_output=True, text=True).stdout.split()
    for pid in map(int, pids):
        if pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", ns], capture_output=True)


def _start_time(pid):
    """Start time of a process in clock ticks since boot, or None: tells a pid that was given out again."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return int(f.read().rsplit(")", 1)[1].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


@contextlib.contextmanager
def _in_ns(ns):
    old = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(os.path.join(_NETNS_DIR, ns))
        try:
            yield
        finally:
            if _libc.setns(old, _CLONE_NEWNET):
                # Going on in the wrong namespace could send a test's multicast to the real network.
                os.abort()
    finally:
        os.close(old)


def _setns(path):
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {path}")
    finally:
        os.close(fd)


def _sysctl(name, value):
    with open(f"/proc/sys/{name}", "w") as f:
        f.write(str(value))


def _ip(text):
    done = subprocess.run(["ip", *text.split()], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {text}: {done.stderr.strip()}")
    return done.stdout


def _ip_batch(ns, *lines):
    done = subprocess.run(["ip", "-n", ns, "-batch", "-"], input="\n".join(lines) + "\n", capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip -n {ns}: {done.stderr.strip()}")
