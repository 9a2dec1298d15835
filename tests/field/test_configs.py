# SPDX-License-Identifier: GPL-2.0-or-later
"""fence_virt.conf as people have it: each shape in `configs/`, served by the C daemon and by ours.

`SHAPES` says what the C daemon does, and what ours does. Where both serve, a guest gets the same list from both: the
same domains, so the same restrictions. Where ours refuses, its error names line and reason.
"""

import concurrent.futures
import dataclasses
import pathlib
import queue
import re

import pytest

from lab import net, programs, testdriver

CONFIGS = pathlib.Path(__file__).with_name("configs")
ALL = "vm1 vm2"
REFUSES = "refuses"

pytestmark = pytest.mark.skipif(programs.SIDE != "ours", reason="about our daemon")


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the two daemons do with a file: the domains that a guest is shown, or REFUSES."""

    reference: str
    ours: str
    #: Line and words of our message, where there is one.
    line: int = 0
    said: str = ""
    #: How the guest asks.
    ask: tuple = ("fence_xvm", "-q", "0")


#: Both serve, and show the same.
SAME = Shape(ALL, ALL)


def both_refuse(line, said):
    return Shape(REFUSES, REFUSES, line, said)


def warned(line, said):
    return Shape(ALL, ALL, line, said)


SHAPES = {
    "sample": SAME,
    "written_by_c": SAME,
    "three_lines": SAME,
    "one_line": SAME,
    "uneven_tabs": SAME,
    "no_final_newline": SAME,
    "brace_on_next_line": SAME,
    "gbk_comments": SAME,
    "comments_at_line_ends": SAME,
    "commented_out_parts": SAME,
    "words_in_capitals": SAME,
    "values_in_capitals": SAME,
    "ipv6_in_capitals": Shape(ALL, ALL, ask=("fence_xvm", "-q", "0", "-i", "ipv6", "-a", "ff05::3:1")),
    "tcp": Shape(ALL, ALL, ask=("fence_virt",)),
    "groups": Shape("vm1", "vm1"),
    # What the C daemon passes over, ours names.
    "old_backends": warned(16, "unknown block `libvirt-qmf` in `backends`"),
    "old_listeners": warned(7, "unknown block `null` in `listeners`"),
    "unknown_key": warned(12, "unknown key `ttl`"),
    "duplicate_key": warned(12, "`port` has no effect: it comes again below"),
    "duplicate_block": warned(6, "`listeners` has no effect: it comes again below"),
    "two_multicast_blocks": warned(7, "`multicast` has no effect: it comes again below"),
    # What the C daemon has no words for.
    "several_multicast_blocks": Shape(REFUSES, ALL),
    "no_break_space_in_indent": warned(12, "U+00A0 (no-break space)"),
    # What the C daemon takes for no restriction at all, ours refuses.
    "no_break_space_before_groups": Shape(ALL, REFUSES, 20, "unknown block `\\u{a0}groups`"),
    "group_without_groups": Shape(ALL, REFUSES, 20, "everybody with the key may fence everything"),
    "groups_inside_listeners": Shape(ALL, REFUSES, 14, "`groups` belongs to the top level"),
    # What the C daemon refuses without a reason, and ours can read.
    "crlf": Shape(REFUSES, ALL),
    "bom": Shape(REFUSES, ALL),
    "blanks_in_values": Shape(REFUSES, ALL),
    "keys_outside": Shape(REFUSES, ALL, 1, "`listener` belongs into fence_virtd"),
    "no_daemon_block": Shape(REFUSES, ALL, 1, "there is no block `fence_virtd`"),
    # What both refuse.
    "missing_semicolon": both_refuse(10, "`;` is missing behind the value of `interface`"),
    "missing_last_semicolon": both_refuse(12, "`;` is missing behind the value of `port`"),
    "missing_last_brace": both_refuse(15, "the block `backends` is not closed"),
    "missing_inner_brace": both_refuse(6, "the block `listeners` is not closed"),
    "one_brace_too_many": both_refuse(20, "this `}` closes no block"),
    "semicolon_after_brace": both_refuse(5, "this `;` ends nothing"),
    "unquoted_port": both_refuse(12, "write \"1229\""),
    "single_quotes": both_refuse(12, "write \"1229\"; not this: apostrophe"),
    "typographic_quotes": both_refuse(12, "write \"1229\"; not this: U+201C (left double quote)"),
    "missing_quote": both_refuse(9, "the value of `address` has no closing quote"),
    "colon_for_equals": both_refuse(12, "`port:` is neither a key with a value nor a block"),
    "slash_comments": both_refuse(1, "`//` is neither a key with a value nor a block"),
    "empty_value": both_refuse(11, "`family` has an empty value"),
    "nothing": both_refuse(1, "there is nothing in the file but blanks and comments"),
    "no_listeners_block": both_refuse(0, "key file /etc/cluster/fence_xvm.key does not exist"),
}


class Site:
    """A host and a guest on a network of their own."""

    def __init__(self, directory):
        self.net, self.directory = net.Net(), directory
        directory.mkdir()
        self.host, self.guest = self.net.node("host"), self.net.node("guest")
        self.key = programs.write_key(directory / "key")
        self.uri = testdriver.write(directory / "domains.xml", [
            testdriver.Domain("vm1"), testdriver.Domain("vm2", state=testdriver.SHUTOFF)])

    def serve(self, side, name):
        """The domains that the daemon shows to the guest, or REFUSES; and what it says."""
        text = (CONFIGS / f"{name}.conf").read_bytes()
        for word, value in (("@KEY@", self.key), ("@URI@", self.uri), ("@MODULES@", programs.MODULE_PATH),
                            ("@GUEST@", self.guest.ip), ("@VM1@", testdriver.uuid_of("vm1"))):
            text = text.replace(word.encode(), str(value).encode())
        config = self.directory / f"{side}-{name}.conf"
        config.write_bytes(text)
        daemon = programs.Daemon(self.host, config, ready=None, program=programs.program(side, "fence_virtd"))
        try:
            net.wait_until(lambda: not daemon.alive() or daemon.bound("udp") or daemon.bound("tcp"))
            if not daemon.alive():
                return REFUSES, self.log_of(daemon)
            program, *arguments = SHAPES[name].ask
            if program == "fence_virt":
                arguments += ["-T", self.host.ip]
            else:
                arguments += ["-r", 2]
            asked = programs.run_agent(self.guest, *arguments, "-o", "list", "-k", self.key, "-t", 20,
                                       program=programs.program("ours", program))
            assert asked.rc == 0, (side, name, asked, daemon.log)
            return " ".join(sorted(row.split()[0] for row in asked.out.splitlines())), daemon.log
        finally:
            daemon.stop()

    @staticmethod
    def log_of(daemon):
        """All that an ended daemon has said."""
        daemon.wait_exit()
        return daemon.log

    def close(self):
        self.net.close()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{(side, shape): what was served and said}, of all shapes at once."""
    directory = tmp_path_factory.mktemp("shapes")
    sites = [Site(directory / str(number)) for number in range(4)]
    free = queue.SimpleQueue()
    for site in sites:
        free.put(site)

    def serve(case):
        site = free.get()
        try:
            return site.serve(*case)
        finally:
            free.put(site)

    cases = [(side, name) for name in SHAPES for side in ("reference", "ours")]
    with concurrent.futures.ThreadPoolExecutor(len(sites)) as pool:
        yield dict(zip(cases, pool.map(serve, cases)))
    for site in sites:
        site.close()


def test_each_file_has_its_row():
    assert {path.stem for path in CONFIGS.iterdir()} == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_shape(results, name):
    shape = SHAPES[name]
    served, _ = results["reference", name]
    assert served == shape.reference, "the C daemon"
    served, log = results["ours", name]
    assert served == shape.ours, log
    place = f"ours-{name}.conf:{shape.line}:"
    assert not shape.line or place in log, f"{place} in\n{log}"
    assert shape.said in log, log
    if not shape.said:
        assert not re.search(r"^fence_virtd: (warning|error)\[", log, re.MULTILINE), log
