# SPDX-License-Identifier: GPL-2.0-or-later
"""What the cases share: where a program differs on purpose, and the small lab they run in.

A case that is the same on both sides states its expectation in its body. Where ours differs from the reference on
purpose, `differs` names the line of the documents that says so and holds both expectations; the side of the
program that it is about chooses (so a mixed pair, our agent with the reference daemon, is measured rightly too).
"""

import pytest

from lab import programs

AGENT, VIRTD = "agent", "virtd"


#: The versions of the C programs that the expectations are of: Debian 12's, and those that Debian sid had.
VERSIONS = {"installed": "4.12.1", "today": "4.17.0"}


def is_of_today(about):
    """Whether `about` is a C program of VERSIONS["today"]."""
    return side(about) == "reference" and programs.REFERENCE == "today"


def side(about):
    """"reference" or "ours": whose `about` (AGENT or VIRTD) is under test."""
    return programs.AGENT_SIDE if about == AGENT else programs.VIRTD_SIDE


def differs(rule, *, about, reference, ours, today=None):
    """Marks a case where ours differs on purpose; gives it the argument `expected` of the side under test.

    `rule` quotes the document and line: it shows in the test's id as the reason and must not be empty. `reference` is what
    the C programs do; where those of today (VERSIONS) do something else, that is `today`.
    """
    expected = {"reference": reference, "today": reference if today is None else today, "ours": ours}
    assert rule and len(set(map(repr, expected.values()))) > 1, "a difference needs a rule and two expectations"
    chosen = "today" if is_of_today(about) else side(about)
    return pytest.mark.parametrize("expected", [pytest.param(expected[chosen], id=f"{chosen}: {rule}")])


def only(chosen, about, rule):
    """Runs the case on one side only, because the other has no such thing; `rule` says why."""
    return pytest.mark.skipif(side(about) != chosen, reason=f"only {chosen}: {rule}")


def told(result):
    """What the agent told its user. Version 4.12.1 puts messages on stdout, ours on stderr. 4.17.0 puts them on stderr too, except
    its usage and what it finds wrong while it proves the key ("Hash mismatch:")."""
    if programs.AGENT_SIDE == "ours":
        assert result.out == "", f"messages belong on stderr (reference.md, Output): {result}"
    if programs.AGENT_SIDE == "ours" or is_of_today(AGENT):
        return result.err
    return result.out + result.err


class Lab:
    """A host and two guests with the same key, files in `dir`."""

    def __init__(self, net, directory):
        self.host, self.guest, self.other = net.node("host"), net.node("guest"), net.node("other")
        self.dir = directory
        self.key_file = programs.write_key(directory / "key")
        self.key = self.key_file.read_bytes()
        self.wrong_key_file = programs.write_key(directory / "wrong.key", bytes(reversed(self.key)))
        self._files = 0

    def file(self, suffix):
        """A path that nobody used before."""
        self._files += 1
        return self.dir / f"{self._files}{suffix}"

    def xvm(self, *args, at=None, key=None, t=8, r=5, timeout=40, **kw):
        """fence_xvm in a guest, with the key, a short time-out and quick retransmission."""
        return programs.run_agent(at or self.guest, *args, "-k", key or self.key_file, "-t", t, "-r", r,
                                  program=programs.FENCE_XVM, timeout=timeout, **kw)

    def virt(self, *args, at=None, key=None, t=8, timeout=40, **kw):
        """fence_virt in TCP mode towards the host."""
        return programs.run_agent(at or self.guest, "-T", self.host.ip, *args, "-k", key or self.key_file, "-t", t,
                                  program=programs.FENCE_VIRT, timeout=timeout, **kw)

    def stdin(self, text, at=None, program=None, timeout=40):
        """fence_xvm with no argument: `text` on standard input after key file and times."""
        return programs.run_agent(at or self.guest, program=program or programs.FENCE_XVM, timeout=timeout,
                                  stdin=f"key_file={self.key_file}\ntimeout=8\nretrans=5\n{text}")

    def config(self, uri, listener="multicast", **kw):
        """A config file; multicast listens on eth0, TCP on every address."""
        options = {"key_file": self.key_file}
        options.update({"interface": "eth0"} if listener == "multicast" else {"address": "0.0.0.0"})
        options.update(kw.pop("listener_options", {}))
        return programs.write_config(self.file(".conf"), listener=listener, listener_options=options,
                                     backend_options={"uri": uri, **kw.pop("backend_options", {})}, **kw)
