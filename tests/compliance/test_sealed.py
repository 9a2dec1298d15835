# SPDX-License-Identifier: GPL-2.0-or-later
"""Sealed requests (docs/protocol.md, "Sealed") against peers made by hand, for the daemon and for the agents."""

import os

import pytest

from compliance.support import AGENT, VIRTD, only, told
from lab import programs, wire
from lab.wire import FakeClient, FakeHost, HostEntry, Stop

RULE = "protocol.md, Sealed: the reference has no such thing"
SILENT = 1.5  # seconds of silence that count as "dropped"
PORT = 1242
SEALED = list(wire.SEALED)
TRANSPORTS = ["multicast", "tcp"]
ROWS = [HostEntry("vm1", "6c6e0a5c-2b3a-4b0e-9a57-0d4a3f6b1c2d", 1), HostEntry("vm2", "u2", 5), HostEntry("vm3", "u3", 1)]
LIST = wire.build_host_list(ROWS)


# -- the daemon -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=TRANSPORTS)
def sealed(request, lab, uri):
    """A daemon that takes sealed requests only, and whose setting for classic challenges would be "none"."""
    options = {"hash": "hmac-sha256", "auth": "none", "port": PORT}
    if request.param == "multicast":
        options["negative_delay"] = "0"
    config = lab.config(uri, request.param, listener_options=options)
    ready = "udp" if request.param == "multicast" else "tcp"
    with programs.Daemon(lab.host, config, port=PORT, ready=ready) as daemon:
        daemon.ask = asker(lab, request.param, PORT)
        yield daemon


def asker(lab, transport, port):
    """ask(client's fields…, action, domain, …) → Outcome, by this transport."""
    def ask(*args, key=None, auth=wire.SHA256, timeout=5.0, **fields):
        client = FakeClient(lab.guest, key or lab.key, auth=auth, port=port)
        fields.setdefault("hash_type", wire.HMAC_SHA256)
        if transport == "tcp":
            return client.tcp(lab.host.ip, *args, timeout=timeout, **fields)
        return client.multicast(*args, timeout=timeout, **fields)
    return ask


@only("ours", VIRTD, RULE)
@pytest.mark.parametrize("hash_type", wire.SEALED.values(), ids=SEALED)
def test_answers_are_sealed(sealed, domains, hash_type):
    """Each kind of answer, its seal checked by the client; `auth = "none"` takes nothing away."""
    for target, code in (("on1", wire.SUCCESS), ("off1", wire.RESPONSE_OFF)):
        got = sealed.ask(wire.STATUS, target, hash_type=hash_type)
        assert (got.kind, got.code) == ("code", code), (got, sealed.log)
    got = sealed.ask(wire.LIST, hash_type=hash_type)
    assert (got.kind, got.code, len(got.entries)) == ("list", wire.SUCCESS, len(domains)), (got, sealed.log)
    got = sealed.ask(wire.OFF, "nobody heard of it", hash_type=hash_type, timeout=10)
    assert (got.kind, got.code) == ("code", wire.FAILURE), (got, sealed.log)


@only("ours", VIRTD, RULE)
def test_classic_is_below_a_sealed_minimum(lab, sealed):
    for hash_type in (wire.SHA512, wire.SHA1, wire.HASH_NONE):
        got = sealed.ask(wire.STATUS, "on1", hash_type=hash_type, timeout=SILENT)
        assert got.kind in ("silence", "closed") and got.code is None
    # One line for a peer and a reason, however often it tries.
    said = sealed.wait_log("dropped: hash sha512 is weaker than hmac-sha256, the minimum here.*peer=.*").string
    assert lab.guest.ip in said


@only("ours", VIRTD, RULE)
def test_the_stronger_of_both_as_minimum(lab, uri):
    config = lab.config(uri, listener_options={"hash": "hmac-sha512", "port": 1243})
    with programs.Daemon(lab.host, config, port=1243) as daemon:
        ask = asker(lab, "multicast", 1243)
        assert ask(wire.STATUS, "on1", hash_type=wire.HMAC_SHA256, timeout=SILENT).kind == "silence"
        assert ask(wire.STATUS, "on1", hash_type=wire.HMAC_SHA512).code == wire.SUCCESS, daemon.log


@only("ours", VIRTD, RULE)
def test_denials_are_sealed(lab, uri):
    config = lab.config(uri, "tcp", listener_options={"port": 1244}, groups=[{"ip": "192.0.2.1", "uuid": "on1"}])
    with programs.Daemon(lab.host, config, port=1244, ready="tcp") as daemon:
        got = asker(lab, "tcp", 1244)(wire.STATUS, "on1")
        assert (got.kind, got.code) == ("code", wire.DENIED), (got, daemon.log)


@only("ours", VIRTD, RULE)
def test_both_kinds_are_served_where_the_minimum_is_classic(lab, uri):
    # At a port of its own: the agents below ask hosts made by hand, at the usual one.
    with programs.Daemon(lab.host, lab.config(uri, listener_options={"port": 1245}), port=1245) as daemon:
        ask = asker(lab, "multicast", 1245)
        for hash_type in (wire.HMAC_SHA256, wire.SHA256, wire.HMAC_SHA512):
            got = ask(wire.STATUS, "on1", hash_type=hash_type)
            assert (got.kind, got.code) == ("code", wire.SUCCESS), (got, daemon.log)


@only("ours", VIRTD, RULE)
def test_what_a_sealed_request_needs(lab, sealed):
    """The key, the packet's own hash, and a packet that was not here before."""
    for fields in ({"key": b"another key"}, {"packet_hash": bytes(64)}, {"packet_hash": os.urandom(64)}):
        got = sealed.ask(wire.OFF, "vm1", timeout=SILENT, **fields)
        assert got.kind in ("silence", "closed") and got.code is None, (got, sealed.log)
    client = FakeClient(lab.guest, lab.key, hash_type=wire.HMAC_SHA256, port=PORT)
    packet = client.packet(wire.STATUS, "vm1", address=client.node.ip)
    assert sealed.ask(wire.STATUS, packet=packet).code == wire.SUCCESS
    got = sealed.ask(wire.STATUS, packet=packet, timeout=SILENT)
    assert got.kind in ("silence", "closed") and got.code is None


@only("ours", VIRTD, RULE)
@pytest.mark.parametrize("how", ["classic", "another packet's", "changed in the padding"])
def test_a_proof_that_is_not_for_this_request(lab, tcp, how):
    """A client that is made to prove something else fences nothing here."""
    client = FakeClient(lab.guest, lab.key, hash_type=wire.HMAC_SHA256)
    packet = client.packet(wire.OFF, "vm1", address=None)
    sock = lab.guest.socket()
    sock.connect((lab.host.ip, wire.PORT))
    stream = wire.Stream(sock)
    stream.send(packet)
    c1 = os.urandom(64)
    stream.send(c1)
    assert stream.recv(64) == wire.Proofs(lab.key, wire.SHA256, packet).host(c1)
    other = client.packet(wire.OFF, "vm1", address=None)
    answer = wire.Proofs(lab.key, wire.SHA256, {"classic": b"", "another packet's": other}.get(how, packet)).client(
        c1, stream.recv(64))
    stream.send(answer[:63] + b"\1" if how == "changed in the padding" else answer)
    assert stream.recv_all() == b""
    stream.close()
    tcp.wait_log("wrong answer to the challenge")
    assert client.tcp(lab.host.ip, wire.STATUS, "vm1").code == wire.SUCCESS, "still on"


@only("ours", VIRTD, "protocol.md: a challenge that reads like a request is not hashed")
def test_a_challenge_that_reads_like_a_request(lab, tcp):
    """With its answer a packet could be forged that the daemon would take for one of somebody who holds the key."""
    client = FakeClient(lab.guest, lab.key)
    begins = wire.Request(wire.OFF, "vm1", wire.SHA256).build(lab.key)[:64]
    since = len(tcp.lines)
    for c1 in (begins, b"\x04\x03\x10\x01" + bytes(60)):
        sock = lab.guest.socket()
        sock.connect((lab.host.ip, wire.PORT))
        stream = wire.Stream(sock)
        stream.send(client.packet(wire.STATUS, "on1", address=None))
        assert client.converse(stream, c1=c1).kind == "closed"
    tcp.wait_log("challenge reads like a request", since=since)
    assert client.tcp(lab.host.ip, wire.STATUS, "on1").code == wire.SUCCESS


# -- the agents -------------------------------------------------------------------------------------------


def ask(lab, transport, *args, hash_name="hmac-sha256", t=8):
    """One sealed agent run at `other` while `guest` plays the host."""
    if transport == "multicast":
        return lab.xvm("-c", hash_name, *args, t=t, at=lab.other)
    return programs.run_agent(lab.other, "-T", lab.guest.ip, "-c", hash_name, *args, "-k", lab.key_file, "-t", t,
                              program=programs.FENCE_VIRT)


@only("ours", AGENT, RULE)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("hash_name", SEALED)
def test_a_sealed_host_is_believed(lab, transport, hash_name):
    for response, code in ((b"\0", 0), (b"\2", 2), (b"\1", 1), (b"\3", 3)):
        with FakeHost(lab.guest, lab.key, transport=transport, response=response) as host:
            r = ask(lab, transport, "-o", "status", "-n", "vm1", hash_name=hash_name)
        assert (r.rc, host.proofs) == (code, [True]), r
    with FakeHost(lab.guest, lab.key, transport=transport, response=LIST):
        r = ask(lab, transport, "-o", "list", hash_name=hash_name)
    assert (r.rc, len(r.out.splitlines())) == (0, len(ROWS)), r


def swapped(response, seal):
    """A list whose first two rows have changed places."""
    a, b = 1, 1 + wire.ENTRY_LEN
    return response[:a] + response[b:b + wire.ENTRY_LEN] + response[a:b] + response[b + wire.ENTRY_LEN:] + seal


CHANGES = {
    "another response": lambda r, s: bytes([r[0] ^ 1]) + r[1:] + s,
    "no seal": lambda r, s: r,
    "half a seal": lambda r, s: r + s[:32],
    "a changed seal": lambda r, s: r + s[:10] + bytes([s[10] ^ 1]) + s[11:],
    "a changed padding": lambda r, s: r + s[:63] + b"\1",
    "a seal of something else": lambda r, s: r + wire.keyed_digest(wire.HMAC_SHA256, b"xx", r),
}
LIST_CHANGES = {
    "a row less": lambda r, s: r[:1] + r[1 + wire.ENTRY_LEN:] + s,
    "rows in another order": swapped,
    "cut in a row": lambda r, s: r[:200],
    "cut after the rows": lambda r, s: r[:-1],
    "no seal": lambda r, s: r,
    "a changed row": lambda r, s: r[:1] + b"x" + r[2:] + s,
}


@only("ours", AGENT, RULE)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("response", [b"\0", b"\1"], ids=["success", "failure"])
def test_a_response_that_was_changed_on_the_way(lab, transport, change, response):
    with FakeHost(lab.guest, lab.key, transport=transport, response=response, seal=CHANGES[change]):
        r = ask(lab, transport, "-o", "off", "-n", "vm1")
    assert r.rc == 1 and "seal" in told(r) and "Timed out" not in told(r), r


@only("ours", AGENT, RULE)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("change", LIST_CHANGES)
def test_a_list_that_was_changed_on_the_way(lab, transport, change):
    """No row of it is shown."""
    with FakeHost(lab.guest, lab.key, transport=transport, response=LIST, seal=LIST_CHANGES[change]):
        r = ask(lab, transport, "-o", "list", t=3)
    assert r.rc == 1 and ("seal" in told(r) or "broke off" in told(r)), r


@only("ours", AGENT, RULE)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("how", ["classic", "another packet"])
def test_a_host_that_speaks_of_something_else(lab, transport, how):
    """It gets no proof, although it holds the key."""
    other = wire.Request(wire.OFF, "vm1", wire.HMAC_SHA256).build(lab.key)
    answers = {"classic": lambda _: b"", "another packet": lambda _: other}[how]
    with FakeHost(lab.guest, lab.key, transport=transport, answers=answers) as host:
        r = ask(lab, transport, "-o", "off", "-n", "vm1", t=2)
    assert r.rc == 1 and "wrong answer to the challenge" in told(r), r
    assert not any(host.proofs)
    # Its challenge, and nothing more.
    assert all(len(data) in (wire.CHALLENGE_LEN, wire.REQUEST_LEN) for s in host.streams
               for way, data in s.transcript if way == "<")


@only("ours", AGENT, RULE)
def test_any_packet_of_the_request_may_be_answered(lab):
    """The host speaks of the first of three transmissions."""
    with FakeHost(lab.guest, lab.key, ignore=2, answers=lambda _: host.packets[0][0]) as host:
        r = ask(lab, "multicast", "-o", "off", "-n", "vm1")
    assert (r.rc, host.proofs) == (0, [True]), r


@only("ours", AGENT, RULE)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_no_answer_names_old_hosts(lab, transport):
    """A host of the C programs drops sealed packets as unknown."""
    with FakeHost(lab.guest, lab.key, transport=transport, ignore=99, stop=Stop.CONNECTED):
        r = ask(lab, transport, "-o", "off", "-n", "vm1", t=1)
    assert r.rc == 1 and "C programs drops sealed requests" in told(r), r


@only("ours", AGENT, RULE)
@pytest.mark.parametrize("args, words", [
    (["-c", "hmac-sha256", "-C", "none"], "leave auth out"),
    (["-C", "hmac-sha512"], "goes only with hash hmac-sha512"),
], ids=str)
def test_options_that_do_not_go_together(lab, args, words):
    r = lab.xvm("-o", "status", "-H", "x", *args, t=1)
    assert r.rc == 1 and words in told(r), r


@only("ours", AGENT, RULE)
def test_sealed_by_standard_input(lab):
    with FakeHost(lab.guest, lab.key) as host:
        r = lab.stdin("hash=hmac-sha512\nauth=sha256\naction=status\nport=vm1\n", at=lab.other)
    assert r.rc == 0 and host.packets[0][0][1] == wire.HMAC_SHA512, r
