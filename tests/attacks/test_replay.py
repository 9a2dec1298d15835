# SPDX-License-Identifier: GPL-2.0-or-later
"""Eve has no key, and has recorded what the owner sent by multicast. And the same without Eve: an answer that comes to
an older request of the owner's own.

A host that is busy for a moment is a daemon that is stopped (SIGSTOP): what comes meanwhile waits in its socket, so
that the order of things does not depend on luck."""

import socket
import struct
import time

import pytest

from lab import net, wire

from .scene import OURS, PATIENCE, REFERENCE, SIDE, CallBacks, wait_memory

#: Which agents meet our daemon.
AGENTS = [OURS, REFERENCE] if SIDE == OURS else [REFERENCE]
#: Daemon and agent.
PAIRS = [(OURS, OURS), (OURS, REFERENCE), (REFERENCE, OURS)] if SIDE == OURS else [(REFERENCE, REFERENCE)]


def recorded(scene, host, action, domain):
    """The owner's packet of that request, which the host has carried out."""
    since = len(scene.wiretap.requests)
    got = scene.agent(scene.owner, "-o", action, "-H", domain, "-t", "20")
    assert got.rc == 0, got
    packet = scene.wiretap.captured("udp", since)
    assert wire.Request.verify(packet, host.key)
    return packet


def switched_on(host, domain):
    """The domain, up again."""
    assert host.ask(wire.ON, domain).code == wire.SUCCESS
    assert host.state(domain) == "on"


def replayed(scene, host, packet, sent=None):
    """Eve plays the packet again (or what is `sent` in its place) while somebody on the owner's machine proves itself to whoever calls back; returns
    the responses that this one was given."""
    codes = []

    def prove(stream):
        codes.append(wire.FakeClient(scene.owner, host.key).converse(stream).code)
    port = wire.Request.parse(packet).port
    with CallBacks(scene.owner, port, serve=prove):
        wire.multicast_send(scene.eve, packet if sent is None else sent)
        if host.side == REFERENCE:
            net.wait_until(lambda: codes, PATIENCE)
        else:
            # It reads in order, so it has come to a decision; a call-back would come within a millisecond.
            host.state("vm1")
            time.sleep(0.2)
    return codes


def played_while_the_owner_asks(scene, host, play, agent, first=True):
    """Eve plays a packet right before (or after) the owner's agent asks for the status of vm2; the agent's Result."""
    since = len(scene.wiretap.requests)

    def played():
        before = len(scene.wiretap.requests)
        play()
        net.wait_until(lambda: len(scene.wiretap.requests) > before, PATIENCE)
    with host.busy():
        if first:
            played()
        asks = scene.agent(scene.owner, "-o", "status", "-H", "vm2", "-t", "20", side=agent, background=True)
        net.wait_until(lambda: any(data[0] == wire.STATUS for _, data in scene.wiretap.requests[since:]), PATIENCE)
        if not first:
            played()
    return asks.finish()


def test_eleven_seconds_after_a_request(scene):
    """What was carried out is played again when the C daemon has forgotten it (it remembers 10 s): beside an owner who
    proves itself to anybody; beside the owner's agent, which asks for something else; and without having recorded
    anything, by one byte, in place of which the C daemon sees the packet before it, of which it is the first."""
    host = scene.host()
    first = recorded(scene, host, "off", "vm1")
    others = {agent: recorded(scene, host, "off", domain) for agent, domain in zip(AGENTS, ("vm3", "vm4"), strict=False)}
    for domain in ("vm1", "vm3", "vm4"):
        switched_on(host, domain)
    assert host.ask(wire.OFF, "vm2").code == wire.SUCCESS
    # By hand: an agent sends a packet of its loopback address too, when there is time.
    owner = host.client(scene.owner)
    last = owner.packet(wire.OFF, "vm5")
    assert owner.multicast(wire.OFF, packet=last).code == wire.SUCCESS
    since = time.monotonic()
    wait_memory(since)
    codes = replayed(scene, host, last, sent=last[:1])
    assert codes == ([wire.SUCCESS] if SIDE == REFERENCE else [])
    host.told("1 bytes instead of 176")
    codes = replayed(scene, host, first)
    assert codes == ([wire.SUCCESS] if SIDE == REFERENCE else [])
    assert host.state("vm1") == ("off" if SIDE == REFERENCE else "on")
    for (agent, packet), domain in zip(others.items(), ("vm3", "vm4"), strict=False):
        got = played_while_the_owner_asks(scene, host, lambda p=packet: wire.multicast_send(scene.eve, p), agent)
        if SIDE == REFERENCE:
            assert (got.rc, host.state(domain)) == (0, "off"), "the owner shot it, and was told that vm2 is on"
        else:
            assert (got.rc, host.state(domain)) == (2, "on"), got
    host.told("the very same packet was here before")


def test_a_replay_after_a_restart_of_the_daemon(scene):
    """What the C daemon remembers is gone at once. Ours keeps it on disk."""
    host = scene.host()
    packet = recorded(scene, host, "off", "vm1")
    host.restart()
    assert host.state("vm1") == "on", "the test driver's domains are as in the beginning"
    codes = replayed(scene, host, packet)
    assert codes == ([wire.SUCCESS] if SIDE == REFERENCE else [])
    assert host.state("vm1") == ("off" if SIDE == REFERENCE else "on")


def never_arrived(scene, agent):
    """The owner's `off vm1`, which Eve keeps from the host (there is none yet); the owner's agent is ended."""
    scene.owner = scene.fresh_guest()
    since = len(scene.wiretap.requests)
    given_up = scene.agent(scene.owner, "-o", "off", "-H", "vm1", "-t", "20", "-r", "50", side=agent, background=True)
    packet = scene.wiretap.captured("udp", since)
    given_up.process.kill()
    given_up.finish()
    return packet


@pytest.mark.parametrize("agent", AGENTS)
def test_a_request_that_never_arrived_is_played_later(scene, agent):
    """No memory of a host helps against a packet that it has not seen. Eve plays it while the owner's next agent waits
    for another answer. Our host gives a request that comes from elsewhere than the address that it names no precedence
    over one that comes from there."""
    packet = never_arrived(scene, agent)
    host = scene.host()
    assert host.ask(wire.OFF, "vm2").code == wire.SUCCESS
    for first in (True, False) if SIDE == OURS else (True,):
        got = played_while_the_owner_asks(scene, host, lambda: wire.multicast_send(scene.eve, packet), agent, first)
        assert got.rc == (0 if SIDE == REFERENCE else 2), got
        assert host.state("vm1") == ("off" if SIDE == REFERENCE else "on"), got


@pytest.mark.parametrize("agent", AGENTS)
def test_a_request_that_never_arrived_is_played_later_in_the_owners_name(scene, agent):
    """The same, where the network lets Eve send from the owner's address: the host can't tell her from the owner. What
    remains in classic with the C agent, which proves itself to any call-back. Ours listens on the same port, but a
    challenge names the run that it is for, and the owner's datagram that is sent again ends what Eve played."""
    packet = never_arrived(scene, agent)
    host = scene.host()
    assert host.ask(wire.OFF, "vm2").code == wire.SUCCESS
    got = played_while_the_owner_asks(
        scene, host, lambda: spoof(scene.eve, scene.owner.ip, packet), agent, first=SIDE == REFERENCE)
    if agent == REFERENCE:
        assert got.rc == 0 and host.state("vm1") == "off", (got, "classic can't close it on the host")
    else:
        assert got.rc == 2 and host.state("vm1") == "on", got
        host.told("superseded")


def spoof(node, source, data):
    """A datagram to the group that says to come from another address."""
    udp = struct.pack("!HHHH", 40000, wire.PORT, 8 + len(data), 0) + data
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 2, socket.IPPROTO_UDP, 0, socket.inet_aton(source),
                     socket.inet_aton(wire.GROUP4))
    with node.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
        s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, bytes(8) + struct.pack("@i", node.interface_index()))
        s.sendto(ip + udp, (wire.GROUP4, 0))


@pytest.mark.parametrize("virtd, agent", PAIRS, ids=lambda it: it)
def test_the_answer_to_an_abandoned_request_is_taken_by_the_next_agent(scene, virtd, agent):
    """Nobody attacks: an agent that asked for the status of vm1 is killed, the next one asks for vm2 to be shot, and the
    host, busy until now, answers the older request. "Success" would mean that the cluster mounts vm2's disk."""
    scene.owner = scene.fresh_guest()
    host = scene.host(side=virtd)
    since = len(scene.wiretap.requests)

    def heard(action):
        return any(data[0] == action for _, data in scene.wiretap.requests[since:])
    with host.busy():
        first = scene.agent(scene.owner, "-o", "status", "-H", "vm1", "-t", "20", side=agent, background=True)
        net.wait_until(lambda: heard(wire.STATUS), PATIENCE)
        first.process.kill()
        first.finish()
        second = scene.agent(scene.owner, "-o", "off", "-H", "vm2", "-t", "20", side=agent, background=True)
        net.wait_until(lambda: heard(wire.OFF), PATIENCE)
    got = second.finish()
    if (virtd, agent) == (REFERENCE, REFERENCE):
        assert got.rc == 0 and host.state("vm2") == "on", "it said so, and it was not"
    else:
        assert got.rc == 0 and host.state("vm2") == "off", got
