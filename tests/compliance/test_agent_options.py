# SPDX-License-Identifier: GPL-2.0-or-later
"""The agents' options on the command line and on standard input, their messages and exit codes."""

import re

import pytest

from compliance.support import AGENT, VERSIONS, differs, is_of_today, only, told
from lab import programs
from lab.testdriver import uuid_of

pytestmark = pytest.mark.usefixtures("multicast")
ON = (0, "Status: ON\n")


def outcome(result):
    return result.rc, result.out


@pytest.mark.parametrize("args", [
    ["-o", "status", "-H", "on1"], ["-o", "status", "-n", "on1"], ["-ostatus", "-Hon1"], ["-ostatus", "-non1"],
    ["-uo", "status", "-H", uuid_of("on1")], ["-uostatus", "-uH", uuid_of("on1")], ["-i", "auto"], ["-i", "ipv4"],
    ["-iipv4"], ["-a", "225.0.0.12"], ["-p", "1229"], ["-p1229"], ["-r", "3"], ["-r3"], ["-C", "sha256"], ["-Csha256"],
    ["-c", "sha256"], ["-csha512"], ["-t", "7"], ["-t7"], ["-w", "0"], ["-w1"], ["-o", "STATUS"],
    ["-o", "status", "-H", "on1", "an-operand"], ["--"]])
def test_short_options(lab, args):
    base = [] if any(a.startswith(("-H", "-n", "-uH")) for a in args) else ["-o", "status", "-H", "on1"]
    after = ["-k", str(lab.key_file)]
    argv = [*base, *after, *args] if args == ["--"] else [*base, *args, *after]
    r = programs.run_agent(lab.guest, *argv, program=programs.FENCE_XVM, timeout=20)
    assert outcome(r) == ON


def test_the_last_of_a_repeated_option_counts(lab):
    assert outcome(lab.xvm("-o", "list", "-o", "status", "-H", "on1")) == ON


@pytest.mark.parametrize("args", [["-d"], ["-dd"], ["-d", "-d", "-d"], ["-do", "status"]])
def test_debug_keeps_the_exit_code(lab, args):
    assert lab.xvm("-o", "status", "-H", "on1", *args).rc == 0


def test_delay_comes_before_off(lab):
    r = lab.xvm("-o", "off", "-H", "vm1", "-w", "2")
    assert r.rc == 0 and r.seconds >= 2


@pytest.mark.parametrize("args", [["-o", "status", "-H", "on1"], ["-o", "list"], ["-o", "monitor"]])
def test_no_delay_before_anything_else(lab, args):
    assert lab.xvm(*args, "-w", "5").seconds < 4


@pytest.mark.parametrize("args", [
    ["-o", "bogus", "-H", "on1"], ["-c", "md5", "-o", "list"], ["-C", "md5", "-o", "list"], ["-i", "ipx", "-o", "list"],
    ["-p", "0", "-o", "list"], ["-p", "70000", "-o", "list"], ["-p", "x", "-o", "list"], ["-r", "0", "-o", "list"],
    ["-a", "nonsense", "-o", "list"], ["-H", "", "-o", "status"], ["-o", "status"], ["-o", "off"], ["-o", "on"],
    ["-o", "reboot"], ["-o", "null"], [], ["-o", "validate-all"]])
def test_bad_options(lab, args):
    r = lab.xvm(*args)
    assert r.rc == 1 and told(r)
    assert r.seconds < 2, "nothing was asked"


def test_bad_timeout(lab):
    r = programs.run_agent(lab.guest, "-o", "list", "-k", lab.key_file, "-t", "x", program=programs.FENCE_XVM, timeout=9)
    assert r.rc == 1 and told(r)


@differs("reference.md, exit codes: 1 failure; an unknown option is no success (the reference prints its help and says 0)",
         about=AGENT, reference=0, ours=1)
@pytest.mark.parametrize("args", [["-x"], ["-o"], ["-T", "127.0.0.1"], ["-S"], ["-D", "/dev/null"]])
def test_unknown_option(lab, args, expected):
    r = programs.run_agent(lab.guest, *args, program=programs.FENCE_XVM, timeout=9)
    assert r.rc == expected
    assert r.err


@pytest.mark.parametrize("program", ["FENCE_XVM", "FENCE_VIRT"])
@pytest.mark.parametrize("option", ["-h", "-?"])
def test_help(lab, program, option):
    r = programs.run_agent(lab.guest, option, program=getattr(programs, program), timeout=9)
    assert r.rc == 0
    text = r.out + r.err
    letters = "diaprCckHnuotVwh" if program == "FENCE_XVM" else "dDPApTSCckHnotVwh"
    for letter in letters.replace("H", ""):  # -H is an old spelling of -n, which the reference's help leaves out
        assert f"-{letter}" in text, letter
    for name in ("debug", "plug", "action", "timeout", "delay", "key_file", "hash", "auth", "ipport"):
        assert name in text


def test_version(lab, note):
    """The C programs are those that the expectations are of. Debian sid may have newer ones; then this says so."""
    r = programs.run_agent(lab.guest, "-V", program=programs.FENCE_XVM, timeout=9)
    assert r.rc == 0 and "fence_xvm" in r.out + r.err
    if programs.AGENT_SIDE == "reference":
        version, known = re.search(r"^fence release ([\d.]+)$", r.out, re.MULTILINE)[1], VERSIONS[programs.REFERENCE]
        note(f"the C programs are {version}; the expectations are of {known}")
        assert version == known or is_of_today(AGENT) and numbers(version) > numbers(known)


def numbers(version):
    return [int(it) for it in version.split(".")]


@differs("reference.md, Output: messages go to stderr (4.12.1 has them on stdout, 4.17.0 too on stderr)", about=AGENT,
         reference=("Unsupported operation: bogus\nusage: ", ""), today=("usage: ", "Unsupported operation: bogus\n"),
         ours=("", "fence_xvm: unknown action 'bogus'"))
def test_where_the_message_of_a_wrong_option_is(lab, expected):
    r = lab.xvm("-o", "bogus", "-H", "on1")
    assert r.rc == 1
    assert r.out.startswith(expected[0]) and r.err.startswith(expected[1])
    assert bool(r.out) is bool(expected[0]) and bool(r.err) is bool(expected[1])


@differs("reference.md: target given twice is an error in the reference (ours: only when the two differ)",
         about=AGENT, reference=1, ours=0)
@pytest.mark.parametrize("args", [["-H", "on1", "-n", "on1"], ["-n", "on1", "-n", "on1"]])
def test_target_twice_the_same(lab, args, expected):
    assert lab.xvm("-o", "status", *args).rc == expected


def test_target_twice_different(lab):
    r = lab.xvm("-o", "status", "-H", "on1", "-n", "off1")
    assert r.rc == 1 and told(r)


def test_no_key(lab):
    r = lab.xvm("-o", "list", key=lab.dir / "no such key", t=3)
    assert r.rc == 1 and "no such key" in told(r)


def test_key_is_a_directory(lab):
    r = lab.xvm("-o", "list", key=lab.dir, t=3)
    assert r.rc == 1


class TestStdin:
    """Options as name=value lines."""

    @pytest.mark.parametrize("text", [
        "action=status\nport=on1\n", "action=status\nplug=on1\n", "action=status\ndomain=on1\n",
        "option=status\nport=on1\n", "ACTION=status\nPORT=on1\n", "Action=STATUS\nPlug=on1", "  action=status\n\tport=on1\n",
        "# comment\n\n   \naction=status\n# another=comment\nport=on1\n", "action=status\nport=on1\nself=me\nagent=fence_xvm\n",
        "action=status\nport=on1\nnodename=on1\n", "action=status\nport=on1\nnodename=someone-else\n",
        "action=status\nport=on1\r\n", "action=status \nport=on1 \n",
        "action=status\nport=on1\nip_family=ipv4\nmulticast_address=225.0.0.12\nipport=1229\nretrans=5\nhash=sha256\n"
        "auth=sha256\ntimeout=8\ndelay=0\ndebug=0\nuse_uuid=0\n",
        f"action=status\nport={uuid_of('on1')}\nuse_uuid=1\n", "action=status\nport=on1\ndelay=3\n",
        "action=off\naction=status\nport=on1\n", "action=status\nport=on1"])
    def test_good(self, lab, text):
        r = lab.stdin(text)
        assert (r.rc, r.out) == ON
        assert r.err == ""

    @pytest.mark.parametrize("text", ["foo=bar\n", "user=x\npasswd=y\n", "pcmk_host_list=a b\n", "=x\n"])
    def test_unknown_names_are_ignored_with_a_warning(self, lab, text):
        r = lab.stdin(f"action=status\nport=on1\n{text}")
        assert (r.rc, r.out) == ON
        assert r.err, "a warning"

    def test_interface_is_taken(self, lab):
        """reference.md: `interface` is accepted on stdin (the reference warns)."""
        assert outcome(lab.stdin("action=status\nport=on1\ninterface=eth0\n")) == ON

    @differs("reference.md: blanks trimmed (the reference trims the line, not the name and the value)",
             about=AGENT, reference=1, ours=0)
    def test_blanks_around_the_sign(self, lab, expected):
        assert lab.stdin("action = status\nport = on1\n").rc == expected

    @differs("reference.md: `plug` with `port` refused although stonith_admin --validate sends both / accepted when one "
             "names the target", about=AGENT, reference=1, ours=0)
    @pytest.mark.parametrize("text", ["port=on1\nplug=on1\n", "domain=on1\nport=on1\n", "plug=on1\nport=on1\nnodename=n\n"])
    def test_port_and_plug_equal(self, lab, text, expected):
        assert lab.stdin(f"action=status\n{text}").rc == expected

    def test_port_and_plug_differ(self, lab):
        r = lab.stdin("action=status\nport=on1\nplug=off1\n")
        assert r.rc == 1 and told(r)

    @pytest.mark.parametrize("text", ["", "action=status\n", "action=status\nnodename=on1\n", "port=\naction=off\n"])
    def test_no_target(self, lab, text):
        r = lab.stdin(text)
        assert r.rc == 1 and told(r)

    @pytest.mark.parametrize("text", [
        "action=\nport=on1\n", "action=bogus\nport=on1\n", 'action="list"\n', "action=list\nauth=bogus\n",
        "action=list\nhash=bogus\n", "action=list\ntimeout=abc\n", "action=list\nipport=0\n", "action=list\nip_family=x\n",
        "action=list\nretrans=0\n"])
    def test_bad_values(self, lab, text):
        r = lab.stdin(text)
        assert r.rc == 1 and told(r)

    @differs("reference.md: stray text: bare `action` on stdin means reboot / an error: a value is needed",
             about=AGENT, reference=0, ours=1)
    def test_bare_action(self, lab, expected):
        assert lab.stdin("action\nport=vm2\n").rc == expected

    @pytest.mark.parametrize("text", ["action=list\n", "ACTION=List\n", "option=list\n", "action=list-status\n"])
    def test_list(self, lab, text, domains):
        r = lab.stdin(text)
        assert r.rc == 0 and len(r.out.splitlines()) == len(domains)

    def test_off_and_status(self, lab):
        assert lab.stdin("action=off\nport=vm3\n").rc == 0
        assert outcome(lab.stdin("action=status\nport=vm3\n")) == (2, "Status: OFF\n")
        assert lab.stdin("action=on\nport=vm3\n").rc == 0

    def test_monitor(self, lab):
        assert outcome(lab.stdin("action=monitor\n")) == (0, "")

    def test_validate_all(self, lab):
        r = lab.stdin("action=validate-all\nport=on1\n")
        assert (r.rc, r.err) == (0, "")

    def test_validate_all_without_target(self, lab):
        r = lab.stdin("action=validate-all\n")
        assert r.rc == 1 and told(r)

    def test_tcp_names(self, lab, tcp):
        r = lab.stdin(f"ipaddr={lab.host.ip}\naction=status\nport=on1\n", program=programs.FENCE_VIRT)
        assert outcome(r) == ON

    def test_tcp_names_upper_case(self, lab, tcp):
        r = lab.stdin(f"IPADDR={lab.host.ip}\nACTION=status\nPLUG=off1\nIPPORT=1229\n", program=programs.FENCE_VIRT)
        assert outcome(r) == (2, "Status: OFF\n")


LIMIT = 1 << 20


@only("ours", AGENT, "reference.md has no limit: the reference reads on")
@pytest.mark.parametrize("last", ["plug=on1", "action=off\nplug=on1\naction=status"])
def test_long_standard_input_is_read_whole_or_refused(lab, last):
    """A part of it could mean something else: another target, another action."""
    # What `stdin` sends before it.
    head = f"key_file={lab.key_file}\ntimeout=8\nretrans=5\n"
    filled = "action=status\n# \n" + last
    filled = filled.replace("# ", "# " + "x" * (LIMIT - len(head) - len(filled)))
    assert outcome(lab.stdin(filled)) == ON
    for more in ("0", "\n", "x" * LIMIT):
        r = lab.stdin(filled + more)
        assert r.rc == 1 and "standard input is longer than 1048576 bytes" in told(r), r
        assert r.seconds < 2, "nothing was asked"
