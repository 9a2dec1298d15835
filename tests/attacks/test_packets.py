# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets that nobody with the key ever made, or not like this; hosts and agents that don't agree on how to prove it."""

import pytest

from lab import programs, wire

from .scene import OURS, SIDE, CallBacks


def call_backs_of(scene, host, packets):
    """Sends multicast packets that name Eve's address; how many call-backs came of them."""
    with CallBacks(scene.eve) as port:
        for number, packet in enumerate(packets):
            wire.multicast_send(scene.eve, packet)
            if number % 50 == 49:
                # The C daemon's socket holds few datagrams: wait until it has read them.
                host.state("vm1")
        assert host.state("vm1") == "on"
        return port.taken.qsize()


def test_every_byte_of_a_request_changed(scene):
    """Both daemons drop all of them: the hash covers the packet. (The C daemon does check what it reads.)"""
    host = scene.host()
    packet = scene.captured(wire.OFF, "vm1", transport="multicast", address=scene.eve.ip)
    changed = [bytes([*packet[:i], packet[i] ^ bit, *packet[i + 1:]]) for i in range(len(packet)) for bit in (1, 128)]
    assert call_backs_of(scene, host, changed) == 0
    host.told("hash does not fit")
    # The control: unchanged, it is called back.
    with CallBacks(scene.eve) as port:
        wire.multicast_send(scene.eve, packet)
        port.next().close()


@pytest.mark.parametrize("fields, reason", [
    ({"hash_type": wire.HASH_NONE}, "weaker"),
    ({"hash_type": wire.SHA1}, "weaker"),
    ({"hash_type": 4, "packet_hash": bytes(64)}, "unknown hash type"),
    ({"hash_type": 9, "packet_hash": bytes(64)}, "unknown hash type"),
    ({"hash_type": 255, "packet_hash": bytes(64)}, "unknown hash type"),
], ids=["unsigned", "sha1", "type-4", "type-9", "type-255"])
def test_a_packet_with_a_weaker_or_an_unknown_hash(scene, fields, reason):
    """Both daemons drop them, as long as they have a key: see the next test."""
    host = scene.host()
    packet = scene.captured(wire.OFF, "vm1", transport="multicast", address=scene.eve.ip, **fields)
    assert call_backs_of(scene, host, [packet]) == 0
    host.told(reason)


@pytest.mark.parametrize("content", [None, b"", b"\x5a"], ids=["missing", "empty", "one-byte"])
def test_a_host_with_a_key_file_that_holds_no_key(scene, content, tmp_path):
    """Ours does not start. The C daemon does not either without a file; with an empty one it drops everything; and a
    key of one byte is found by trying 256 of them."""
    key = tmp_path / "key"
    if content is not None:
        programs.write_key(key, content)
    if SIDE == OURS or content is None:
        with pytest.raises(RuntimeError, match="key"):
            scene.host(options={"multicast": {"key_file": key}})
        return
    host = scene.host(key_file=key)
    guesses = [bytes([n]) for n in range(256)] if content else [b"", bytes(64)]
    for number, guess in enumerate(guesses):
        eve = wire.FakeClient(scene.eve, guess, port=wire.PORT)
        if content and number % 50 == 49:
            host.state("vm2")       # its socket holds few datagrams
        packet = eve.packet(wire.OFF, "vm1", port=2000 + number)
        if guess == content and content:
            assert eve.multicast(wire.OFF, packet=packet, port=2000 + number).code == wire.SUCCESS
        else:
            wire.multicast_send(scene.eve, packet)
    if content:
        assert host.state("vm1") == "off", "shot by somebody who guessed"


@pytest.mark.parametrize("host_auth, agent_auth", [
    ("sha256", "none"), ("sha256", "sha1"), ("sha1", "sha256"), ("sha512", "sha256"), ("none", "sha256")])
def test_host_and_agent_with_different_auth(scene, host_auth, agent_auth):
    """Nothing runs, and no agent takes it for done, on either side (the control is every other test)."""
    host = scene.host(options={"multicast": {"auth": host_auth}})
    got = scene.agent(scene.owner, "-o", "off", "-H", "vm1", "-C", agent_auth, "-t", "2", "-r", "30")
    assert got.rc not in (0, None), got
    if host_auth != "none":
        # With "none" no proof was asked of anybody, so the request may run; the agent must not believe it.
        assert host.state("vm1") == "on"


def test_a_host_that_asks_for_no_proof_by_its_configuration(scene):
    """`auth = "none"` with a packet hash: whoever has one captured packet may use it. Written down in the
    configuration, so both obey; ours says so at every start, and takes each packet once."""
    host = scene.host(options={"multicast": {"auth": "none"}})
    packet = scene.captured(wire.OFF, "vm1", transport="multicast", address=scene.eve.ip)
    nobody = wire.FakeClient(scene.eve, b"", auth=wire.HASH_NONE)
    got = nobody.multicast(wire.OFF, packet=packet)
    assert got.code == wire.SUCCESS
    if SIDE == OURS:
        assert nobody.multicast(wire.OFF, packet=packet, timeout=1).kind == "silence"
        host.told("the very same packet was here before")
        assert any("WARN" in line and "auth" in line for line in host.daemon.lines), host.daemon.log
