# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers that lie, stall, stammer and repeat: against our daemon, and against our agent.

After each attack an honest request is answered. What was not honest was not obeyed, had no call-back, has a line
in the log that says why, and put nothing of its own on a terminal."""

import os
import random
import re
import select
import socket
import time

import pytest

from lab import wire
from stage import SLACK, Site

pytestmark = pytest.mark.pairs(agent="ours", daemon="ours")

#: Bytes that a terminal acts on. The daemon's and the agents' output are text in lines.
RAW_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")

#: Where honest clients of a case are called back, while the usual port is watched.
HONEST_PORT = 1301


# -- the daemon -------------------------------------------------------------------------------------------


@pytest.fixture
def client(site):
    """A client on guest 1 that holds the key and signs what it is told to."""
    return wire.FakeClient(site.guest(1), wire.read_key(site.key))


@pytest.fixture
def attack(site, client, daemon, vm1):
    """attack(packets): sends them and proves that nobody was called back, nothing was obeyed, the daemon serves
    on, and its log is clean. Returns the log lines that came meanwhile."""
    def run(packets):
        qemu, since = vm1.process(), len(daemon.lines)
        with client.listening() as watched:
            for packet in packets:
                client.send(packet)
            honest = client.multicast(wire.STATUS, "vm1", timeout=10, port=HONEST_PORT)
            assert (honest.kind, honest.code) == ("code", wire.SUCCESS), (honest, daemon.log)
            # The daemon reads in order, so all of them were looked at before the honest one; a call-back to
            # this address takes microseconds.
            assert not select.select([watched], [], [], 0.3)[0], f"called back:\n{daemon.log}"
        assert not qemu.ended() and vm1.state() == "running"
        assert daemon.alive()
        clean(daemon, site)
        return daemon.lines[since:]
    return run


def clean(daemon, site: Site):
    """No raw control byte and nothing of the key in the daemon's log."""
    log = daemon.log
    found = RAW_CONTROL.search(log)
    assert not found, repr(log[max(0, found.start() - 200):found.start() + 50])
    key = wire.read_key(site.key)
    for start in range(0, len(key) - 16, 16):
        assert key[start:start + 16].hex() not in log.lower()


def reasons(lines, pattern):
    """Whether a line about a drop says so."""
    return [text for text in lines if re.search(pattern, text, re.I)]


@pytest.mark.parametrize("length", [0, 1, 74, 175, 177, 352, 1472, 65507])
def test_datagrams_of_a_wrong_length(attack, client, length):
    packet = client.packet(wire.OFF, "vm1")
    lines = attack([(packet * (length // len(packet) + 1))[:length]])
    # No more of it is read than shows that it is too long.
    told = str(length) if length < 2000 else r"\d+"
    assert reasons(lines, rf"\b{told} bytes instead of 176"), lines


def test_random_datagrams(attack):
    """The seed is fixed: a failure can be had again."""
    chance = random.Random(1229)
    packets = [chance.randbytes(chance.choice((176, 176, 176, chance.randrange(1400)))) for _ in range(2000)]
    assert reasons(attack(packets), "dropped")


def test_every_byte_of_a_request_changed(attack, client):
    """Each of the 176 bytes counts: two bits of each."""
    packet = client.packet(wire.OFF, "vm1")
    packets = [bytes([*packet[:i], packet[i] ^ bit, *packet[i + 1:]]) for i in range(len(packet)) for bit in (1, 128)]
    lines = attack(packets)
    assert reasons(lines, r"hash does not fit"), lines
    assert reasons(lines, r"unknown hash type"), lines


def test_another_key_and_no_hash(attack, client, site):
    strange = wire.FakeClient(site.guest(1), wire.read_key(site.other_key)).packet(wire.OFF, "vm1")
    lines = attack([strange])
    assert reasons(lines, "hash does not fit"), lines
    # The hash that would have been right must not be learnt from the log.
    right = wire.digest(wire.SHA256, wire.read_key(site.key), strange[:112] + bytes(64))
    assert right[:8].hex() not in "\n".join(lines).lower()
    lines = attack([client.packet(wire.OFF, "vm1", hash_type=wire.HASH_NONE)])
    assert reasons(lines, "weaker"), lines


@pytest.mark.parametrize("fields, reason", [
    ({"action": 7}, "action"), ({"action": 255}, "action"),
    ({"hash_type": 9, "packet_hash": bytes(64)}, "hash type"),
    ({"port": 0}, "port"),
    ({"address_len": 0}, "address"), ({"address_len": 28}, "address"), ({"family": 99}, "address|family"),
    ({"address_len": 16}, "address|family"),
], ids=lambda v: "-".join(map(str, v)) if isinstance(v, dict) else v)
def test_signed_nonsense(attack, client, fields, reason):
    """Holding the key is no licence for fields without a meaning."""
    fields = dict(fields)
    packet = client.packet(fields.pop("action", wire.OFF), "vm1", **fields)
    lines = attack([packet])
    assert reasons(lines, reason), lines


@pytest.mark.parametrize("address", ["127.0.0.1", "225.0.0.12", "255.255.255.255", "0.0.0.0"])
def test_call_back_addresses_that_are_nobodys(attack, client, address):
    """The daemon must not be talked into connecting to itself or to everybody."""
    attack([client.packet(wire.OFF, "vm1", address=address)])


@pytest.mark.parametrize("name", [b"\xff\xfe\x80vm1", b"vm1\x1b[31mred\x1b[0m", b"vm1\nfence_virtd: all is well",
                                  b"vm1\r\x07\x08", b"v" * 64, b"\xc2\x9b31mvm1", "vm1\u202e1mv".encode()],
                         ids=["not-utf8", "escape", "newline", "carriage-return", "no-nul", "c1-control", "bidi"])
def test_signed_names_that_are_none(site, daemon, client, vm1, name):
    """An authenticated peer may name what it likes; it is told no, and nothing of it acts on a terminal."""
    qemu, since = vm1.process(), len(daemon.lines)
    got = client.multicast(wire.OFF, name, timeout=3, port=1302)
    assert got.kind == "silence" or (got.kind, got.code) in (("code", wire.FAILURE), ("code", wire.DENIED)), got
    honest = client.multicast(wire.STATUS, "vm1", timeout=10, port=HONEST_PORT)
    assert (honest.kind, honest.code) == ("code", wire.SUCCESS), daemon.log
    assert not qemu.ended()
    clean(daemon, site)
    assert "\u202e" not in daemon.log and not any(text.startswith("fence_virtd: all") for text in daemon.lines)
    assert reasons(daemon.lines[since:], "target|off|domain"), "not a word about it in the log"


def test_replays(site, daemon, client, vm1):
    """A request that was captured is worth nothing, a second later or after others."""
    status, off = client.packet(wire.STATUS, "vm1"), client.packet(wire.OFF, "vm1")
    assert client.multicast(wire.STATUS, packet=status).code == wire.SUCCESS
    first = vm1.process()
    assert client.multicast(wire.OFF, packet=off).code == wire.SUCCESS, daemon.log
    assert first.ended()
    vm1.start()
    second, since = vm1.process(), len(daemon.lines)
    for packet in (off, status, off):
        assert client.multicast(wire.OFF, packet=packet, timeout=1).kind == "silence", daemon.log
    assert not second.ended() and vm1.pid() == second.pid
    assert reasons(daemon.lines[since:], "replay|repeat|same packet|again"), daemon.lines[since:]
    honest = client.multicast(wire.STATUS, "vm1", port=HONEST_PORT)
    assert honest.code == wire.SUCCESS


def test_a_captured_request_of_another_guest(site, daemon, client, vm1):
    """The attacker has no key: it repeats a guest's packet while that guest waits for another answer, so that
    the guest proves itself to the host for the attacker's sake."""
    captured = client.packet(wire.OFF, "vm1")
    assert client.multicast(wire.OFF, packet=captured).code == wire.SUCCESS
    vm1.start()
    qemu = vm1.process()
    attacker = wire.FakeClient(site.guest(2))
    with client.listening() as listener:
        listener.settimeout(30)
        attacker.send(captured)
        client.send(client.packet(wire.STATUS, "vm1"))
        stream, _ = listener.accept()
        honest = client.converse(wire.Stream(stream))
        assert (honest.kind, honest.code) == ("code", wire.SUCCESS), (honest, daemon.log)
        assert not select.select([listener], [], [], 0.5)[0], daemon.log
    assert not qemu.ended(), "shot by a replay"


def test_a_challenge_sent_back(site, daemon, client, vm1):
    """Reflection: what the host asks on one stream is asked of the host on another. Without the key."""
    qemu = vm1.process()
    first, second = client.packet(wire.OFF, "vm1"), client.packet(wire.OFF, "vm1")
    with client.listening() as listener:
        listener.settimeout(30)
        client.send(first)
        one = wire.Stream(listener.accept()[0], 30)
        one.send(os.urandom(64))
        one.recv(64)
        challenge = one.recv(64)
        client.send(second)
        try:
            two = wire.Stream(listener.accept()[0], 2)
            two.send(challenge)
            one.send(two.recv(64))
            got = one.recv_all()
        except (wire.Closed, TimeoutError):
            got = b""
        one.close()
    assert got in (b"", b"\x01"), got
    assert not qemu.ended(1), f"shot by a reflection:\n{daemon.log}"


@pytest.mark.parametrize("step", ["connected", "half a challenge", "challenged", "half a proof", "wrong proof"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_leaves(site, daemon, client, vm1, step, how):
    """At no step before its proof does a client that goes make the daemon act."""
    qemu = vm1.process()
    with client.listening() as listener:
        listener.settimeout(30)
        client.send(client.packet(wire.OFF, "vm1"))
        stream = wire.Stream(listener.accept()[0], 30)
        if step == "half a challenge":
            stream.send(os.urandom(31))
        elif step != "connected":
            stream.send(os.urandom(64))
            stream.recv(64)
            if step != "challenged":
                stream.recv(64)
                stream.send(os.urandom(64) if step == "wrong proof" else os.urandom(31))
        stream.close(reset=how == "reset")
    honest = client.multicast(wire.STATUS, "vm1", timeout=10, port=HONEST_PORT)
    assert (honest.kind, honest.code) == ("code", wire.SUCCESS), (honest, daemon.log)
    assert not qemu.ended(0.3), daemon.log
    daemon.wait_log(r"(?i)dropped|proof|closed|reset|answer")
    clean(daemon, site)


def test_silent_clients_delay_nobody(site, daemon, client, vm1):
    """A hundred peers with the key that connect and say nothing, and one that is served at once."""
    silent = [wire.FakeClient(site.guest(2), client.key, port=2000 + n) for n in range(100)]
    listeners = []
    for one in silent:
        listener = site.guest(2).socket()
        listener.bind(("", one.port))
        listener.listen(1)
        listeners.append(listener)
        # The group's port is the daemon's, the call-back port this client's.
        one.send(one.packet(wire.STATUS, "vm1"), port=wire.PORT)
    honest = client.multicast(wire.STATUS, "vm1", timeout=30)
    for listener in listeners:
        listener.close()
    assert (honest.kind, honest.code) == ("code", wire.SUCCESS), (honest, daemon.log)
    assert honest.seconds < 8, "it waited behind those who say nothing"


def test_a_flood_is_not_a_log(site, daemon, client, vm1):
    """Ten thousand bad datagrams: the honest are served meanwhile, and the log stays short."""
    strange = wire.FakeClient(site.guest(2), b"another key" * 8)
    index = site.guest(2).interface_index()
    with site.guest(2).socket(kind=socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, bytes(8) + index.to_bytes(4, "little"))
        packet = strange.packet(wire.OFF, "vm1")
        for n in range(10_000):
            s.sendto(packet, (wire.GROUP4, wire.PORT))
            if n == 5000:
                honest = client.multicast(wire.STATUS, "vm1", timeout=10)
                assert (honest.kind, honest.code) == ("code", wire.SUCCESS), honest
    assert client.multicast(wire.STATUS, "vm1", timeout=10).code == wire.SUCCESS
    assert len(daemon.lines) < 200


def test_descriptors_do_not_leak(site, daemon, client, vm1):
    """Descriptors and memory after many requests that fail in many ways are what they were after a few."""
    def round_of_trouble():
        for n in range(20):
            client.multicast(wire.STATUS, "vm1", timeout=5)
            with client.listening(port=1303) as listener:
                listener.settimeout(30)
                client.send(client.packet(wire.STATUS, "vm1", port=1303))
                listener.accept()[0].close()
            client.send(client.packet(wire.STATUS, "vm1", port=1399))
    round_of_trouble()
    before = daemon.descriptors()
    for _ in range(5):
        round_of_trouble()
    assert daemon.descriptors() <= before + 5, daemon.descriptors()


# -- the agent --------------------------------------------------------------------------------------------


@pytest.fixture
def fake_host(site):
    """fake_host(**kw): a wire.FakeHost with the key, beside the guests; the daemon does not run."""
    running = []
    node = site.net.nodes.get("liar") or site.net.node("liar")

    def start(**kw):
        kw.setdefault("key", wire.read_key(site.key))
        host = wire.FakeHost(node, runs=site.directory.glob("run-*"), **kw)
        running.append(host)
        return host
    yield start
    for host in running:
        host.close()


def ask(agent, action, seconds=1, **kw):
    """One request with a time limit; holds the agent to it and to its manners."""
    result = agent("-o", action, "-H", "vm1", "-t", str(seconds), **kw)
    assert result.rc is not None, "never ended"
    assert result.seconds < seconds + SLACK, result
    assert not RAW_CONTROL.search(result.out) and not RAW_CONTROL.search(result.err), result
    return result


@pytest.mark.parametrize("action, response, code, out", [
    ("off", 0, 0, ""), ("off", 1, 1, ""), ("off", 3, 3, ""), ("reboot", 0, 0, ""), ("on", 0, 0, ""),
    ("status", 0, 0, "Status: ON\n"), ("status", 2, 2, "Status: OFF\n"), ("status", 1, 1, ""),
    ("monitor", 0, 0, ""), ("monitor", 1, 1, "")])
def test_an_honest_host(agent, fake_host, action, response, code, out):
    """The control: the fake host is taken for a host where it behaves."""
    host = fake_host(response=bytes([response]))
    result = ask(agent, action, 5)
    assert (result.rc, result.out) == (code, out), (result, host.errors)
    assert host.proofs == [True]


@pytest.mark.parametrize("how", ["close", "reset", "hang"])
@pytest.mark.parametrize("stop", wire.Stop.ALL)
def test_a_host_that_stops(agent, fake_host, stop, how):
    fake_host(stop=stop, how=how)
    result = ask(agent, "off")
    assert result.rc == 1, result
    assert result.out == "" and result.err.strip(), "the reason belongs on standard error"


@pytest.mark.parametrize("byte", [2, 4, 127, 128, 253, 254, 255])
def test_an_answer_to_off_that_is_none(agent, fake_host, byte):
    """Only 0 is success: the cluster mounts the disk on it."""
    fake_host(response=bytes([byte]))
    assert ask(agent, "off").rc not in (0, None)


def test_a_list_in_answer_to_off(agent, fake_host):
    fake_host(response=wire.build_host_list([wire.HostEntry(b"vm1", b"u" * 36, 5)]))
    result = ask(agent, "off")
    assert result.rc == 1 and result.out == ""


ENTRY = wire.HostEntry(b"vm1", b"77a7cfd9-1e57-5252-92d9-0bcdebe7a3c9", 1).build()


@pytest.mark.parametrize("response", [b"\xfd", b"\xfd" + ENTRY[:65], b"\xfd" + ENTRY, b"\xfd" + ENTRY * 3 + bytes(129),
                                      b"\x00", b"\x02"],
                         ids=["nothing", "half-an-entry", "no-end", "half-an-end", "no-list", "off"])
@pytest.mark.parametrize("how", ["close", "hang"])
def test_a_list_that_does_not_end_properly(agent, fake_host, response, how):
    stop = wire.Stop.RESPONDED if how == "hang" else None
    fake_host(response=response, stop=stop, how=how)
    assert ask(agent, "list").rc == 1


@pytest.mark.parametrize("entries", [1000, 200_000])
def test_a_list_without_end(agent, fake_host, entries):
    fake_host(response=b"\xfd" + ENTRY * entries, stop=wire.Stop.RESPONDED, how="hang")
    assert ask(agent, "list", 3).rc == 1


def test_a_list_without_its_last_byte(agent, fake_host):
    """The reference's client does not read it, so its hosts may leave early."""
    fake_host(response=b"\xfd" + ENTRY + bytes(130))
    result = ask(agent, "list", 3)
    assert (result.rc, result.out.split()) == (0, ["vm1", "77a7cfd9-1e57-5252-92d9-0bcdebe7a3c9", "on"]), result


def test_entries_without_nul(agent, fake_host):
    """The name ends with its field: nothing of the UUID's runs into it."""
    fake_host(response=wire.build_host_list([wire.HostEntry(b"n" * 64, b"u" * 64, 1)]))
    result = ask(agent, "list", 3)
    assert not re.search("nu", result.out), result.out
    assert not re.search("n{65}|u{65}", result.out)


@pytest.mark.parametrize("name", [b"vm1\x1b]0;owned\x07", b"vm1\nvm2                              x on", b"vm1\r",
                                  b"\xff\xfe", b"\xc2\x9b31m", b"vm1\tvm2"],
                         ids=["escape", "newline", "carriage-return", "not-utf8", "c1-control", "tab"])
def test_control_characters_in_a_list(agent, fake_host, name):
    """One entry, one line at most, and nothing that a terminal acts on."""
    fake_host(response=wire.build_host_list([wire.HostEntry(name, b"77a7cfd9-1e57-5252-92d9-0bcdebe7a3c9", 1)]))
    result = ask(agent, "list", 3)
    assert len(result.out.splitlines()) <= 1, result.out
    assert "\t" not in result.out


def test_a_host_without_the_key(agent, fake_host):
    """It gets no proof from us, and its answer is worth nothing."""
    host = fake_host(right_answer=False)
    result = ask(agent, "off")
    assert result.rc == 1 and result.out == ""
    assert host.proofs in ([], [False])
    assert not any(len(data) == 64 and n for stream in host.streams
                   for n, (way, data) in enumerate(x for x in stream.transcript if x[0] == "<")), "proved itself to it"


def test_an_impostor_beside_the_host(agent, fake_host, site):
    """The first who calls back need not be the right one."""
    def impostor(request):
        with node.entered():
            spare = socket.create_connection((request.address, request.port), 5)
        spare.sendall(os.urandom(64))
        spares.append(spare)
    spares = []
    host = fake_host(before=impostor)
    node = host.node
    result = ask(agent, "off", 5)
    assert result.rc == 0, (result, host.errors)
    for spare in spares:
        spare.close()


def test_strangers_who_connect_and_wait(agent, fake_host):
    """Thirty connections that say nothing don't keep the host out."""
    spares = []

    def strangers(request):
        with host.node.entered():
            spares.extend(socket.create_connection((request.address, request.port), 5) for _ in range(30))
    host = fake_host(before=lambda request: strangers(request))
    result = ask(agent, "off", 5)
    for spare in spares:
        spare.close()
    assert result.rc == 0, (result, host.errors)


def test_a_lost_datagram_is_sent_again(agent, fake_host):
    host = fake_host(ignore=2)
    result = ask(agent, "status", 10)
    assert (result.rc, result.out) == (0, "Status: ON\n")
    parsed = [wire.Request.parse(data) for data, _ in host.packets]
    assert len({p.seqno for p in parsed}) == 1, "one request has one sequence number"
    assert len({p.random for p in parsed}) == len(parsed), "no two packets are alike"


@pytest.mark.parametrize("action", ["off", "status", "list", "monitor"])
def test_silence(agent, site, action):
    """Nobody there. What was tried, with what, and what to look at is said, on standard error alone."""
    result = ask(agent, action)
    assert result.rc == 1 and result.out == ""
    for word in ("225.0.0.12", "eth0", site.guest(1).ip):
        assert word in result.err, result.err
    key = wire.read_key(site.key)
    assert key[:8].hex() not in result.err and key[:16] not in result.err.encode("utf-8", "surrogateescape")


def test_a_host_that_answers_slowly_is_waited_for(agent, fake_host):
    """A host may hold its challenge back until the request may run."""
    host = fake_host(before=lambda _: time.sleep(3))
    result = ask(agent, "off", 10)
    assert result.rc == 0, (result, host.errors)
