# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's serial line: no key is used there, and whoever writes to the line is the guest. What a guest sends must not
do more than a request of that guest may, and must not keep it from being served.

A UNIX server of the test plays QEMU."""

import contextlib
import os
import socket

import pytest

from lab import testdriver, wire
from lab.testdriver import Domain, serial_device

from .scene import OURS, PATIENCE, SIDE


class Line:
    """The guest's end of a line, which the daemon connects to."""

    def __init__(self, path):
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._listener.settimeout(PATIENCE)
        self.stream = None

    def accept(self):
        """Waits for the daemon."""
        self.stream = wire.Stream(self._listener.accept()[0], PATIENCE)
        return self

    def send(self, data):
        """Bytes; where the daemon has hung up it is waited for."""
        try:
            self.stream.send(data)
        except OSError:
            self.accept().stream.send(data)

    def ask(self, action, target=b""):
        """An honest request: the code, whatever else is in the line's buffer first is skipped as agents do."""
        self.send(wire.SerialRequest(action, target, seqno=int.from_bytes(os.urandom(4), "little")).build())
        return self.answer()

    def answer(self):
        """The next response."""
        seen = b""
        while not seen.endswith(wire.SERIAL_MAGIC):
            seen += self.stream.recv(1)
        return self.stream.recv(1)[0]

    def drain(self):
        """What came meanwhile."""
        self.stream.socket.settimeout(0.3)
        with contextlib.suppress(TimeoutError, OSError):
            while self.stream.socket.recv(65536):
                pass
        self.stream.socket.settimeout(PATIENCE)


@pytest.fixture
def line(scene):
    """The line of guest vm1, which the daemon has taken."""
    path = scene.directory / f"line-{os.urandom(4).hex()}"
    line = Line(path)
    host = scene.host("serial", options={"serial": {"path": scene.directory, "key_file": scene.key_file}},
                      domains=[Domain("vm1", devices=serial_device(path)), "vm2"])
    line.host = host
    return line.accept()


def states(line):
    """What the host says of both."""
    names = {wire.SUCCESS: "on", wire.RESPONSE_OFF: "off"}
    return [names.get(line.ask(wire.STATUS, domain)) for domain in ("vm1", "vm2")]


OFF2 = wire.SerialRequest(wire.OFF, "vm2", seqno=7).build()
JUNK = {
    "random": os.urandom(20_000),
    "magic-flood": wire.SERIAL_MAGIC * 5000,
    "half-magic-flood": wire.SERIAL_MAGIC[:3] * 5000,
    "unknown-actions": b"".join(wire.SerialRequest(n, "vm2").build() for n in range(7, 100)),
    "escapes": wire.SerialRequest(wire.OFF, b"vm2\x1b[2J\n").build() * 20,
    "no-nul": wire.SerialRequest(wire.OFF, b"v" * 64).build() * 20,
}


@pytest.mark.parametrize("what", JUNK if SIDE == OURS else ["magic-flood", "no-nul", "escapes"])
def test_junk_on_a_line(line, what, note):
    """Nothing of it is carried out; an honest request after it is answered. (What the C daemon makes of the honest one is
    noted: it takes 74 bytes from wherever it stands.)"""
    line.send(JUNK[what])
    # A frame that junk began takes 74 bytes at the most; agents send anew.
    line.send(bytes(74))
    line.drain()
    if SIDE != OURS:
        line.stream.socket.settimeout(1)
        try:
            note(f"{what}: then {states(line)}")
        except TimeoutError:
            note(f"{what}: then nothing")
        assert line.host.daemon.alive()
        return
    assert states(line) == ["on", "on"], line.host.daemon.log[-3000:]


@pytest.mark.parametrize("length", [20, 69, 70, 71])
def test_a_half_request_that_the_next_agent_completes(line, length):
    """Most of an `off vm2` (an agent that was killed, or a guest's own malice towards its next agent). The first bytes
    of the next agent's request fill it up: at the C daemon the agent that asks for a status fences, and whatever comes
    after it on that line is read from the wrong place on."""
    line.send(OFF2[:length])
    if SIDE == OURS:
        assert states(line) == ["on", "on"], line.host.daemon.log
        return
    line.send(wire.SerialRequest(wire.STATUS, "vm1").build())
    assert line.answer() == wire.SUCCESS
    line.host.daemon.wait_log("Success for vm2")


def test_groups_hold_on_a_line(scene):
    """A guest fences what its group holds, and says so in vain of others."""
    path = scene.directory / f"line-{os.urandom(4).hex()}"
    line = Line(path)
    scene.host("serial", options={"serial": {"path": scene.directory, "key_file": scene.key_file}},
               domains=[Domain("vm1", devices=serial_device(path)), "vm2"],
               groups=[{"uuid": [testdriver.uuid_of("vm1")]}])
    line.accept()
    assert line.ask(wire.OFF, testdriver.uuid_of("vm2")) == wire.DENIED
    assert line.ask(wire.STATUS, testdriver.uuid_of("vm2")) == wire.DENIED
