# SPDX-License-Identifier: GPL-2.0-or-later
"""`fence_virtd -c` at a terminal: a script of expect, or somebody who is asked a little more."""

import json
import os
import stat

import pytest
from lab import programs

from configure.capture import GOLDEN
from configure.cases import CASES, FULL
from configure.dialogue import NAME, PROMPT, Terminal, parse, value

BEGIN = [("Start from scratch", "y"), ("Module search path", "")]


MORE = "More questions (hash, vsock, missing keys and interfaces)"
RECORDED = json.loads(GOLDEN.read_text())
#: Runs of the C program that ours repeats, and whose answers go to the last question.
REPLAYED = [case for case in CASES if not case.differs
            and len(case.answers) == len(RECORDED[case.name]["reference"]["prompts"])]


def asks_more(case):
    """The file is written, and has a listener with keys."""
    recorded = RECORDED[case.name]["reference"]
    return recorded["rc"] == 0 and value(recorded["file"], "fence_virtd/listener") != "serial"


def replay(terminal, case):
    """Types the answers of a script that knows the C program alone."""
    for prompt, answer in zip(RECORDED[case.name]["reference"]["prompts"], case.answers):
        terminal.expect(prompt)
        assert PROMPT.findall(terminal.text)[-1] == prompt
        terminal.send(answer + "\n")


@pytest.mark.parametrize("case", REPLAYED, ids=lambda case: case.name.replace(" ", "-"))
def test_the_dialogue_of_the_c_program_comes_first_and_word_for_word(case, tmp_path):
    recorded = RECORDED[case.name]["reference"]
    with Terminal(tmp_path, existing=case.existing) as terminal:
        replay(terminal, case)
        if asks_more(case):
            terminal.answer((MORE, ""))
        assert terminal.finish() == recorded["rc"]
    assert PROMPT.findall(terminal.text) == recorded["prompts"]
    text = terminal.path.read_text() if terminal.path.exists() else None
    if recorded["file"] is None:
        assert text == case.existing
    else:
        assert parse(text) == recorded["file"]


def test_an_expect_script_that_waits_for_the_end_sees_it(tmp_path):
    """`expect eof` waits for 10 s."""
    case = next(it for it in REPLAYED if it.name == "multicast own values")
    with Terminal(tmp_path) as terminal:
        replay(terminal, case)
        assert terminal.finish(timeout=10) == 0
    assert parse(terminal.path.read_text()) == RECORDED[case.name]["reference"]["file"]


def test_questions_that_only_a_terminal_gets(tmp_path):
    key = str(programs.write_key(tmp_path / "key"))
    with Terminal(tmp_path) as terminal:
        terminal.answer(*BEGIN, ("Listener module", "vsock"), ("Backend module", ""), ("Libvirt URI", ""),
                        ("Replace", "y"), (MORE, "y"), ("VSOCK Listen Port", "1300"), ("Key File", key),
                        ("Weakest hash of a request", "sha512"), ("Replace", "y"))
        assert terminal.finish() == 0
    tree = parse(terminal.path.read_text())
    assert [value(tree, f"listeners/vsock/{it}") for it in ("port", "key_file", "hash")] == ["1300", key, "sha512"]


def test_no_after_more_questions_keeps_what_was_written(tmp_path):
    with Terminal(tmp_path) as terminal:
        terminal.answer(*BEGIN, ("Listener module", "vsock"), ("Backend module", ""), ("Libvirt URI", ""),
                        ("Replace", "y"), (MORE, "y"), ("VSOCK Listen Port", "1300"), ("Key File", "none"),
                        ("Weakest hash of a request", ""), ("Replace", "n"))
        terminal.expect("what was written before stays")
        assert terminal.finish() == 0
    assert value(parse(terminal.path.read_text()), "listeners/vsock/port") is None


def test_an_interface_that_is_not_there_is_asked_for_again(tmp_path):
    with Terminal(tmp_path) as terminal:
        terminal.answer(*BEGIN, ("Listener module", ""), ("Multicast IP Address", ""), ("Multicast IP Port", ""),
                        ("Interface", "nosuch0"))
        terminal.expect("warning: there is no interface nosuch0 on this machine, but lo")
        terminal.answer(("Key File", "none"), ("Backend module", ""), ("Libvirt URI", ""), ("Replace", "y"), (MORE, "y"))
        terminal.expect("there is no interface nosuch0")
        terminal.answer(("Interface", "nosuch1"))
        terminal.expect("there is no interface nosuch1")
        # Who insists has it.
        terminal.answer(("Interface", "nosuch1"))
        terminal.expect("warning: there is no interface nosuch1")
        terminal.answer(("Weakest hash of a request", ""), ("Replace", "y"))
        assert terminal.finish() == 0
    tree = parse(terminal.path.read_text())
    assert value(tree, "listeners/multicast/interface") == "nosuch1"
    assert value(tree, "listeners/multicast/hash") is None, "a default that was not there before"


def test_a_missing_key_is_made_when_somebody_says_so(tmp_path):
    key, none = tmp_path / "key", tmp_path / "none"
    with Terminal(tmp_path) as terminal:
        terminal.answer(*BEGIN, ("Listener module", "tcp,vsock"), ("TCP Listen IP Address", ""),
                        ("TCP Listen Port", ""), ("Key File", str(key)))
        terminal.expect(f"warning: key file {key} does not exist")
        terminal.answer(("VSOCK Listen Port", ""), ("Key File", str(none)), ("Backend module", ""), ("Libvirt URI", ""),
                        ("Replace", "y"), (MORE, "y"), (f"Make a new key in {key} now", "y"))
        terminal.expect("fingerprint")
        terminal.answer(("Weakest hash of a request", ""), (f"Make a new key in {none} now", ""),
                        ("Weakest hash of a request", ""), ("Replace", "y"))
        assert terminal.finish() == 0
    assert key.stat().st_size == 512 and stat.S_IMODE(key.stat().st_mode) == 0o600
    assert not none.exists()


def test_a_key_that_cannot_be_made(tmp_path):
    with Terminal(tmp_path) as terminal:
        terminal.answer(*BEGIN, ("Listener module", "tcp"), ("TCP Listen IP Address", ""), ("TCP Listen Port", ""),
                        ("Key File", str(tmp_path / "a/b/key")), ("Backend module", ""), ("Libvirt URI", ""),
                        ("Replace", "y"), (MORE, "y"), ("Make a new key", "y"))
        terminal.expect(f"there is no directory {tmp_path}/a/b")
        terminal.answer(("Weakest hash of a request", ""), ("Replace", "n"))
        assert terminal.finish() == 0


def test_an_answer_to_another_question_is_no_uri(tmp_path):
    with Terminal(tmp_path) as terminal:
        terminal.answer(*BEGIN, ("Listener module", "tcp"), ("TCP Listen IP Address", ""), ("TCP Listen Port", ""),
                        ("Key File", "none"), ("Backend module", ""), ("Libvirt URI", "y"))
        terminal.expect("y is no URI of libvirt, such as qemu:///system")
        terminal.answer(("Libvirt URI", "qemu:///x"), ("Replace", "y"), (MORE, ""))
        assert terminal.finish() == 0
    assert value(parse(terminal.path.read_text()), "backends/libvirt/uri") == "qemu:///x"


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
