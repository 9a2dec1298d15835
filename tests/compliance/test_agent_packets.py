# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of the agent that show in its packets; the host is made by hand."""

import pytest

from compliance.support import AGENT, only
from lab import programs, wire
from lab.testdriver import uuid_of


@pytest.mark.parametrize("args,field,value", [
    (["-o", "status", "-H", "a b"], "domain", b"a b"), (["-o", "status", "-u", "-H", uuid_of("x")], "flags", 1),
    (["-o", "status", "-H", "x"], "flags", 0), (["-o", "status", "-H", "x", "-c", "sha1"], "hash_type", wire.SHA1),
    (["-o", "status", "-H", "x", "-c", "sha512"], "hash_type", wire.SHA512),
    (["-o", "status", "-H", "x"], "hash_type", wire.SHA256), (["-o", "off", "-H", "x"], "action", wire.OFF),
    (["-o", "on", "-H", "x"], "action", wire.ON), (["-H", "x"], "action", wire.REBOOT),
    (["-o", "null", "-H", "x"], "action", wire.NULL), (["-o", "monitor"], "action", wire.MONITOR),
    (["-o", "status", "-H", "n" * 63], "domain", b"n" * 63), (["-o", "status", "-H", "x"], "family", wire.IPV4)])
def test_field(lab, args, field, value):
    with wire.FakeHost(lab.guest, lab.key) as host:
        r = lab.xvm(*args, at=lab.other)
        assert r.rc == 0, r
        packets = [wire.Request.parse(data) for data, _ in host.packets]
    assert [getattr(p, field) for p in packets][0] == value
    assert packets[0].address == lab.other.ip


@pytest.mark.parametrize("hash_name", ["sha1", "sha256", "sha512"])
def test_signed(lab, hash_name):
    with wire.FakeHost(lab.guest, lab.key, auth=wire.HASHES[hash_name]) as host:
        assert lab.xvm("-o", "status", "-H", "x", "-c", hash_name, "-C", hash_name, at=lab.other).rc == 0
    data, _ = host.packets[0]
    assert wire.Request.verify(data, lab.key) and host.proofs == [True]


def test_no_hash_and_no_auth(lab):
    with wire.FakeHost(lab.guest, lab.key, auth=wire.HASH_NONE, response=b"\2") as host:
        assert lab.xvm("-o", "status", "-H", "x", "-c", "none", "-C", "none", at=lab.other).rc == 2
    assert host.packets[0][0][112:] == bytes(64)


def test_ipv6(lab):
    with wire.FakeHost(lab.guest, lab.key, family=wire.IPV6) as host:
        assert lab.xvm("-i", "ipv6", "-o", "status", "-H", "x", at=lab.other).rc == 0
    request = wire.Request.parse(host.packets[0][0])
    assert (request.address, request.family, request.address_len) == (lab.other.ip6, wire.IPV6, 16)


def test_port_and_group(lab):
    with wire.FakeHost(lab.guest, lab.key, port=4321, group="239.1.2.3") as host:
        assert lab.xvm("-p", "4321", "-a", "239.1.2.3", "-o", "status", "-H", "x", at=lab.other).rc == 0
    assert len(host.packets) == 1


def test_retransmission(lab):
    """Same sequence number, fresh nonce, until a host calls back."""
    with wire.FakeHost(lab.guest, lab.key, ignore=2) as host:
        r = lab.xvm("-o", "status", "-H", "x", "-r", "5", at=lab.other)
    assert r.rc == 0 and r.seconds >= 0.9
    requests = [wire.Request.parse(data) for data, _ in host.packets]
    assert len(requests) == 3
    assert len({q.seqno for q in requests}) == 1 and len({q.random for q in requests}) == 3


def test_a_key_counts_up_to_4096_bytes(lab):
    long = programs.write_key(lab.file(".key"), lab.key + b"more")
    with wire.FakeHost(lab.guest, lab.key) as host:
        assert lab.xvm("-o", "status", "-H", "x", key=long, at=lab.other).rc == 0
    assert host.proofs == [True]


@only("ours", AGENT, "protocol.md, Sealed: asked for by the client, recognised by its own hash types")
@pytest.mark.parametrize("hash_name,number", [("hmac-sha256", 0x12), ("hmac-sha512", 0x13)])
def test_sealed_packet(lab, hash_name, number):
    with wire.FakeHost(lab.guest, lab.key, ignore=99) as host:
        assert lab.xvm("-o", "status", "-H", "x", "-c", hash_name, t=2, at=lab.other).rc == 1
    request = wire.Request.parse(host.packets[0][0])
    assert request.hash_type == number
    assert wire.Request.verify(host.packets[0][0], lab.key)
    assert not wire.Request.verify(host.packets[0][0], b"another key")
