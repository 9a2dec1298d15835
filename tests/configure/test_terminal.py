# SPDX-License-Identifier: GPL-2.0-or-later
"""`fence_virtd -c` with somebody at a terminal, who is asked a little more than a script."""

import os
import stat

from lab import programs

from configure.cases import FULL
from configure.dialogue import NAME, Terminal, parse, value

BEGIN = [("Start from scratch", "y"), ("Module search path", "")]


def test_questions_that_only_a_terminal_gets(tmp_path):
    key = str(programs.write_key(tmp_path / "key"))
    with Terminal(tmp_path) as terminal:
        terminal.answer(*BEGIN, ("Listener module", "vsock"), ("VSOCK Listen Port", "1300"), ("Key File", key),
                        ("Weakest hash of a request", "sha512"), ("Backend module", ""), ("Libvirt URI", ""),
                        ("Replace", "y"))
        assert terminal.finish() == 0
    tree = parse(terminal.path.read_text())
    assert [value(tree, f"listeners/vsock/{it}") for it in ("port", "key_file", "hash")] == ["1300", key, "sha512"]


def test_an_interface_that_is_not_there_is_asked_for_again(tmp_path):
    with Terminal(tmp_path) as terminal:
        terminal.answer(*BEGIN, ("Listener module", ""), ("Multicast IP Address", ""), ("Multicast IP Port", ""),
                        ("Interface", "nosuch0"))
        terminal.expect("there is no interface nosuch0 on this machine, but lo")
        terminal.answer(("Interface", "nosuch1"))
        terminal.expect("there is no interface nosuch1")
        # Who insists has it.
        terminal.answer(("Interface", "nosuch1"))
        terminal.expect("warning: there is no interface nosuch1")
        terminal.answer(("Key File", "none"), ("Weakest hash of a request", ""), ("Backend module", ""),
                        ("Libvirt URI", ""), ("Replace", "y"))
        assert terminal.finish() == 0
    tree = parse(terminal.path.read_text())
    assert value(tree, "listeners/multicast/interface") == "nosuch1"
    assert value(tree, "listeners/multicast/hash") is None, "a default that was not there before"


def test_a_missing_key_is_made_when_somebody_says_so(tmp_path):
    key, none = tmp_path / "key", tmp_path / "none"
    with Terminal(tmp_path) as terminal:
        terminal.answer(*BEGIN, ("Listener module", "tcp,vsock"), ("TCP Listen IP Address", ""),
                        ("TCP Listen Port", ""), ("Key File", str(key)), (f"Make a new key in {key} now", "y"))
        terminal.expect("fingerprint")
        terminal.answer(("Weakest hash of a request", ""), ("VSOCK Listen Port", ""), ("Key File", str(none)),
                        (f"Make a new key in {none} now", ""))
        terminal.expect(f"warning: key file {none} does not exist")
        terminal.answer(("Weakest hash of a request", ""), ("Backend module", ""), ("Libvirt URI", ""),
                        ("Replace", "y"))
        assert terminal.finish() == 0
    assert key.stat().st_size == 512 and stat.S_IMODE(key.stat().st_mode) == 0o600
    assert not none.exists()


def test_a_key_that_cannot_be_made(tmp_path):
    with Terminal(tmp_path) as terminal:
        terminal.answer(*BEGIN, ("Listener module", "tcp"), ("TCP Listen IP Address", ""), ("TCP Listen Port", ""),
                        ("Key File", str(tmp_path / "a/b/key")), ("Make a new key", "y"))
        terminal.expect(f"there is no directory {tmp_path}/a/b")
        terminal.answer(("Key File", "none"), ("Weakest hash of a request", ""), ("Backend module", ""),
                        ("Libvirt URI", ""), ("Replace", "n"))
        assert terminal.finish() == 1


def test_ctrl_c_leaves_the_old_file(tmp_path):
    (tmp_path / NAME).write_text(FULL)
    with Terminal(tmp_path) as terminal:
        terminal.answer(("Module search path", ""), ("Listener module", "tcp"))
        terminal.expect("TCP Listen IP Address [")
        terminal.send("\x03")
        assert terminal.finish() != 0
    assert (tmp_path / NAME).read_text() == FULL and os.listdir(tmp_path) == [NAME]


def test_ctrl_d_takes_the_defaults_and_replaces_nothing(tmp_path):
    (tmp_path / NAME).write_text(FULL)
    with Terminal(tmp_path) as terminal:
        terminal.answer(("Module search path", ""))
        terminal.expect("Listener module [multicast]: ")
        terminal.send("\x04")
        assert terminal.finish() == 1
        assert "=== End Configuration ===" in terminal.text
    assert (tmp_path / NAME).read_text() == FULL
