# SPDX-License-Identifier: GPL-2.0-or-later
"""Scripted runs. golden.json has what the reference made of each; ours must make the same of it, except where a case
says what differs and why."""

import dataclasses

MODULES = "/usr/lib/x86_64-linux-gnu/fence-virt/"

# A file with blocks that are not asked about.
FULL = """\
# top
fence_virtd {
\tlistener = "multicast";
\tbackend = "libvirt";
\tdebug = "3";
\tname_mode = "name";
}
listeners {
  multicast { address = "ff05::3:1"; port = "1300"; interface = "lo"; key_file = "/k/a"; auth = "sha512"; }
  tcp { address = "10.9.8.7"; port = "1400"; key_file = "/k/t"; }
  serial { uri = "qemu:///s"; path = "/p"; mode = "vmchannel"; }
  future { what = "1"; }
}
backends {
  libvirt { uri = "qemu:///b"; uri1 = "qemu:///c"; }
  cpg { uri = "qemu:///cc"; name_mode = "name"; }
}
groups {
  group { name = "a"; ip = "1.2.3.4"; uuid = "vm1"; uuid = "vm2"; }
  group { name = "b"; ip = "1.2.3.5"; uuid = "vm3"; }
}
odd = "1";
"""


@dataclasses.dataclass
class Case:
    """`answers` to the prompts. `differs`: what ours does otherwise; golden.json then has ours beside the reference's.
    `endless`: the reference never ends, and is not run."""

    name: str
    answers: list
    existing: str | None = None
    differs: str | None = None
    endless: bool = False


def new(name, *answers, **kw):
    """Answers behind those to `Start from scratch` and the module path."""
    return Case(name, ["y", "", *answers], **kw)


def old(name, *answers, existing=FULL, **kw):
    """Answers behind that to the module path."""
    return Case(name, ["", *answers], existing=existing, **kw)


CASES = [
    # Nothing there, one way of each question.
    new("multicast defaults", "", "", "", "", "", "", "", "y"),
    new("multicast own values", "multicast", "225.0.0.13", "1230", "lo", "/k/new", "libvirt", "qemu:///x", "y"),
    new("multicast IPv6, no interface, no key", "", "ff05::9", "77", "none", "none", "", "", "Y"),
    new("serial defaults", "serial", "", "", "", "", "", "y"),
    new("serial vmchannel", "serial", "", "/run/x", "vmchannel", "", "", "y"),
    new("serial none", "serial", "", "none", "serial", "", "", "y"),
    new("vsock asks nothing more of a script", "vsock", "", "", "y"),
    new("cpg defaults", "", "", "", "", "", "cpg", "", "", "y"),
    new("cpg by name", "", "", "", "", "", "cpg", "qemu:///q", "name", "y", "y"),
    new("cpg by name, default yes", "", "", "", "", "", "cpg", "", "name", "", "y"),
    new("cpg by name after all not", "", "", "", "", "", "cpg", "", "name", "n", "uuid", "y"),
    new("cpg, no such mode", "", "", "", "", "", "cpg", "", "both", "uuid", "y"),
    new("an answer that is asked again", "", "host.example", "ff05::9", "70000", "0", "-1", "12a", "x", "55", "", "",
        "", "", "y"),
    # The end of the dialogue.
    new("replace: no", "", "", "", "", "", "", "", "n"),
    new("replace: nothing", "", "", "", "", "", "", "", ""),
    new("replace: something else", "", "", "", "", "", "", "", "maybe", "y"),
    new("end of input at once", *[]),
    Case("start from scratch: no", ["n"]),
    Case("start from scratch: something else", ["maybe"]),
    Case("start from scratch: end of input", []),
    # A file that is there.
    old("keep all", "", "", "", "", "", "", "", "y"),
    old("drop interface and key", "", "", "", "none", "none", "", "", "y"),
    old("other family", "", "225.0.0.9", "", "", "", "", "", "y"),
    old("to tcp", "tcp", "", "", "", "", "", "y"),
    old("to serial and cpg", "serial", "", "", "", "cpg", "", "", "", "y"),
    old("serial without directory", "serial", "", "none", "serial", "", "", "y"),
    old("to vsock", "vsock", "", "qemu:///new", "y"),
    old("keep all: no", "", "", "", "", "", "", "", "n"),
    old("minimal", "", "", "", "", "", "", "", "y",
        existing='fence_virtd { listener = "multicast"; backend = "libvirt"; }\n'),
    Case("own module path", [MODULES.rstrip("/"), "", "", "", "", "", "", "", "y"], existing=FULL),
    Case("unparsable: no", ["n"], existing="fence_virtd {"),
    Case("unparsable: from scratch", ["y", "", "", "", "", "", "", "", "", "y"], existing="fence_virtd {"),
    Case("comments alone", ["n"], existing="# nothing\n"),
    Case("empty file", ["y", "", "", "", "", "", "", "", "", "y"], existing=""),

    # Where ours differs.
    new("tcp own values", "tcp", "10.0.0.1", "99", "/k/t", "", "", "yes",
        differs="the default address of tcp is not a multicast address"),
    new("tcp IPv6, no key", "tcp", "::1", "", "none", "", "", "y",
        differs="the default address of tcp is not a multicast address"),
    new("tcp default address", "tcp", "", "", "", "", "", "y",
        differs="the default address of tcp is not a multicast address"),
    new("serial URI", "serial", "qemu:///x", "", "", "", "", "y",
        differs="the URI of the serial listener is written"),
    old("other serial URI", "serial", "qemu:///x", "", "", "", "", "y",
        differs="the URI of the serial listener is written"),
    new("serial mode", "serial", "", "", "both", "serial", "", "", "y",
        differs="a mode that there is not is asked for again"),
    new("unknown listener", "bogus", "tcp", "10.0.0.1", "", "", "", "", "y",
        differs="there is no using an unknown listener all the same"),
    new("unknown backend", "", "", "", "", "", "bogus", "libvirt", "", "y",
        differs="there is no using an unknown backend all the same"),
    new("unicast address", "", "10.0.0.1", "225.0.0.7", "", "", "", "", "", "y",
        differs="a multicast address is one"),
    new("relative key file", "", "", "", "", "key", "/k/a", "", "", "y",
        differs="a key file is a path from /"),
    Case("module path that is not there", ["y", "/usr/lib64/nowhere", "tcp", "10.0.0.1", "", "", "", "", "y"],
         differs="there are no modules: any path is taken, so that scripts of other systems work"),
    new("blanks around answers", " tcp ", " 10.0.0.1 ", "", "", "", "", " y ", differs="blanks around answers"),
    new("several listeners", "tcp, vsock", "10.0.0.1", "1230", "/k/t", "1231", "/k/v", "", "", "y",
        differs="several listeners"),
    Case("default that can't be used", ["", "", "", "", ""], differs="an end, not a loop", endless=True,
         existing='fence_virtd { listener = "multicast"; backend = "libvirt"; }\n'
                  'listeners { multicast { port = "70000"; } }\n'),
    Case("unknown listener as default", [""], differs="an end, not a loop", endless=True,
         existing='fence_virtd { listener = "bogus"; backend = "libvirt"; }\n'),
]
