# SPDX-License-Identifier: GPL-2.0-or-later
"""`fence_virtd -c` answered by a script: what the reference does, and that ours does the same.

Run: SIDE=ours /usr/bin/python3 -m pytest tests/configure        (ours from OURS_DIR; the reference beside it)
"""

import json
import os
import stat

import pytest
from lab import net, programs

from configure.capture import GOLDEN, outcome
from configure.cases import CASES, FULL, MODULES
from configure.dialogue import NAME, OURS, REFERENCE, parse, run, value

RECORDED = json.loads(GOLDEN.read_text())
NAMED = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
CUT_SHORT = [case for case in CASES if case.name in (
    "multicast own values", "serial vmchannel", "vsock asks nothing more of a script", "cpg by name after all not",
    "an answer that is asked again", "drop interface and key", "to tcp", "unparsable: from scratch")]
DEFAULTS = ["y", *[""] * 8, "y"]


def test_every_case_is_recorded_once():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) and list(RECORDED) == names


@pytest.mark.parametrize("case", [it for it in CASES if not it.endless], ids=lambda case: case.name.replace(" ", "-"))
def test_the_reference_does_what_is_recorded(case):
    assert outcome(REFERENCE, case) == RECORDED[case.name]["reference"]


@NAMED
def test_ours(case):
    recorded = RECORDED[case.name]
    assert outcome(OURS, case) == (recorded["ours"] if case.differs else recorded["reference"])
    if case.differs:
        assert recorded["ours"] != recorded["reference"], "it does not differ any more"


@pytest.mark.parametrize("case", CUT_SHORT, ids=lambda case: case.name.replace(" ", "-"))
def test_end_of_input_at_each_question(case, tmp_path):
    """Whatever is missing is the default; without the last answer nothing is replaced."""
    for count in range(len(case.answers)):
        answers = case.answers[:count]
        both = []
        for side, program in (("reference", REFERENCE), ("ours", OURS)):
            place = tmp_path / f"{side}{count}"
            place.mkdir()
            done = run(program, place, answers, case.existing)
            assert done.file == (None if case.existing is None else case.existing.encode()), (side, answers)
            assert os.listdir(place) == ([] if case.existing is None else [NAME])
            both.append((done.rc, done.prompts, done.shown))
        assert both[0] == both[1], answers


def ways():
    """Every way through the questions, with values that both sides take."""
    listeners = [["multicast", address, port, interface, key]
                 for address in ("", "239.192.1.1", "ff05::9") for port in ("", "65535")
                 for interface in ("", "lo") for key in ("", "none", "/k/new")]
    listeners += [["tcp", address, port, key]
                  for address in ("10.0.0.1", "::1") for port in ("", "1") for key in ("", "none", "/k/new")]
    listeners += [["serial", "", path, mode] for path in ("", "/run/x", "none") for mode in ("", "serial", "vmchannel")]
    listeners += [["vsock"]]
    backends = [["libvirt", ""], ["libvirt", "xen:///"], ["cpg", "", ""], ["cpg", "xen:///", "uuid"],
                ["cpg", "", "name", ""]]
    # Each of one with some of the other: the questions of the two do not touch each other.
    for number, listener in enumerate(listeners):
        yield [*listener, *backends[number % len(backends)], "y"]


@pytest.mark.parametrize("existing", [None, FULL], ids=["new", "old"])
def test_every_way(existing, tmp_path):
    for number, way in enumerate(list(ways())[::3 if existing else 1]):
        # The naming of the file's cpg block is by name, so that its default asks once more.
        if existing and way[-4:-1] == ["cpg", "", ""] or existing and way[-3:-1] == ["xen:///", ""]:
            way = [*way[:-1], "", "y"]
        answers = [*([] if existing else ["y"]), "", *way]
        done = []
        for side, program in (("reference", REFERENCE), ("ours", OURS)):
            place = tmp_path / f"{side}{number}"
            place.mkdir()
            done.append(run(program, place, answers, existing))
        theirs, ours = done
        prompts = [it.replace("TCP Listen IP Address [127.0.0.1]", "TCP Listen IP Address [225.0.0.12]")
                   for it in ours.prompts]
        assert (ours.rc, prompts, ours.tree) == (theirs.rc, theirs.prompts, theirs.tree), answers
        assert ours.rc == 0 and ours.shown == ours.tree, answers
    # The reference reads what ours wrote, and offers the same as of its own.
    for number in range(0, number, 7):
        theirs, ours = (run(REFERENCE, tmp_path / f"{side}{number}", []) for side in ("reference", "ours"))
        assert (ours.prompts, ours.shown) == (theirs.prompts, theirs.shown)


def test_no_change_is_no_change(tmp_path):
    first = run(OURS, tmp_path, DEFAULTS)
    again = run(OURS, tmp_path, [*[""] * 8, "y"])
    assert again.file == first.file and again.rc == 0
    assert f"Nothing changes in {NAME}." in again.out


def test_everything_else_stays_byte_for_byte(tmp_path):
    sample = (programs.REPOSITORY / "etc/fence_virt.conf").read_text()
    done = run(OURS, tmp_path, ["", "", "", "1300", "", "", "", "", "y"], existing=sample)
    assert done.rc == 0
    old, new = sample.splitlines(), done.file.decode().splitlines()
    assert [line for line in new if line in old] == old
    assert value(done.tree, "listeners/multicast/port") == "1300"
    added = [line.strip() for line in new if line not in old]
    assert sorted(added) == sorted([f'module_path = "{MODULES}";', 'family = "ipv4";', 'port = "1300";'])


def test_the_changes_are_shown(tmp_path):
    done = run(OURS, tmp_path, ["", "", "", "1301", "", "", "", "", "n"], existing=FULL)
    assert done.rc == 1
    shown = done.out.partition("=== End Configuration ===")[2]
    assert f"--- {NAME}\n+++ {NAME} (new)\n@@ " in shown
    assert '\n-  multicast { address = "ff05::3:1"; port = "1300";' in shown
    assert '\n+  multicast { address = "ff05::3:1"; port = "1301";' in shown


def test_mode_and_owner(tmp_path):
    path = tmp_path / NAME
    for mode, wanted in ((0o644, 0o600), (0o400, 0o400)):
        path.write_text(FULL)
        path.chmod(mode)
        os.chown(path, 1, 2)
        assert run(OURS, tmp_path, [*[""] * 8, "y"]).rc == 0
        now = path.stat()
        assert (stat.S_IMODE(now.st_mode), now.st_uid, now.st_gid) == (wanted, 1, 2)
        path.unlink()


def test_a_link_stays_one(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / NAME).symlink_to("there/real.conf")
    for answers in (DEFAULTS, ["", "tcp", "10.0.0.1", "", "", "", "", "y"]):
        assert run(OURS, tmp_path, answers).rc == 0
        assert (tmp_path / NAME).is_symlink() and os.listdir(tmp_path / "there") == ["real.conf"]
    assert value(parse((tmp_path / "there/real.conf").read_text()), "fence_virtd/listener") == "tcp"


def test_no_directory(tmp_path):
    done = run(OURS, tmp_path, DEFAULTS, name="none/x.conf")
    assert done.rc == 1 and done.prompts == []
    assert "there is no directory none;" in done.err


def test_a_file_that_cannot_be_written(tmp_path):
    """A directory that nothing can be made in, even by root."""
    (tmp_path / NAME).symlink_to("/proc/self/x.conf")
    done = run(OURS, tmp_path, DEFAULTS)
    assert done.rc == 1 and "can't be written" in done.err


def test_unparsable_says_where(tmp_path):
    done = run(OURS, tmp_path, ["n"], existing='fence_virtd {\n\tlistener = multicast;\n}\n')
    assert done.rc == 1 and f"{NAME}:2:13" in done.err, done.err


def test_warnings_of_a_script(tmp_path):
    """What may come later is taken, and said on standard error."""
    key = programs.write_key(tmp_path / "key")
    key.chmod(0o644)
    done = run(OURS, tmp_path, ["y", "", "", "", "", "nosuch0", str(key), "", "", "y"])
    assert done.rc == 0 and value(done.tree, "listeners/multicast/interface") == "nosuch0"
    assert "no interface nosuch0" in done.err and "lo" in done.err and f"chmod 600 {key}" in done.err
    assert stat.S_IMODE(key.stat().st_mode) == 0o644


def test_reasons(tmp_path):
    done = run(OURS, tmp_path, ["y", "", "bogus", "", "10.0.0.1", "", "99999", "", "", 'a"b', "", "", "", "y"])
    assert done.rc == 0
    for reason in ("allowed: multicast, tcp, vsock, serial", "239.255.255.255", "a number from 1 to 65535", "a quote"):
        assert reason in done.out


def test_several_key_files(tmp_path):
    """The last is asked about, as the reference does; the others are not forgotten in silence."""
    text = FULL.replace('key_file = "/k/a";', 'key_file = "/k/0"; key_file = "/k/a";')
    done = run(OURS, tmp_path, ["", "", "", "", "", "/k/b", "", "", "y"], existing=text)
    assert b'key_file = "/k/0"; key_file = "/k/b";' in done.file
    assert "the others stay" in done.out


def test_errors_elsewhere_in_the_file(tmp_path):
    text = FULL.replace('auth = "sha512"', 'auth = "md5"')
    done = run(OURS, tmp_path, [*[""] * 8, "n"], existing=text)
    assert done.rc == 1 and "md5" in done.err and "will not start with" in done.err


def test_the_daemon_takes_it(tmp_path):
    key = programs.write_key(tmp_path / "key")
    done = run(OURS, tmp_path, ["y", "", "multicast, tcp", "", "", "lo", str(key), "", "", str(key), "",
                                "test:///default", "y"])
    assert done.rc == 0 and done.err == "x.conf does not exist\n"
    with net.Net() as lab:
        host = lab.node("host")
        both = lambda daemon: daemon.bound("udp") and daemon.bound("tcp")  # noqa: E731
        with programs.Daemon(host, tmp_path / NAME, program=OURS, ready=both) as daemon:
            assert daemon.alive()
