# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines of the agents in the syslog of the guest."""

import contextlib
import re
import socket

import pytest

from compliance.support import AGENT, differs
from lab import programs, wire

NOTICE, ERROR = 5, 3
DAEMON_FACILITY = 3


class Syslog:
    """A /dev/log for one agent."""

    def __init__(self, directory):
        directory.mkdir()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(directory / "log"))
        # The agent's /dev has this socket, and devices of the true one. Random bytes come from one of them.
        devices = "\n".join(f": > {directory}/{it}; mount --bind /dev/{it} {directory}/{it}" for it in ("null", "random", "urandom"))
        self.program = programs.unshared(directory / "fence_xvm", programs.FENCE_XVM, f"{devices}\nmount --rbind {directory} /dev")

    def lines(self):
        """(facility, level, text) of each line so far."""
        out = []
        with contextlib.suppress(BlockingIOError):
            while True:
                line = self.socket.recv(65536, socket.MSG_DONTWAIT).decode()
                number, text = re.fullmatch(r"<(\d+)>.*? fence_xvm\[\d+\]: (.*)", line, re.DOTALL).groups()
                out.append((int(number) // 8, int(number) % 8, text))
        return out


@pytest.fixture
def syslog(lab):
    it = Syslog(lab.file(".dev"))
    yield it
    it.socket.close()


@differs("differences.md, Versions of the C programs: lines in the guest's syslog, with the level of a failure", about=AGENT,
         reference=NOTICE, today=ERROR, ours=None)
@pytest.mark.parametrize("response, text, failed", [
    (b"\0", 'Domain "vm1" is ON', False),
    (b"\2", 'Domain "vm1" is OFF', False),
    (b"\1", 'Fence operation failed for domain "vm1"', True),
    (b"\3", 'Permission denied for Fence operation for domain "vm1"', True),
    (b"\7", 'Unknown response (7) for domain "vm1"', True)])
def test_line_about_an_answer(lab, syslog, response, text, failed, expected):
    ask(lab, syslog, "off", response)
    level = expected if failed else NOTICE
    assert syslog.lines() == ([] if expected is None else [(DAEMON_FACILITY, level, text)])


def test_no_line_about_a_status(lab, syslog):
    ask(lab, syslog, "status", b"\2")
    assert syslog.lines() == []


def ask(lab, syslog, action, response):
    with wire.FakeHost(lab.guest, lab.key, response=response):
        programs.run_agent(lab.other, "-o", action, "-n", "vm1", "-k", lab.key_file, "-t", 4, "-r", 5, program=syslog.program)
