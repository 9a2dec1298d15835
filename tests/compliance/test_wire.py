# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon against clients made by hand: what it takes, drops, and answers."""

import time

import pytest

from compliance.support import VIRTD, differs, only
from lab import programs, wire
from lab.testdriver import uuid_of
from lab.wire import FakeClient

SILENT = 1.5  # seconds of silence that count as "dropped"; an honest request is answered in milliseconds


@pytest.fixture
def client(lab, multicast):
    return FakeClient(lab.guest, lab.key)


def test_status(client):
    got = client.multicast(wire.STATUS, "on1")
    assert (got.kind, got.code) == ("code", wire.SUCCESS)


def test_monitor_and_null(client):
    assert client.multicast(wire.MONITOR).code == wire.SUCCESS
    assert client.multicast(wire.NULL, "on1").code == wire.FAILURE


def test_list(client, domains):
    got = client.multicast(wire.LIST)
    assert (got.kind, got.code) == ("list", wire.SUCCESS)
    assert sorted(e.name.decode() for e in got.entries) == sorted(d.name for d in domains)
    by_name = {e.name.decode(): e for e in got.entries}
    for d in domains:
        assert by_name[d.name].uuid.decode() == d.uuid
    assert (by_name["on1"].state, by_name["off1"].state) == (1, 5)


@only("ours", VIRTD, "reference.md: the reference leaks stack bytes in list entries")
def test_list_entries_hold_no_stray_bytes(client):
    got = client.multicast(wire.LIST)
    raw = [data for way, data in got.transcript if way == "<" and len(data) == wire.ENTRY_LEN]
    assert len(raw) > 1
    for data in raw[:-1]:
        entry = wire.HostEntry.parse(data)
        assert data == entry.build()


def test_uuid_with_and_without_flag_in_any_case(client):
    for text in (uuid_of("off1"), uuid_of("off1").upper()):
        for flags in (0, wire.FLAG_UUID):
            assert client.multicast(wire.STATUS, text, flags=flags).code == wire.RESPONSE_OFF


def test_the_same_datagram_twice(client):
    """A repeated (action, seqno, domain) within 10 s is not carried out again: no second call-back."""
    packet = client.packet(wire.STATUS, "on1")
    assert client.multicast(wire.STATUS, packet=packet).code == wire.SUCCESS
    assert client.multicast(wire.STATUS, packet=packet, timeout=SILENT).kind == "silence"


def test_a_retransmission_is_one_request(client):
    """Same sequence number with another nonce, as agents retransmit."""
    first = client.packet(wire.STATUS, "on1", seqno=77)
    again = client.packet(wire.STATUS, "on1", seqno=77)
    assert first != again
    assert client.multicast(wire.STATUS, packet=first).code == wire.SUCCESS
    assert client.multicast(wire.STATUS, packet=again, timeout=SILENT).kind == "silence"


def test_same_number_for_something_else(client):
    assert client.multicast(wire.STATUS, "on1", seqno=78).code == wire.SUCCESS
    assert client.multicast(wire.STATUS, "off1", seqno=78).code == wire.RESPONSE_OFF
    assert client.multicast(wire.MONITOR, "off1", seqno=78).code == wire.SUCCESS


@differs("protocol.md: a datagram that is not exactly 176 bytes is refused (the reference does not look at the length)",
         about=VIRTD, reference="code", ours="silence")
@pytest.mark.parametrize("change", [lambda p: p[:175], lambda p: p + b"\0"],
                         ids=["175", "177"])
def test_a_datagram_of_another_length(client, change, expected):
    packet = client.packet(wire.STATUS, "on1")
    assert client.multicast(wire.STATUS, packet=change(packet), timeout=SILENT).kind == expected


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 176, b"\xff" * 176, bytes(2000)])
def test_rubbish(client, data):
    assert client.multicast(wire.STATUS, packet=data, timeout=SILENT).kind == "silence"
    assert client.multicast(wire.STATUS, "on1").code == wire.SUCCESS


@pytest.mark.parametrize("fields", [
    {"hash_type": 4}, {"hash_type": 9}, {"hash_type": 255}, {"packet_hash": bytes(64)},
    {"packet_hash": b"\1" * 64}], ids=str)
def test_unknown_hash_type_or_wrong_hash(client, fields):
    assert client.multicast(wire.STATUS, "on1", timeout=SILENT, **fields).kind == "silence"


@pytest.mark.parametrize("hash_type", [wire.HASH_NONE, wire.SHA1])
def test_weaker_than_the_minimum(client, hash_type):
    assert client.multicast(wire.STATUS, "on1", timeout=SILENT, hash_type=hash_type).kind == "silence"


def test_stronger_than_the_minimum(client):
    assert client.multicast(wire.STATUS, "on1", hash_type=wire.SHA512).code == wire.SUCCESS


def test_wrong_key(lab, multicast):
    other = FakeClient(lab.guest, lab.wrong_key_file.read_bytes())
    assert other.multicast(wire.OFF, "vm1", timeout=SILENT).kind == "silence"
    assert FakeClient(lab.guest, lab.key).multicast(wire.STATUS, "vm1").code == wire.SUCCESS


def test_right_request_but_a_wrong_proof(lab, multicast):
    """A replayed request: signed well, but whoever answers the call-back does not hold the key."""
    client = FakeClient(lab.guest, lab.key)
    packet = client.packet(wire.OFF, "vm2")
    with client.listening() as listener:
        listener.settimeout(5)
        client.send(packet)
        stream = wire.Stream(listener.accept()[0], 5)
        stream.send(bytes(64))
        stream.recv(128)
        stream.send(b"\5" * 64)
        rest = stream.recv_all()
        stream.close()
    assert rest in (b"", bytes([wire.FAILURE])), "never success"
    assert client.multicast(wire.STATUS, "vm2").code == wire.SUCCESS, "still on"


@pytest.mark.parametrize("sent", [0, 1, 64])
def test_a_client_that_leaves_during_the_challenge(lab, multicast, sent):
    client = FakeClient(lab.guest, lab.key)
    with client.listening() as listener:
        listener.settimeout(5)
        client.send(client.packet(wire.OFF, "vm3"))
        stream = wire.Stream(listener.accept()[0], 5)
        if sent:
            stream.send(bytes(sent))
        stream.close()
    got = client.multicast(wire.STATUS, "vm3", timeout=15)
    assert got.code == wire.SUCCESS, "not carried out, and the daemon serves on"


@only("ours", VIRTD, "architecture.md: no peer, however slow or hostile, delays another's request")
def test_a_silent_client_delays_nobody(lab, multicast):
    slow, quick = FakeClient(lab.guest, lab.key), FakeClient(lab.other, lab.key)
    with slow.listening() as listener:
        listener.settimeout(5)
        slow.send(slow.packet(wire.OFF, "vm4"))
        held = listener.accept()[0]
        got = quick.multicast(wire.STATUS, "on1", timeout=5)
        held.close()
    assert got.code == wire.SUCCESS and got.seconds < 1


@only("reference", VIRTD, "architecture.md: the reference handles one request at a time")
def test_a_silent_client_delays_everybody_at_the_reference(lab, multicast):
    slow, quick = FakeClient(lab.guest, lab.key), FakeClient(lab.other, lab.key)
    with slow.listening() as listener:
        listener.settimeout(5)
        slow.send(slow.packet(wire.OFF, "vm4"))
        held = listener.accept()[0]
        got = quick.multicast(wire.STATUS, "on1", timeout=1.5)
        held.close()
    assert got.kind == "silence"
    assert quick.multicast(wire.STATUS, "on1", timeout=15).code == wire.SUCCESS


def test_nobody_listens_for_the_call_back(lab, multicast):
    client = FakeClient(lab.guest, lab.key)
    client.send(client.packet(wire.OFF, "vm5", port=9))
    assert client.multicast(wire.STATUS, "vm5", timeout=15).code == wire.SUCCESS


@pytest.mark.parametrize("text", ["a" * 64, "\0on1", "../on1", "on1\n", " on1", "ON1"])
def test_names_that_are_nearly_right(client, text):
    assert client.multicast(wire.OFF, text, timeout=8).code in (wire.FAILURE, None)
    assert client.multicast(wire.STATUS, "on1").code == wire.SUCCESS


class TestTcp:
    """The same on TCP."""

    @pytest.fixture
    def client(self, lab, tcp):
        return FakeClient(lab.guest, lab.key)

    def test_status_and_list(self, lab, client, domains):
        assert client.tcp(lab.host.ip, wire.STATUS, "off1").code == wire.RESPONSE_OFF
        assert len(client.tcp(lab.host.ip, wire.LIST).entries) == len(domains)

    @pytest.mark.parametrize("fields", [{"hash_type": 9}, {"hash_type": wire.SHA1}, {"packet_hash": bytes(64)}], ids=str)
    def test_refused(self, lab, client, fields):
        got = client.tcp(lab.host.ip, wire.STATUS, "on1", **fields)
        assert got.code is None and got.kind in ("closed", "silence")

    def test_wrong_key(self, lab, tcp):
        got = FakeClient(lab.guest, b"another key, long enough to be one").tcp(lab.host.ip, wire.OFF, "vm1")
        assert got.code is None

    @pytest.mark.parametrize("length", [0, 1, 100, 175])
    def test_a_client_that_leaves_early(self, lab, client, length):
        s = lab.guest.socket()
        s.connect((lab.host.ip, wire.PORT))
        s.send(client.packet(wire.OFF, "vm1", address=None)[:length])
        s.close()
        assert client.tcp(lab.host.ip, wire.STATUS, "vm1", timeout=15).code == wire.SUCCESS

    def test_the_same_stream_of_bytes_needs_the_key_again(self, lab, client):
        """A replayed request on TCP gets as far as the challenge and no further."""
        packet = client.packet(wire.OFF, "vm2", address=None)
        s = lab.guest.socket()
        s.connect((lab.host.ip, wire.PORT))
        stream = wire.Stream(s, 15)
        stream.send(packet + bytes(64))
        try:
            stream.recv(128)
            stream.send(b"\6" * 64)
            rest = stream.recv_all()
        except (wire.Closed, OSError):
            rest = b""
        stream.close()
        assert rest in (b"", bytes([wire.FAILURE]))
        assert client.tcp(lab.host.ip, wire.STATUS, "vm2", timeout=15).code == wire.SUCCESS


@pytest.mark.parametrize("family", ["ipv6"])
def test_ipv6(lab, uri, family):
    config = lab.config(uri, listener_options={"family": family, "port": "1230"})
    with programs.Daemon(lab.host, config, port=1230):
        got = FakeClient(lab.guest, lab.key, family=wire.IPV6, port=1230).multicast(wire.STATUS, "on1")
        assert got.code == wire.SUCCESS
        assert lab.xvm("-i", "ipv6", "-p", "1230", "-o", "status", "-H", "off1").rc == 2


def test_the_duplicate_memory_is_of_this_host_only(lab, multicast):
    """Two guests may use one sequence number for different targets at the same moment."""
    a, b = FakeClient(lab.guest, lab.key), FakeClient(lab.other, lab.key)
    seqno = int(time.time()) & 0xFFFFFFFF
    assert a.multicast(wire.STATUS, "on1", seqno=seqno).code == wire.SUCCESS
    assert b.multicast(wire.STATUS, "off1", seqno=seqno).code == wire.RESPONSE_OFF
