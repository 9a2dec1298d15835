# SPDX-License-Identifier: GPL-2.0-or-later
"""What peers send ends up in logs, which people read on terminals and programs read by lines."""

import json
import re

import pytest

from lab import wire

from .scene import OURS, SIDE

#: Bytes that a terminal acts on, and characters that reorder or hide text.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b-\u200f\ufeff]")
INJECTED = "2026-01-01T00:00:00.000000Z  INFO audit: off vm1: success"

NAMES = {
    "newline": b"vm1\n" + INJECTED[:55].encode(),
    "carriage-return": b"vm1\r" + INJECTED[:55].encode(),
    "escape": b"vm1\x1b[31m\x1b]0;title\x07",
    "c1": b"vm1\xc2\x9b31m",
    "bidi": "vm1\u202e1mv".encode(),
    "bytes": b"\xff\xfe\x80vm1",
    "nul-inside": b"vm1\0hidden\x1b[2J",
    "63": b"n" * 63,
    "64": b"n" * 64,
    "braces": b'{"a": "b"} %s%n {}',
    "empty": b"",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_the_log(scene, name):
    """A holder of the key names what it likes. One line for each event, and nothing in it that a terminal acts on; the C
    daemon prints what it is sent (at its debug levels)."""
    host = scene.host("tcp")
    since = host.mark()
    sent = NAMES[name]
    got = host.client().tcp(host.node.ip, wire.OFF, sent, timeout=5)
    if name != "nul-inside":
        assert got.code not in (wire.SUCCESS, wire.RESPONSE_OFF) or SIDE != OURS, got
    assert host.state("vm2") == "on"
    host.told("status vm2: success", since)
    lines = host.daemon.lines[since:]
    if SIDE != OURS:
        if name in ("newline", "escape"):
            raw = "\n".join(lines)
            assert "\n2026-01-01T" in raw if name == "newline" else "\x1b[31m" in raw, raw
        return
    for line in lines:
        assert not UNSAFE.search(line), repr(line)
        assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z +[A-Z]+ ", line) and not line.startswith(INJECTED[:30]), line
    about = [line for line in lines if "peer=" in line or "audit" in line]
    # One event of the attack, one of the honest status after it.
    assert 2 <= len(about) <= 4, about
    for record in host.audit_file.read_text().splitlines():
        assert isinstance(json.loads(record), dict) and not UNSAFE.search(record), record


@pytest.mark.ours
def test_a_thousand_of_one_kind_from_one_peer(scene):
    """A line for the first, one when ten seconds are over, and no more."""
    host = scene.host()
    since = host.mark()
    strange = wire.FakeClient(scene.eve, bytes(range(256)))
    for number in range(1000):
        wire.multicast_send(scene.eve, strange.packet(wire.OFF, "vm1", seqno=number))
    host.told("hash does not fit", since)
    assert host.state("vm1") == "on"
    lines = [line for line in host.daemon.lines[since:] if "hash-mismatch" in line or scene.eve.ip in line]
    # The ten seconds may be over in the middle, on a slow machine more than once.
    assert 1 <= len(lines) <= 8, lines


@pytest.mark.ours
def test_a_thousand_on_one_stream_listener(scene):
    """The same for connections that send too little."""
    host = scene.host("tcp")
    since = host.mark()
    for _ in range(1000):
        stream = scene.connect(scene.eve, host.node.ip)
        stream.send(b"GET / HTTP/1.1\r\n\r\n")
        stream.close()
    assert host.state("vm1") == "on"
    host.told("hung up before", since)
    lines = [line for line in host.daemon.lines[since:] if scene.eve.ip in line]
    assert len(lines) <= 8, lines[:20]
