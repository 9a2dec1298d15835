# SPDX-License-Identifier: GPL-2.0-or-later
"""The agents against hosts that leave, stall, lie or cut their answer short, at every stage."""

import time

import pytest

from compliance.support import AGENT, differs, only, told
from lab import programs, wire
from lab.wire import HostEntry, Stop

ENTRY = HostEntry("a", "u", 1).build()
ZERO = bytes(wire.ENTRY_LEN)
TRANSPORTS = ["multicast", "tcp"]


def ask(lab, transport, *args, t=2, timeout=6):
    """One agent run at `other` while `guest` plays the host."""
    if transport == "multicast":
        return lab.xvm(*args, t=t, at=lab.other, timeout=timeout)
    return programs.run_agent(lab.other, "-T", lab.guest.ip, *args, "-k", lab.key_file, "-t", t,
                              program=programs.FENCE_VIRT, timeout=timeout)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("step", Stop.ALL)
def test_the_host_leaves(lab, transport, how, step):
    """A host that leaves before its answer: never success, and no longer than the time-out."""
    with wire.FakeHost(lab.guest, lab.key, transport=transport, stop=step, how=how):
        r = ask(lab, transport, "-o", "off", "-n", "vm1")
    assert r.rc == 1 and told(r)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("step", [Stop.CONNECTED, Stop.CHALLENGED, Stop.ANSWERED])
def test_the_host_stalls(lab, transport, step):
    with wire.FakeHost(lab.guest, lab.key, transport=transport, stop=step, how="hang"):
        r = ask(lab, transport, "-o", "off", "-n", "vm1")
    assert r.rc == 1 and told(r)
    assert 1.5 < r.seconds < 4, "-t is honoured"


@differs("reference.md, exit codes: 0, 1, 2, 3 (the reference says 255 when the answer itself does not come)",
         about=AGENT, reference=255, ours=1)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("step", [Stop.ASKED, Stop.PROVED])
def test_the_host_stalls_before_the_answer(lab, transport, step, expected):
    with wire.FakeHost(lab.guest, lab.key, transport=transport, stop=step, how="hang"):
        r = ask(lab, transport, "-o", "off", "-n", "vm1")
    assert r.rc == expected and told(r)
    assert 1.5 < r.seconds < 4, "-t is honoured"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_slow_host_in_time(lab, transport):
    """Held back before its own challenge: the agent waits as long as its -t (late proof rests on this)."""
    with wire.FakeHost(lab.guest, lab.key, transport=transport, before=lambda _: time.sleep(2)) as host:
        r = ask(lab, transport, "-o", "off", "-n", "vm1", t=6, timeout=10)
    assert r.rc == 0 and host.proofs == [True]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("action,code,rc", [
    ("off", 0, 0), ("off", 1, 1), ("off", 3, 3), ("on", 0, 0), ("on", 1, 1), ("reboot", 0, 0), ("reboot", 1, 1),
    ("status", 0, 0), ("status", 1, 1), ("status", 2, 2), ("status", 3, 3), ("list", 1, 1), ("list", 3, 3),
    ("monitor", 0, 0), ("monitor", 1, 1), ("monitor", 3, 3)])
def test_exit_code_of_a_response(lab, transport, action, code, rc):
    with wire.FakeHost(lab.guest, lab.key, transport=transport, response=bytes([code])):
        r = ask(lab, transport, "-o", action, "-n", "vm1")
    assert r.rc == rc
    if rc in (1, 3):
        assert told(r)
    else:
        assert (r.out, r.err) == ({0: "Status: ON\n", 2: "Status: OFF\n"}[code] if action == "status" else "", "")


@differs("reference.md, exit codes: only 0, 1, 2, 3 (the reference hands on whatever byte came)",
         about=AGENT, reference=7, ours=1)
@pytest.mark.parametrize("action", ["off", "status"])
def test_an_unknown_response(lab, action, expected):
    with wire.FakeHost(lab.guest, lab.key, response=b"\7"):
        r = ask(lab, "multicast", "-o", action, "-n", "vm1")
    assert r.rc == expected and told(r)


@differs("protocol.md, Responses: 2 is for status only", about=AGENT, reference=2, ours=1)
def test_off_answered_with_state_off(lab, expected):
    with wire.FakeHost(lab.guest, lab.key, response=b"\2"):
        assert ask(lab, "multicast", "-o", "off", "-n", "vm1").rc == expected


@differs("reference.md: 253 in answer to off exits 0 / 253 only for list", about=AGENT, reference=0, ours=1)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("action", ["off", "status"])
def test_a_list_in_answer_to_something_else(lab, transport, action, expected):
    with wire.FakeHost(lab.guest, lab.key, transport=transport, response=b"\xfd" + ENTRY + ZERO + b"\0"):
        assert ask(lab, transport, "-o", action, "-n", "vm1").rc == expected


@differs("reference.md: a list that does not end properly is a failure (the reference takes 0 without a list for one)",
         about=AGENT, reference=0, ours=1)
def test_list_answered_without_a_list(lab, expected):
    with wire.FakeHost(lab.guest, lab.key, response=b"\0"):
        assert ask(lab, "multicast", "-o", "list").rc == expected


@only("ours", AGENT, "reference.md: a daemon that dies in a list makes the reference print for ever")
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("how", ["close", "hang"])
@pytest.mark.parametrize("answer", [b"\xfd", b"\xfd" + ENTRY, b"\xfd" + ENTRY + ENTRY[:50], b"\xfd" + ENTRY + ZERO[:100]])
def test_a_list_cut_short(lab, transport, how, answer):
    stop = Stop.RESPONDED if how == "hang" else None
    with wire.FakeHost(lab.guest, lab.key, transport=transport, response=answer, stop=stop, how=how):
        r = ask(lab, transport, "-o", "list")
    assert r.rc == 1 and r.err and r.seconds < 4


@only("reference", AGENT, "reference.md: a daemon that dies in a list makes it print for ever")
def test_a_list_cut_short_makes_the_reference_print_for_ever(lab):
    with wire.FakeHost(lab.guest, lab.key, response=b"\xfd" + ENTRY):
        r = programs.run_agent(lab.other, "-o", "list", "-k", lab.key_file, "-t", 2, program=programs.FENCE_XVM,
                               timeout=3)
    assert r.rc is None and r.out.count("\n") > 1000


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("count", [0, 1, 300])
def test_a_whole_list(lab, transport, count):
    entries = [HostEntry(f"vm{i}", f"uuid-{i}", 1 if i % 2 else 5) for i in range(count)]
    with wire.FakeHost(lab.guest, lab.key, transport=transport, response=wire.build_host_list(entries)):
        r = ask(lab, transport, "-o", "list")
    assert (r.rc, r.err) == (0, "")
    assert r.out == "".join(f"{'vm' + str(i):<32} uuid-{i} {'on' if i % 2 else 'off'}\n" for i in range(count))


def test_bytes_that_the_reference_leaves_to_chance_are_not_looked_at(lab):
    """The last byte of an entry's texts and its pad byte are stack bytes when the reference daemon sends them."""
    raw = bytearray(ENTRY)
    raw[63], raw[127], raw[129] = 0x32, 0x7A, 0x98
    with wire.FakeHost(lab.guest, lab.key, response=b"\xfd" + bytes(raw) + ZERO + b"\0"):
        r = ask(lab, "multicast", "-o", "list")
    assert (r.rc, r.out) == (0, f"{'a':<32} u on\n")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_host_with_another_key(lab, transport):
    with wire.FakeHost(lab.guest, b"another key, long enough to be one", transport=transport) as host:
        r = ask(lab, transport, "-o", "off", "-n", "vm1")
    assert r.rc == 1 and told(r)
    assert not any(host.proofs), "the agent proves nothing to a stranger"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_host_that_answers_the_challenge_wrongly(lab, transport):
    with wire.FakeHost(lab.guest, lab.key, transport=transport, right_answer=False) as host:
        r = ask(lab, transport, "-o", "off", "-n", "vm1")
    assert r.rc == 1 and not host.proofs


@only("ours", AGENT, "architecture.md, rule 6: keys never reach a log (the reference prints the expected hash)")
def test_no_hash_is_printed(lab):
    with wire.FakeHost(lab.guest, b"another key, long enough to be one") as host:
        r = ask(lab, "multicast", "-o", "off", "-n", "vm1")
    c1 = next(data for way, data in host.streams[0].transcript if way == "<")
    assert wire.digest(wire.SHA256, lab.key, c1)[:8].hex() not in (r.out + r.err).lower()


@pytest.mark.parametrize("t", [2, 3])
def test_nobody_answers(lab, t):
    r = lab.xvm("-o", "off", "-n", "vm1", t=t, at=lab.other)
    assert r.rc == 1 and t - 0.2 <= r.seconds <= t + 1.5
    assert "Timed out waiting for response" in told(r)


@only("ours", AGENT, "reference.md: agent: -t 1 without a daemon never ends / deadline absolute")
def test_nobody_answers_within_a_second(lab):
    r = lab.xvm("-o", "off", "-n", "vm1", t=1, r=20, at=lab.other, timeout=5)
    assert r.rc == 1 and r.seconds < 3


@only("reference", AGENT, "reference.md: agent: -t 1 without a daemon never ends")
def test_nobody_answers_the_reference_within_a_second(lab):
    assert lab.xvm("-o", "off", "-n", "vm1", t=1, r=20, at=lab.other, timeout=4).rc is None


def test_tcp_refused(lab):
    r = ask(lab, "tcp", "-o", "off", "-n", "vm1")
    assert r.rc == 1 and told(r) and r.seconds < 3


def test_tcp_host_does_not_exist(lab):
    r = programs.run_agent(lab.other, "-T", "10.77.99.99", "-o", "off", "-n", "vm1", "-k", lab.key_file, "-t", 2,
                           program=programs.FENCE_VIRT, timeout=9)
    assert r.rc == 1 and told(r) and r.seconds < 5
