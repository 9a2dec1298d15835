# SPDX-License-Identifier: GPL-2.0-or-later
"""The fence_xvm protocol by hand, from the protocol's description and nothing of the Rust code.

Packets: `Request` (176 bytes), `HostEntry` (130), `SerialRequest` (74), serial responses (5), the mutual
challenge in both roles. Peers: `FakeHost` (multicast or TCP) and `FakeClient` do what they are told, also what
an honest peer never does: `Stop` names the step at which a fake host leaves.

Nothing here may be used by a suite to make an expectation from the program's own answer.
"""

import contextlib
import dataclasses
import errno
import hashlib
import hmac
import os
import pathlib
import socket
import struct
import threading
import time

PORT = 1229
GROUP4, GROUP6 = "225.0.0.12", "ff05::3:1"
KEY_MAX = 4096

# Actions.
NULL, OFF, REBOOT, ON, STATUS, MONITOR, LIST = range(7)
ACTIONS = {"null": NULL, "off": OFF, "reboot": REBOOT, "on": ON, "status": STATUS, "monitor": MONITOR, "list": LIST}
# Hash and auth types.
HASH_NONE, SHA1, SHA256, SHA512 = range(4)
HASHES = {"none": HASH_NONE, "sha1": SHA1, "sha256": SHA256, "sha512": SHA512}
HMAC_SHA256, HMAC_SHA512 = 0x12, 0x13
SEALED = {"hmac-sha256": HMAC_SHA256, "hmac-sha512": HMAC_SHA512}
# Responses.
SUCCESS, FAILURE, RESPONSE_OFF, DENIED, LIST_FOLLOWS = 0, 1, 2, 3, 253
FLAG_UUID = 1
# Families as they stand in packets.
IPV4, IPV6 = 2, 10

_REQUEST = struct.Struct("<BBBB64s28sH6sII64s")
_ENTRY = struct.Struct("<64s64sBB")
_SERIAL = struct.Struct("<4sBB64sI")
assert (_REQUEST.size, _ENTRY.size, _SERIAL.size) == (176, 130, 74)
REQUEST_LEN, ENTRY_LEN, SERIAL_REQUEST_LEN, SERIAL_RESPONSE_LEN, CHALLENGE_LEN = 176, 130, 74, 5, 64
CPG_LEN = 156
SERIAL_MAGIC = bytes.fromhex("61626261")  # 0x61626261, little-endian


def read_key(path):
    """The part of a key file that counts."""
    with open(path, "rb") as f:
        return f.read(KEY_MAX)


def digest(hash_type, key, data):
    """H(key ‖ data), zero-padded to 64 bytes; 64 zero bytes for type none or an unknown one."""
    name = {SHA1: "sha1", SHA256: "sha256", SHA512: "sha512"}.get(hash_type)
    return hashlib.new(name, key[:KEY_MAX] + data).digest().ljust(64, b"\0") if name else bytes(64)


def keyed_digest(hash_type, key, data):
    """The HMAC of the sealed extension, zero-padded to 64 bytes."""
    name = {HMAC_SHA256: "sha256", HMAC_SHA512: "sha512"}[hash_type]
    return hmac.new(key[:KEY_MAX], data, name).digest().ljust(64, b"\0")


def packet_digest(hash_type, key, unsigned):
    """The hash field of a packet whose hash bytes are zero, classic or sealed."""
    if hash_type in SEALED.values():
        return keyed_digest(hash_type, key, b"fence_virt request\0" + unsigned)
    return digest(hash_type, key, unsigned)


@dataclasses.dataclass
class Request:
    """A 176-byte request. `address` text or None (TCP, vsock); `packet_hash` None: computed by `build`."""

    action: int
    domain: bytes = b""
    hash_type: int = SHA256
    flags: int = 0
    address: str | None = None
    port: int = PORT
    random: bytes = dataclasses.field(default_factory=lambda: os.urandom(6))
    seqno: int = dataclasses.field(default_factory=lambda: int.from_bytes(os.urandom(4), "little"))
    address_len: int | None = None
    family: int | None = None
    packet_hash: bytes | None = None

    def build(self, key=b""):
        """The bytes, signed with `key`."""
        domain = self.domain.encode() if isinstance(self.domain, str) else self.domain
        raw, family = b"", 0
        if self.address is not None:
            family = IPV6 if ":" in self.address else IPV4
            raw = socket.inet_pton(socket.AF_INET6 if family == IPV6 else socket.AF_INET, self.address)
        head = (self.action, self.hash_type, len(raw) if self.address_len is None else self.address_len, self.flags,
                domain[:64], raw, self.port, self.random, self.seqno, family if self.family is None else self.family)
        seal = self.packet_hash
        if seal is None:
            seal = packet_digest(self.hash_type, key, _REQUEST.pack(*head, bytes(64)))
        return _REQUEST.pack(*head, seal)

    @classmethod
    def parse(cls, data):
        """Reads 176 bytes; raises ValueError on another length. The domain ends at its NUL."""
        if len(data) != REQUEST_LEN:
            raise ValueError(f"{len(data)} bytes")
        action, hash_type, alen, flags, domain, addr, port, rnd, seqno, family, seal = _REQUEST.unpack(data)
        address = None
        if alen == 4:
            address = socket.inet_ntop(socket.AF_INET, addr[:4])
        elif alen == 16:
            address = socket.inet_ntop(socket.AF_INET6, addr[:16])
        return cls(action, domain.split(b"\0")[0], hash_type, flags, address, port, rnd, seqno, alen, family, seal)

    @staticmethod
    def verify(data, key):
        """Whether the packet hash of the 176 bytes is right for its own hash type (none: no hash to be wrong)."""
        return data[112:] == packet_digest(data[1], key, data[:112] + bytes(64))


class Proofs:
    """What a stream is proved with: classic by `auth`, or sealed where its `packet` (176 bytes) is."""

    def __init__(self, key, auth, packet=b""):
        self.key, self.auth, self.packet = key, auth, packet
        self.sealed = len(packet) == REQUEST_LEN and packet[1] in SEALED.values()

    @property
    def asked(self):
        """Whether there is a challenge at all."""
        return self.sealed or self.auth != HASH_NONE

    def host(self, c1):
        """Step 2."""
        return self._mac(b"host", c1) if self.sealed else digest(self.auth, self.key, c1)

    def client(self, c1, c2):
        """Step 4."""
        return self._mac(b"client", c1, c2) if self.sealed else digest(self.auth, self.key, c2)

    def seal(self, c1, c2, response):
        """What follows a response; nothing for a classic one."""
        return self._mac(b"response", c1, c2, response) if self.sealed else b""

    def _mac(self, label, *parts):
        data = b"".join((b"fence_virt ", label, b"\0", self.packet[112:176], *parts))
        return keyed_digest(self.packet[1], self.key, data)


@dataclasses.dataclass
class HostEntry:
    """One 130-byte entry of a host list."""

    name: bytes
    uuid: bytes
    state: int

    def build(self):
        """The 130 bytes."""
        return _ENTRY.pack(_b(self.name), _b(self.uuid), self.state, 0)

    @classmethod
    def parse(cls, data):
        """Reads 130 bytes."""
        name, uuid, state, _pad = _ENTRY.unpack(data)
        return cls(name.split(b"\0")[0], uuid.split(b"\0")[0], state)


def build_host_list(entries, code=SUCCESS):
    """A whole list answer on a stream: 253, the entries, the zero entry, the response byte."""
    return bytes([LIST_FOLLOWS]) + b"".join(e.build() for e in entries) + bytes(ENTRY_LEN) + bytes([code])


@dataclasses.dataclass
class SerialRequest:
    """A 74-byte request on a serial line or VM channel."""

    action: int
    domain: bytes = b""
    flags: int = 0
    seqno: int = 0

    def build(self):
        """The 74 bytes."""
        return _SERIAL.pack(SERIAL_MAGIC, self.action, self.flags, _b(self.domain)[:64], self.seqno)

    @classmethod
    def parse(cls, data):
        """Reads 74 bytes; raises ValueError on a wrong magic."""
        magic, action, flags, domain, seqno = _SERIAL.unpack(data)
        if magic != SERIAL_MAGIC:
            raise ValueError(f"magic {magic.hex()}")
        return cls(action, domain.split(b"\0")[0], flags, seqno)


def serial_response(code):
    """The 5 bytes of a serial response."""
    return SERIAL_MAGIC + bytes([code])


@dataclasses.dataclass
class CpgMessage:
    """A message between hosts. `kind` 0 request, 1 reply: `name` is the target; 2 domain. What a kind has not is None."""

    kind: int
    sequence: int = 0
    to: int = 0xffffffff
    name: bytes = b""
    uuid: bytes | None = None
    owner: int | None = None
    state: int | None = None
    action: int | None = None
    client: int | None = None
    response: int | None = None

    @classmethod
    def parse(cls, message):
        """From a message's bytes."""
        kind, sequence, to, _ = struct.unpack_from("<IIII", message)
        assert kind in (0, 1, 2) and len(message) == CPG_LEN, message.hex()
        if kind == 2:
            name, uuid, owner, state = struct.unpack_from("<64sx64sx2xIi", message, 16)
            return cls(kind, sequence, to, name.split(b"\0")[0], uuid.split(b"\0")[0], owner, state)
        name, action, client, response = struct.unpack_from("<128siIi", message, 16)
        return cls(kind, sequence, to, name.split(b"\0")[0], action=action, client=client, response=response)

    def build(self):
        """The message's bytes."""
        head = struct.pack("<IIII", self.kind, self.sequence, self.to, 0)
        if self.kind == 2:
            return head + struct.pack("<64sx64sx2xIi", self.name, self.uuid, self.owner, self.state)
        return head + struct.pack("<128siIi", self.name, self.action, self.client or 0, self.response or 0)


class Closed(Exception):
    """The peer closed the stream before all bytes came; `.data` has those that came."""

    def __init__(self, data):
        super().__init__(f"closed after {len(data)} bytes")
        self.data = data


class Stream:
    """A connected socket that records what went over it: `transcript` is a list of (direction, bytes).

    Direction is ">" for what this end sent and "<" for what it received, in pieces as they were asked for.
    """

    def __init__(self, sock, timeout=10.0):
        self.socket = sock
        sock.settimeout(timeout)
        self.transcript = []

    def send(self, data):
        """Sends all bytes."""
        # Recorded first: who waits for the peer's end of it must find the record complete.
        self.transcript.append((">", data))
        self.socket.sendall(data)

    def recv(self, n):
        """Reads exactly `n` bytes; raises Closed at an early end, TimeoutError on silence."""
        data = b""
        while len(data) < n:
            try:
                piece = self.socket.recv(n - len(data))
            except ConnectionResetError:
                piece = b""
            except OSError as e:
                if e.errno != errno.EIO:  # a pty's other end has gone
                    raise
                piece = b""
            if not piece:
                if data:
                    self.transcript.append(("<", data))
                raise Closed(data)
            data += piece
        self.transcript.append(("<", data))
        return data

    def recv_all(self):
        """Everything until the peer closes."""
        data = b""
        while True:
            try:
                piece = self.socket.recv(65536)
            except ConnectionResetError:
                piece = b""
            if not piece:
                if data:
                    self.transcript.append(("<", data))
                return data
            data += piece

    def close(self, reset=False):
        """Closes; with `reset` the peer sees a connection reset."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def challenge_as_client(stream, key, auth=SHA256, c1=None):
    """The agent's side: steps 1 to 4. Returns whether the host's answer was right. Nothing for auth none."""
    if auth == HASH_NONE:
        return True
    c1 = os.urandom(64) if c1 is None else c1
    stream.send(c1)
    right = stream.recv(64) == digest(auth, key, c1)
    stream.send(digest(auth, key, stream.recv(64)))
    return right


def challenge_as_host(stream, key, auth=SHA256, c2=None):
    """The host's side: steps 1 to 4. Returns whether the client's proof was right. Nothing for auth none."""
    if auth == HASH_NONE:
        return True
    stream.send(digest(auth, key, stream.recv(64)))
    c2 = os.urandom(64) if c2 is None else c2
    stream.send(c2)
    return stream.recv(64) == digest(auth, key, c2)


class Stop:
    """Steps at which a FakeHost leaves the stream, in order."""

    CONNECTED, CHALLENGED, ANSWERED, ASKED, PROVED, RESPONDED = (
        "connected", "challenged", "answered", "asked", "proved", "responded")
    ALL = (CONNECTED, CHALLENGED, ANSWERED, ASKED, PROVED)


class FakeHost:
    """A host in a thread. On "multicast" it joins the group and calls back, on "tcp" it listens.

    `response` is sent as it is (bytes, or a function of the Request). `stop` is a step of Stop at which it closes
    (`how="close"`), resets ("reset") or falls silent until `close` ("hang"). `right_answer=False` proves with a
    wrong hash. Sealed requests are answered sealed; `seal` is a function of the right response bytes and their seal
    that gives what is sent instead; `answers` a function of the packet that gives the one that it speaks of instead.
    `ignore`: how many first datagrams it does not answer. `runs`: /run of each agent that it will meet, where that is not the machine's. `packets`: every (bytes, peer) received;
    `streams`: a Stream for each connection; `proofs`: whether each client's proof was right.
    """

    def __init__(self, node, key=b"", auth=SHA256, response=b"\0", transport="multicast", family=IPV4, port=PORT,
                 group=None, stop=None, how="close", right_answer=True, ignore=0, before=None, timeout=10.0,
                 once=True, seal=None, answers=None, runs=None):
        self.node, self.key, self.auth, self.response = node, key, auth, response
        self.transport, self.stop_at, self.how, self.right_answer = transport, stop, how, right_answer
        self.before, self.timeout, self._ignore, self._once = before, timeout, ignore, once
        self.seal, self.answers = seal or (lambda response, seal: response + seal), answers or (lambda packet: packet)
        self.packets, self.streams, self.proofs, self.errors = [], [], [], []
        self._release, self._handled = threading.Event(), set()
        af = socket.AF_INET6 if family == IPV6 else socket.AF_INET
        # What earlier cases left without an answer is nothing of this host's: our agents hang up on as many call-backs.
        for run in runs or [pathlib.Path("/run")]:
            for guest in node.net.nodes.values():
                guest.know_ports(run, port)
        if transport == "multicast":
            self._socket = multicast_receiver(node, family, group, port)
        else:
            self._socket = node.socket(af)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if af == socket.AF_INET6:
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._socket.bind(("", port))
            self._socket.listen(16)
        self._socket.settimeout(0.1)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self):
        """Ends the host and closes all its streams."""
        self._release.set()
        self._thread.join(self.timeout + 5)
        self._socket.close()
        for s in self.streams:
            s.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _serve(self):
        while not self._release.is_set():
            try:
                if self.transport == "multicast":
                    data, peer = self._socket.recvfrom(65536)
                else:
                    sock, peer = self._socket.accept()
            except TimeoutError:
                continue
            try:
                if self.transport == "multicast":
                    self._datagram(data, peer)
                else:
                    stream = self._stream(sock)
                    data = stream.recv(REQUEST_LEN)
                    self.packets.append((data, peer))
                    self._talk(stream, Request.parse(data), data)
            except (Closed, OSError, ValueError) as e:
                self.errors.append(e)

    def _datagram(self, data, peer):
        self.packets.append((data, peer))
        if self._ignore:
            self._ignore -= 1
            return
        request = Request.parse(data)
        same = (request.action, request.seqno, request.domain)
        if self._once and same in self._handled:
            return
        self._handled.add(same)
        sock = self.node.socket(socket.AF_INET6 if ":" in request.address else socket.AF_INET)
        sock.settimeout(self.timeout)
        sock.connect((request.address, request.port))
        self._talk(self._stream(sock), request, data)

    def _stream(self, sock):
        stream = Stream(sock, self.timeout)
        self.streams.append(stream)
        return stream

    def _talk(self, stream, request, packet):
        proofs, c1, c2 = Proofs(self.key, self.auth, self.answers(packet)), b"", b""
        if self.before:
            self.before(request)
        if self._leaves(stream, Stop.CONNECTED):
            return
        if proofs.asked:
            c1 = stream.recv(64)
            if self._leaves(stream, Stop.CHALLENGED):
                return
            answer = proofs.host(c1)
            stream.send(answer if self.right_answer else bytes(b ^ 0xFF for b in answer))
            if self._leaves(stream, Stop.ANSWERED):
                return
            c2 = os.urandom(64)
            stream.send(c2)
            if self._leaves(stream, Stop.ASKED):
                return
            self.proofs.append(stream.recv(64) == proofs.client(c1, c2))
        if self._leaves(stream, Stop.PROVED):
            return
        response = self.response(request) if callable(self.response) else self.response
        stream.send(self.seal(response, proofs.seal(c1, c2, response)))
        if not self._leaves(stream, Stop.RESPONDED):
            stream.close()

    def _leaves(self, stream, step):
        if self.stop_at != step:
            return False
        if self.how == "hang":
            self._release.wait(600)
        stream.close(reset=self.how == "reset")
        return True


@dataclasses.dataclass
class Outcome:
    """How a FakeClient's request ended.

    `kind`: "code" (a response byte, in `code`), "list" (`entries`, and the last byte in `code`), "silence"
    (no call back, or nothing on the stream until the time-out), "closed" (`step` says while what was awaited),
    "wrong answer" (the host's proof was wrong), "wrong seal" (after the response of a sealed request).
    `transcript` as in Stream.
    """

    kind: str
    code: int | None = None
    entries: list = dataclasses.field(default_factory=list)
    step: str | None = None
    seconds: float = 0.0
    transcript: list = dataclasses.field(default_factory=list)


class FakeClient:
    """A client at `node`. One call of `request` is one whole exchange."""

    def __init__(self, node, key=b"", auth=SHA256, hash_type=SHA256, family=IPV4, port=PORT):
        self.node, self.key, self.auth, self.hash_type = node, key, auth, hash_type
        self.family, self.port = family, port

    @property
    def _af(self):
        return socket.AF_INET6 if self.family == IPV6 else socket.AF_INET

    def packet(self, action, domain=b"", **fields):
        """The bytes of a multicast request of this client; `fields` override those of Request."""
        fields.setdefault("hash_type", self.hash_type)
        fields.setdefault("address", self.node.address(self._af))
        fields.setdefault("port", self.port)
        return Request(action, domain, **fields).build(self.key)

    def send(self, data, times=1, group=None, port=None):
        """Sends datagrams to the group."""
        for _ in range(times):
            multicast_send(self.node, data, self.family, group, self.port if port is None else port)

    @contextlib.contextmanager
    def listening(self, port=None):
        """The socket where hosts call back."""
        s = self.node.socket(self._af)
        try:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("", self.port if port is None else port))
            s.listen(16)
            yield s
        finally:
            s.close()

    def multicast(self, action, domain=b"", timeout=15.0, packet=None, times=1, **fields):
        """One request over multicast; returns an Outcome. `packet`: send these bytes instead."""
        t = time.monotonic()
        with self.listening(fields.get("port")) as listener:
            listener.settimeout(timeout)
            data = packet if packet is not None else self.packet(action, domain, **fields)
            self.send(data, times)
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                return Outcome("silence", step="call back", seconds=time.monotonic() - t)
            return self.converse(Stream(sock, timeout), started=t, packet=data)

    def tcp(self, host, action, domain=b"", timeout=15.0, packet=None, **fields):
        """One request over TCP to `host` (an address); returns an Outcome."""
        t = time.monotonic()
        fields.setdefault("address", None)
        data = packet if packet is not None else self.packet(action, domain, **fields)
        sock = self.node.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        sock.settimeout(timeout)
        sock.connect((host, self.port))
        stream = Stream(sock, timeout)
        stream.send(data)
        return self.converse(stream, started=t, packet=data)

    def converse(self, stream, started=None, c1=None, packet=b""):
        """The challenge and the response on a connected stream, sealed where `packet` is; closes it."""
        proofs, c2, response = Proofs(self.key, self.auth, packet), b"", b""
        started = time.monotonic() if started is None else started
        step = "answer"
        out = Outcome("code", transcript=stream.transcript)
        try:
            if proofs.asked:
                c1 = os.urandom(64) if c1 is None else c1
                stream.send(c1)
                if stream.recv(64) != proofs.host(c1):
                    out.kind = "wrong answer"
                    return out
                step = "challenge"
                c2 = stream.recv(64)
                stream.send(proofs.client(c1, c2))
            step = "response"
            response = stream.recv(1)
            out.code = response[0]
            if out.code == LIST_FOLLOWS:
                out.kind, step = "list", "entry"
                while True:
                    raw = stream.recv(ENTRY_LEN)
                    response += raw
                    if raw == bytes(ENTRY_LEN):
                        break
                    out.entries.append(HostEntry.parse(raw))
                step = "last byte"
                response += stream.recv(1)
                out.code = response[-1]
            if proofs.sealed:
                step = "seal"
                if stream.recv(64) != proofs.seal(c1, c2, response):
                    out.kind = "wrong seal"
        except (Closed, BrokenPipeError):
            out.kind, out.step = "closed", step
        except TimeoutError:
            out.kind, out.step = "silence", step
        finally:
            out.seconds = time.monotonic() - started
            stream.close()
        return out


def multicast_receiver(node, family=IPV4, group=None, port=PORT, interface="eth0"):
    """A UDP socket of the node that has joined the group on one interface."""
    index = node.interface_index(interface)
    if family == IPV6:
        s = node.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("::", port))
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP,
                     socket.inet_pton(socket.AF_INET6, group or GROUP6) + struct.pack("@I", index))
    else:
        s = node.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("", port))
        s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
                     socket.inet_aton(group or GROUP4) + bytes(4) + struct.pack("@i", index))
    return s


def multicast_send(node, data, family=IPV4, group=None, port=PORT, interface="eth0", hops=2):
    """Sends one datagram to the group through one interface of the node; it is not looped back."""
    index = node.interface_index(interface)
    if family == IPV6:
        with node.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, hops)
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
            s.sendto(data, (group or GROUP6, port))
    else:
        with node.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, bytes(8) + struct.pack("@i", index))
            s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, hops)
            s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            s.sendto(data, (group or GROUP4, port))


def multicast_sender(node, group=GROUP4, port=PORT, interface="eth0"):
    """A UDP socket of the node whose datagrams go to the group through that interface: `send`."""
    s = node.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, bytes(8) + struct.pack("@i", node.interface_index(interface)))
    s.connect((group, port))
    return s


def _b(value):
    return value.encode() if isinstance(value, str) else value
