# SPDX-License-Identifier: GPL-2.0-or-later
"""The tcp listener: what it answers, and what silent, slow and greedy peers can't do to others."""

import contextlib
import select
import socket
import statistics
import time

import pytest

from conftest import REFERENCE_VIRT, SERVED_AT_ONCE
from lab import net, programs, testdriver, wire

ANYWHERE = "tcp { @key@ address = \"0.0.0.0\"; }"


@pytest.fixture
def client(stage):
    return wire.FakeClient(stage.guest(1), wire.read_key(stage.key))


def reference(stage, *args, guest=1, key=None, host=None):
    """The reference's agent over TCP."""
    return programs.run_agent(stage.guest(guest), "-T", host or stage.host.ip, "-k", key or stage.key, *args,
                              program=REFERENCE_VIRT)


def connection(stage, guest=1):
    sock = stage.guest(guest).socket()
    sock.settimeout(10)
    sock.connect((stage.host.ip, wire.PORT))
    return sock


# -- what it answers --------------------------------------------------------------------------------------


def test_every_action_of_the_reference_agent(stage, daemon):
    daemon("tcp", ANYWHERE)
    ask = lambda *args: reference(stage, *args).rc    # noqa: E731
    assert ask("-o", "status", "-H", "vm1") == 0
    assert ask("-o", "status", "-H", "vm2") == 2
    assert ask("-o", "off", "-H", "vm1") == 0
    assert ask("-o", "status", "-H", "vm1") == 2
    assert ask("-o", "on", "-H", "vm1") == 0
    assert ask("-o", "reboot", "-H", "vm1") == 0
    assert ask("-o", "status", "-H", "vm1") == 0
    assert ask("-o", "status", "-H", "nobody") == 1
    assert ask("-o", "monitor") == 0
    listing = reference(stage, "-o", "list")
    assert listing.rc == 0
    assert [line.split()[::2] for line in listing.out.splitlines()] == [["vm1", "on"], ["vm2", "off"]]


@pytest.mark.parametrize("auth", ["none", "sha1", "sha256", "sha512"])
@pytest.mark.parametrize("hash", ["none", "sha1", "sha256", "sha512"])
def test_every_hash_of_the_reference_agent(stage, daemon, hash, auth):
    daemon("tcp", f'tcp {{ @key@ address = "0.0.0.0"; hash = "{hash}"; auth = "{auth}"; }}')
    assert reference(stage, "-c", hash, "-C", auth, "-o", "status", "-H", "vm2").rc == 2
    assert reference(stage, "-c", "sha512", "-C", auth, "-o", "status", "-H", "vm1").rc == 0


def test_weaker_hash_is_dropped(stage, daemon):
    it = daemon("tcp", ANYWHERE)
    assert reference(stage, "-c", "sha1", "-o", "status", "-H", "vm1", "-t", "3").rc not in (0, 2)
    it.wait_log("hash-too-weak")


def test_ipv6(stage, daemon):
    daemon("tcp", 'tcp { @key@ address = "::"; }')
    client = wire.FakeClient(stage.guest(1), wire.read_key(stage.key))
    assert client.tcp(stage.host.ip6, wire.STATUS, "vm1").code == wire.SUCCESS
    assert client.tcp(stage.host.ip, wire.STATUS, "vm1").code == wire.SUCCESS


def test_loopback_is_the_default(stage, daemon):
    it = daemon("tcp", "tcp { @key@ }")
    it.wait_log("127.0.0.1:1229")
    with pytest.raises(OSError):
        connection(stage)
    assert programs.run_agent(stage.host, "-T", "127.0.0.1", "-k", stage.key, "-o", "status", "-H", "vm1",
                              program=REFERENCE_VIRT).rc == 0


def test_replay_is_dropped(daemon, client, stage):
    it = daemon("tcp", ANYWHERE)
    packet = client.packet(wire.STATUS, "vm1", address=None)
    assert client.tcp(stage.host.ip, wire.STATUS, packet=packet).code == wire.SUCCESS
    assert client.tcp(stage.host.ip, wire.STATUS, packet=packet).kind == "closed"
    it.wait_log("replay")


def test_what_was_recorded_on_multicast_is_no_request_on_tcp(daemon, client, stage):
    it = daemon("multicast, tcp", 'multicast { @key@ interface = "eth0"; } ' + ANYWHERE)
    packet = client.packet(wire.STATUS, "vm1", port=1300)
    assert client.multicast(wire.STATUS, packet=packet, port=1300).code == wire.SUCCESS
    assert client.tcp(stage.host.ip, wire.STATUS, packet=packet).kind == "closed"
    it.wait_log("replay.*tcp|tcp.*replay")


def test_the_same_number_twice_is_two_requests(daemon, client, stage):
    """A client that connects again asks again: on a stream nothing is retransmitted."""
    daemon("tcp", ANYWHERE)
    for _ in range(2):
        assert client.tcp(stage.host.ip, wire.STATUS, "vm1", seqno=7).code == wire.SUCCESS


def test_groups_by_address(daemon, client, stage):
    daemon("tcp", ANYWHERE, groups=f'groups {{ group {{ ip = "{stage.guest(1).ip}"; uuid = "vm1"; }} }}')
    assert client.tcp(stage.host.ip, wire.STATUS, "vm1").code == wire.SUCCESS
    assert client.tcp(stage.host.ip, wire.OFF, "vm2").code == wire.DENIED
    other = wire.FakeClient(stage.guest(2), wire.read_key(stage.key))
    assert other.tcp(stage.host.ip, wire.STATUS, "vm1").code == wire.DENIED


def test_groups_by_domain_through_the_neighbour_table(daemon, stage):
    """Guest 1 is vm1 by its MAC address, guest 2 is nobody: a group names vm1 as source by name, and by UUID."""
    mac = stage.guest(1).ip_cmd("-o link show eth0").split("link/ether ")[1].split()[0]
    interface = f"<interface type='bridge'><mac address='{mac}'/><source bridge='br0'/></interface>"
    domains = [testdriver.Domain("vm1", devices=interface), testdriver.Domain("vm2")]
    for member in ("vm1", testdriver.uuid_of("vm1").upper()):
        it = daemon("tcp", 'tcp { @key@ address = "::"; }', domains,
                    groups=f'groups {{ group {{ uuid = "{member}"; uuid = "vm2"; }} }}')
        one, two = (wire.FakeClient(stage.guest(n), wire.read_key(stage.key)) for n in (1, 2))
        for address in (stage.host.ip, stage.host.ip6):
            # The domains are read a moment after the start.
            net.wait_until(lambda a=address: one.tcp(a, wire.STATUS, "vm2").code == wire.SUCCESS)
            assert two.tcp(address, wire.STATUS, "vm2").code == wire.DENIED
        it.stop()


# -- what others can't do to a client ---------------------------------------------------------------------


def median_ms(ask, times=15):
    took = []
    for _ in range(times):
        start = time.monotonic()
        assert ask() == wire.SUCCESS
        took.append((time.monotonic() - start) * 1000)
    return statistics.median(took), max(took)


def test_500_silent_connections(daemon, stage, record_property):
    it = daemon("tcp", ANYWHERE)
    client = wire.FakeClient(stage.guest(2), wire.read_key(stage.key))
    ask = lambda: client.tcp(stage.host.ip, wire.STATUS, "vm1").code    # noqa: E731
    alone, _ = median_ms(ask)
    with contextlib.ExitStack() as held:
        for _ in range(500):
            held.enter_context(connection(stage))
        beside, worst = median_ms(ask)
        record_property("status_ms", (alone, beside, worst))
        print(f"status: {alone:.1f} ms alone, {beside:.1f} ms beside 500 silent connections (worst {worst:.1f})")
        assert worst < SERVED_AT_ONCE
        it.wait_log("pushed-out")


def test_silent_connections_from_many_peers(daemon, stage, record_property):
    """More than there is room for: the oldest silent one makes room."""
    it = daemon("tcp", ANYWHERE)
    client = wire.FakeClient(stage.guest(2), wire.read_key(stage.key))
    ask = lambda: client.tcp(stage.host.ip, wire.STATUS, "vm1").code    # noqa: E731
    guest = stage.guest(1)
    addresses = [f"10.77.200.{n}" for n in range(1, 13)]
    for address in addresses:
        guest.add_address(address)
    with contextlib.ExitStack() as held:
        for address in addresses:
            for _ in range(100):
                sock = held.enter_context(guest.socket())
                sock.bind((address, 0))
                sock.connect((stage.host.ip, wire.PORT))
        beside, worst = median_ms(ask)
        record_property("status_ms", (beside, worst))
        assert worst < SERVED_AT_ONCE
        it.wait_log("pushed-out")
    for address in addresses:
        guest.ip_cmd(f"addr del {address}/16 dev eth0")


def test_a_silent_connection_is_closed(daemon, stage):
    it = daemon("tcp", ANYWHERE)
    with connection(stage) as sock:
        assert sock.recv(1) == b""
    it.wait_log("no-request")


def test_dripping_is_no_way_to_stay(daemon, stage, client):
    it = daemon("tcp", ANYWHERE)
    start = time.monotonic()
    with connection(stage) as sock:
        for byte in client.packet(wire.STATUS, "vm1", address=None):
            with contextlib.suppress(OSError):
                sock.send(bytes([byte]))
            if select.select([sock], [], [], 0.1)[0]:
                break
        assert time.monotonic() - start < 10
    it.wait_log("no-request")


def test_fifteen_who_do_not_read_a_long_list(daemon, stage, client):
    domains = [testdriver.Domain(f"vm{n}") for n in range(1000)]
    daemon("tcp", ANYWHERE, domains)
    with contextlib.ExitStack() as held:
        for _ in range(15):
            sock = held.enter_context(stage.guest(1).socket())
            # As little room as the kernel gives, so that the list does not fit.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            sock.settimeout(10)
            sock.connect((stage.host.ip, wire.PORT))
            stream = wire.Stream(sock)
            stream.send(client.packet(wire.LIST, address=None))
            assert wire.challenge_as_client(stream, client.key)
        other = wire.FakeClient(stage.guest(2), wire.read_key(stage.key))
        _, worst = median_ms(lambda: other.tcp(stage.host.ip, wire.STATUS, "vm1").code, 10)
        assert worst < SERVED_AT_ONCE


def test_a_flood_of_connections_leaves_nothing_behind(daemon, stage, client):
    it = daemon("tcp", ANYWHERE)
    assert client.tcp(stage.host.ip, wire.STATUS, "vm1").code == wire.SUCCESS
    before = it.descriptors()
    for _ in range(3000):
        connection(stage).close()
    assert client.tcp(stage.host.ip, wire.STATUS, "vm1").code == wire.SUCCESS
    net.wait_until(lambda: it.descriptors() <= before + 5)


def test_port_in_use(daemon, stage):
    with stage.host.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)     # TIME-WAIT of other cases
        other.bind(("127.0.0.1", wire.PORT))
        other.listen()
        with pytest.raises(RuntimeError, match=r"tcp: can't listen at 127.0.0.1:1229"):
            daemon("tcp", "tcp { @key@ }", ready=lambda it: False)
