# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the attacks happen: hosts with daemons, an owner who holds the key, and Eve, who does not.

`Scene.host` starts a daemon of either side; `Host.state` asks an honest client what became of a domain. A `Wiretap`
records what goes over the bridge: Eve's captures come from there, and the hashes that no log may show.
"""

import contextlib
import os
import pathlib
import queue
import socket
import struct
import threading
import time

from lab import net as lab_net
from lab import process, programs, testdriver, wire
from lab.programs import SIDE, program

from .leaks import Secrets

OURS, REFERENCE = "ours", "reference"
#: Longer than the reference remembers a request.
MEMORY = 11.0
#: A drop is told within microseconds; this is for machines that stall.
PATIENCE = 15.0
#: What leaves a machine is shown only to sockets that listen to every protocol.
_EVERYTHING = 0x0003


class Scene:
    """One bridge: `host` and `host2`, `owner` and `other` (guests with the key), `eve` (a guest without)."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.secrets = Secrets()
        self.net = lab_net.Net()
        self.host_node, self.host2_node = self.net.node("host"), self.net.node("host2")
        self.owner, self.other, self.eve = (self.net.node(name) for name in ("owner", "other", "eve"))
        self.key_file = self.write_key("key", 512)
        self.key = wire.read_key(self.key_file)
        self.wiretap = Wiretap(self.net.switch, f"p{self.host_node.index}", self.secrets)
        self._count, self._guests = 0, 0

    def close(self):
        """Ends everything."""
        self.wiretap.close()
        self.net.close()

    def write_key(self, name, length):
        """A key file of random bytes; none of its bytes may ever be printed by anybody."""
        path = programs.write_key(self.directory / name, os.urandom(length))
        self.secrets.add_key(wire.read_key(path))
        return path

    def host(self, listener="multicast", *, side=SIDE, node=None, key_file=None, options=None, groups=None,
             domains=("vm1", "vm2", "vm3", "vm4", "vm5"), debug=0, state=None, listeners=None, env=None):
        """A Host. `options`: further keys of the listener; `listeners`: text of all of them instead."""
        self._count += 1
        directory = self.directory / f"host{self._count}"
        directory.mkdir()
        return Host(self, directory, listener, side, node or self.host_node, key_file or self.key_file, options or {},
                    groups, domains, debug, state or directory / "state", listeners, env)

    def fresh_guest(self):
        """A guest with the key that no agent ran on: agents remember the ports that they have left."""
        self._guests += 1
        return self.net.node(f"guest{self._guests}")

    def client(self, node=None, *, key=None, **kw):
        """An honest client made by hand."""
        return wire.FakeClient(node or self.other, self.key if key is None else key, **kw)

    def captured(self, action, target, *, transport="tcp", key=None, **fields):
        """A request of the owner that Eve has recorded and that never reached its host: the most she can have.

        (It was lost on its way, or meant for another host with the same key.)"""
        fields.setdefault("address", self.owner.ip if transport == "multicast" else None)
        return wire.Request(action, target, **fields).build(self.key if key is None else key)

    def agent(self, node, *args, side=SIDE, name="fence_xvm", key_file=None, background=False):
        """Runs an agent of one side with the key, at its highest debug level."""
        argv = [*args, "-k", key_file or self.key_file, "-dddddd"]
        it = programs.Agent(node, *argv, program=program(side, name))
        return it if background else it.finish()

    def quiet_agent(self, node, *args, name="fence_xvm"):
        """Runs our agent to its end as a cluster manager would: with the key, nothing else added."""
        return programs.run_agent(node, *args, "-k", self.key_file, program=program(OURS, name))

    def connect(self, node, to, port=wire.PORT, timeout=PATIENCE):
        """A TCP connection from a node, as a Stream."""
        sock = node.socket()
        sock.settimeout(timeout)
        sock.connect((to, port))
        return wire.Stream(sock, timeout)


class Host:
    """A daemon with domains of libvirt's test driver."""

    def __init__(self, scene, directory, listener, side, node, key_file, options, groups, domains, debug, state,
                 listeners, env):
        self.scene, self.side, self.node, self.key_file = scene, side, node, key_file
        scene.secrets.add_key(wire.read_key(key_file))
        self.key, self.listener, self.directory = wire.read_key(key_file), listener, directory
        self.auth = wire.HASHES[next(iter(options.values()), {}).get("auth", "sha256")]
        self.uri = testdriver.write(directory / "domains.xml", domains)
        self.audit_file = directory / "audit"
        defaults = {"multicast": {"key_file": key_file, "interface": "eth0"},
                    "tcp": {"key_file": key_file, "address": "0.0.0.0"},
                    "serial": {"uri": self.uri, "path": directory, "mode": "serial"}}
        daemon_options = {"audit_log": self.audit_file, "state_dir": state} if side == OURS else None
        blocks = "".join(
            programs._block(name, programs._assignments({**defaults[name], **options.get(name, {})}))
            for name in listener.replace(",", " ").split())
        text = (programs._block("fence_virtd", programs._assignments(
            {"listener": listener, "backend": "libvirt", "module_path": programs.MODULE_PATH, **(daemon_options or {})}))
            + programs._block("listeners", listeners or blocks)
            + programs._block("backends", programs._block("libvirt", programs._assignments({"uri": self.uri}))))
        if groups is not None:
            text += programs._block("groups", "".join(
                programs._block("group", programs._assignments(group)) for group in groups))
        self.config = programs.write_config(directory / "fence_virt.conf", text)
        self._env = env
        self.state_dir, self.debug = state, debug
        pathlib.Path(state).mkdir(mode=0o700, exist_ok=True)
        self.daemon = self._start()

    def _start(self):
        names = self.listener.replace(",", " ").split()
        ready = "udp" if "multicast" in names else "tcp" if "tcp" in names else None
        daemon = programs.Daemon(self.node, self.config, program=program(self.side, "fence_virtd"), ready=ready,
                                 debug=self.debug or (99 if self.side == REFERENCE else 0), env=self._env)
        if self.side == OURS and not self._env:
            # A socket is bound before it has joined its group.
            daemon.wait_serving()
        return daemon

    def restart(self):
        """Ends the daemon and starts it anew with the same files."""
        self.stop()
        self.daemon = self._start()

    @contextlib.contextmanager
    def busy(self):
        """The daemon does nothing until the end of the block."""
        process.freeze(self.daemon.pid)
        try:
            yield
        finally:
            process.thaw(self.daemon.pid)

    def stop(self):
        """Ends the daemon, which must have been alive, and end well."""
        died = not self.daemon.alive()
        code = self.daemon.stop()
        assert not died and code in (0, "killed" if self.side == REFERENCE else 0), \
            f"fence_virtd ended with {code}:\n{self.daemon.log[-4000:]}"

    def client(self, node=None, **kw):
        """An honest client with this host's key."""
        return self.scene.client(node, key=self.key, auth=self.auth, **kw)

    def ask(self, action, target=b"", timeout=PATIENCE, node=None):
        """What an honest client is told; an Outcome. It uses a port of its own."""
        if "multicast" in self.listener:
            return self.client(node).multicast(action, target, timeout=timeout, port=1301)
        return self.client(node).tcp(self.node.ip, action, target, timeout=timeout)

    def state(self, domain="vm1"):
        """"on" or "off", as an honest client is told."""
        got = self.ask(wire.STATUS, domain)
        assert got.kind == "code" and got.code in (wire.SUCCESS, wire.RESPONSE_OFF), (got, self.daemon.log[-3000:])
        return "on" if got.code == wire.SUCCESS else "off"

    def told(self, pattern, since=0, timeout=PATIENCE):
        """Waits for a line of ours that names a drop; the reference says nothing that can be relied on."""
        if self.side == OURS:
            return self.daemon.wait_log(pattern, timeout, since)
        return None

    def mark(self):
        """The place in the log now, for `told`."""
        return len(self.daemon.lines)


class Wiretap:
    """Everything on the bridge. `requests`: each 176-byte request seen, as (transport, bytes), but for those that name
    the sender's loopback address: agents send one of these, too, often first, and no host can call it back. Who has seen
    that one alone has not seen the request on its way."""

    def __init__(self, switch, port, secrets):
        self.requests = []
        self._port, self._secrets, self._closed = port, secrets, False
        with lab_net._in_ns(switch):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EVERYTHING))
        self._socket.settimeout(0.2)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self):
        """Ends the recording."""
        self._closed = True
        self._thread.join(5)
        self._socket.close()

    def begin(self):
        """A new test: what floods of earlier ones left must not fill it."""
        assert self._thread.is_alive(), "the recording has ended: its thread died"
        self.requests.clear()
        self._secrets.begin()

    def captured(self, transport, since=0, timeout=PATIENCE):
        """The first request on that transport after number `since`, as soon as there is one."""
        def there():
            return next((data for how, data in self.requests[since:] if how == transport), None)
        return lab_net.wait_until(there, timeout)

    def _run(self):
        while not self._closed:
            try:
                frame, address = self._socket.recvfrom(65536)
            except TimeoutError:
                continue
            except OSError:
                return
            if address[2] != socket.PACKET_OUTGOING or frame[12:14] != b"\x08\x00" or len(frame) < 34:
                continue
            kind, header = frame[23], 14 + (frame[14] & 15) * 4
            total = struct.unpack_from("!H", frame, 16)[0]
            packet = frame[:14 + total]
            if kind == socket.IPPROTO_UDP:
                transport, payload = "udp", packet[header + 8:]
            elif kind == socket.IPPROTO_TCP:
                transport, payload = "tcp", packet[header + (packet[header + 12] >> 4) * 4:]
            else:
                continue
            if len(payload) < 64:
                continue
            self._secrets.heard(payload)
            if len(payload) >= wire.REQUEST_LEN and payload[0] <= wire.LIST:
                request = payload[:wire.REQUEST_LEN]
                # A multicast frame leaves by every port of the bridge: the first host's one counts.
                counts = transport == "tcp" or (address[0] == self._port
                                                and wire.Request.parse(request).address not in ("127.0.0.1", "::1"))
                if counts and len(self.requests) < 10_000:
                    self.requests.append((transport, request))


class CallBacks:
    """Somebody's call-back port, held open while a test runs: `taken` has a Stream for each connection, `serve` is
    called with each in a thread of its own."""

    def __init__(self, node, port=wire.PORT, serve=None):
        self.taken = queue.Queue()
        self._closed, self._serve = False, serve
        self._listener = node.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("", port))
        self._listener.listen(64)
        self._listener.settimeout(0.1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def next(self, timeout=PATIENCE):
        """The next connection."""
        return self.taken.get(timeout=timeout)

    def close(self):
        """No more."""
        self._closed = True
        self._thread.join(5)
        self._listener.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _run(self):
        while not self._closed:
            try:
                sock, _ = self._listener.accept()
            except TimeoutError:
                continue
            stream = wire.Stream(sock, 10)
            self.taken.put(stream)
            if self._serve:
                threading.Thread(target=self._serve, args=(stream,), daemon=True).start()


def until_silent(stream, seconds=1.0):
    """Reads what comes until the peer closes or says nothing for so long; returns the bytes."""
    stream.socket.settimeout(seconds)
    data = b""
    with contextlib.suppress(TimeoutError, OSError):
        while piece := stream.socket.recv(65536):
            data += piece
    return data


def together(*functions):
    """Runs functions in threads, so that their waits are shared; raises the first failure."""
    results, errors = [None] * len(functions), []

    def run(number, function):
        try:
            results[number] = function()
        except BaseException as e:  # noqa: BLE001 - handed to the test
            errors.append(e)
    threads = [threading.Thread(target=run, args=it, daemon=True) for it in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if errors:
        raise errors[0]
    return results


def wait_memory(since):
    """Returns when the reference has forgotten what it was asked at `since` (time.monotonic)."""
    time.sleep(max(0.0, since + MEMORY - time.monotonic()))
