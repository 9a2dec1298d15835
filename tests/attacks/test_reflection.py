# SPDX-License-Identifier: GPL-2.0-or-later
"""Eve has no key, and has the host, or a second host, answer challenges for her."""

import os
import struct

import pytest

from lab import wire

from .scene import OURS, SIDE, CallBacks


def begin(stream, packet, c1=None):
    """Sends a request and a challenge and returns the host's challenge; raises Closed where the host hangs up."""
    if packet:
        stream.send(packet)
    stream.send(os.urandom(64) if c1 is None else c1)
    stream.recv(64)
    return stream.recv(64)


def answered(stream, packet, challenge):
    """What the host at the stream answers to a challenge of somebody's choice; b"" when it does not."""
    try:
        if packet:
            stream.send(packet)
        stream.send(challenge)
        return stream.recv(64)
    except (wire.Closed, TimeoutError, OSError):
        return b""


def outcome(stream, answer):
    """The response to a proof; b"" when there is none."""
    try:
        stream.send(answer)
        return stream.recv(1)
    except (wire.Closed, TimeoutError, OSError):
        return b""


def test_reflection_over_two_tcp_connections(scene):
    """What the host asks on one connection Eve asks it on another.

    The C daemon serves one connection at a time, so the second one is not answered while the first one waits: there
    the attack needs two daemons with one key (the next tests)."""
    host = scene.host("tcp")
    off, status = scene.captured(wire.OFF, "vm1"), scene.captured(wire.STATUS, "vm2")
    one, two = (scene.connect(scene.eve, host.node.ip, timeout=2) for _ in range(2))
    c2 = begin(one, off)
    answer = answered(two, status, c2)
    assert answer == b"", "it answered its own challenge"
    assert outcome(one, os.urandom(64)) in (b"", b"\1")
    host.told("our own challenge back")
    one.close()
    two.close()
    assert host.state("vm1") == "on"


def test_reflection_across_transports(scene):
    """Asked on the call-back of a multicast request, answered on TCP: two daemons of C on one host, one of ours."""
    if SIDE == OURS:
        heard = answers = scene.host("multicast, tcp")
    else:
        heard, answers = scene.host("multicast"), scene.host("tcp")
    off = scene.captured(wire.OFF, "vm1", transport="multicast", address=scene.eve.ip)
    status = scene.captured(wire.STATUS, "vm2")
    with CallBacks(scene.eve) as port:
        wire.multicast_send(scene.eve, off)
        one = port.next()
        c2 = begin(one, None)
        with_tcp = scene.connect(scene.eve, answers.node.ip)
        answer = answered(with_tcp, status, c2)
        got = outcome(one, answer or os.urandom(64))
    one.close()
    with_tcp.close()
    if SIDE == OURS:
        assert answer == b"" and got in (b"", b"\1")
        heard.told("our own challenge back")
        assert heard.state("vm1") == "on"
    else:
        assert got == b"\0"
        assert heard.state("vm1") == "off", "shot by somebody without the key"


def test_reflection_across_two_hosts_with_one_key(scene):
    """What one host asks is asked of the other. Each of the two packets must be new to the host that gets it.

    Classic can't close it: the second host can't know what the first one has asked."""
    one, two = scene.host("tcp"), scene.host("tcp", node=scene.host2_node)
    a, b = (scene.connect(scene.eve, host.node.ip) for host in (one, two))
    c2 = begin(a, scene.captured(wire.OFF, "vm1"))
    answer = answered(b, scene.captured(wire.STATUS, "vm2"), c2)
    assert outcome(a, answer) == b"\0"
    a.close()
    b.close()
    assert one.state("vm1") == "off", "as protocol.md says of classic: only sealed closes it"


class Sha256:
    """SHA-256 that goes on from the hash of a message whose length is known (and nothing else of it)."""

    def __init__(self, state, length):
        self._state, self._length = list(struct.unpack(">8I", state)), length

    def extended(self, data):
        """The hash of the message, its padding, and `data`."""
        total = (self._length + len(padding(self._length)) + len(data))
        data += padding(total)
        for i in range(0, len(data), 64):
            self._block(data[i:i + 64])
        return struct.pack(">8I", *self._state)

    def _block(self, block):
        w = list(struct.unpack(">16I", block))
        for i in range(16, 64):
            s0 = _ror(w[i - 15], 7) ^ _ror(w[i - 15], 18) ^ (w[i - 15] >> 3)
            s1 = _ror(w[i - 2], 17) ^ _ror(w[i - 2], 19) ^ (w[i - 2] >> 10)
            w.append((w[i - 16] + s0 + w[i - 7] + s1) & 0xFFFFFFFF)
        a, b, c, d, e, f, g, h = self._state
        for i in range(64):
            s1 = _ror(e, 6) ^ _ror(e, 11) ^ _ror(e, 25)
            t1 = (h + s1 + ((e & f) ^ (~e & g)) + _K[i] + w[i]) & 0xFFFFFFFF
            s0 = _ror(a, 2) ^ _ror(a, 13) ^ _ror(a, 22)
            t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) & 0xFFFFFFFF
            a, b, c, d, e, f, g, h = (t1 + t2) & 0xFFFFFFFF, a, b, c, (d + t1) & 0xFFFFFFFF, e, f, g
        self._state = [(x + y) & 0xFFFFFFFF for x, y in zip(self._state, (a, b, c, d, e, f, g, h), strict=True)]


def _ror(x, n):
    return (x >> n | x << 32 - n) & 0xFFFFFFFF


def _constants():
    """The first 32 bits of the fractional parts of the cube roots of the first 64 primes."""
    primes = [n for n in range(2, 312) if all(n % p for p in range(2, int(n ** 0.5) + 1))]
    for prime in primes[:64]:
        root, n = 0, prime << 96
        for bit in reversed(range(40)):
            if (root | 1 << bit) ** 3 <= n:
                root |= 1 << bit
        yield root & 0xFFFFFFFF


_K = list(_constants())


def padding(length):
    """What SHA-256 adds to a message of so many bytes."""
    return b"\x80" + bytes((55 - length) % 64) + struct.pack(">Q", length * 8)


def forged_head(target):
    """The first 64 bytes of an "off" over TCP: all that Eve needs hashed."""
    return wire.Request(wire.OFF, target).build()[:64]


def forge(head_hash, head, key_length):
    """A whole request that begins with `head`, signed without the key, from H(key ‖ head).

    The padding of that hash must stand in the packet as it is: behind the target's NUL and in the address, which
    nobody reads on TCP."""
    pad = padding(key_length + len(head))
    assert len(head) + len(pad) <= 112, "this key's length does not lend itself to it"
    rest = os.urandom(112 - len(head) - len(pad)) + bytes(64)
    seal = Sha256(head_hash, key_length + len(head)).extended(rest)
    return head + pad + rest[:-64] + seal.ljust(64, b"\0")


@pytest.mark.parametrize("length", [48, 16, 119])
def test_the_forger_can_extend_a_hash(length):
    """The tool itself: what it forges without the key is what the key would have made."""
    key, head = os.urandom(length), forged_head("vm1")
    packet = forge(wire.digest(wire.SHA256, key, head)[:32], head, length)
    assert wire.Request.verify(packet, key)


def test_a_request_forged_by_length_extension(scene):
    """A host answers challenges of anybody who has one captured request: H(key ‖ 64 bytes of Eve's choice). Where the
    length of the key lets the hash's padding fall between the bytes of a request, that is a request in the making.

    Two hosts share the key, as hosts do: at one Eve asks for hashes, the other one is to act."""
    key_file = scene.write_key("key-48", 48)
    victim = scene.host("tcp", key_file=key_file)
    oracle = scene.host("tcp", node=scene.host2_node, key_file=key_file)
    ask = lambda: scene.connect(scene.eve, oracle.node.ip)    # noqa: E731
    captured = lambda: scene.captured(wire.STATUS, "vm2", key=oracle.key)    # noqa: E731
    head = forged_head("vm1")
    since = oracle.mark()
    first = ask()
    head_hash = answered(first, captured(), head)[:32]
    first.close()
    if SIDE == OURS:
        assert head_hash == b"", "a challenge that reads like a request was answered"
        oracle.told("dropped", since)
        for host in (victim, oracle):
            assert host.state("vm1") == "on"
        return
    packet = forge(head_hash, head, 48)
    one, two = scene.connect(scene.eve, victim.node.ip), ask()
    c2 = begin(one, packet)
    got = outcome(one, answered(two, captured(), c2))
    one.close()
    two.close()
    assert got == b"\0"
    assert victim.state("vm1") == "off", "shot by a request that nobody who holds the key ever made"
