# SPDX-License-Identifier: GPL-2.0-or-later
"""Forms of fence_virt.conf that are taken, and mistakes that must stop the daemon."""

import pytest

from compliance.support import VIRTD, differs, only
from lab import programs

UP, REFUSED, DEAF = "up", "refused", "deaf"


@pytest.fixture(scope="module")
def text(lab, uri):
    return programs.config_text(listener_options={"key_file": lab.key_file, "interface": "eth0"},
                                backend_options={"uri": uri})


def outcome(lab, text):
    """UP when a daemon with this config answers; REFUSED when it ends by itself with a failure and a word; DEAF when
    it runs and has no socket on the usual port."""
    config = programs.write_config(lab.file(".conf"), text)
    try:
        with programs.Daemon(lab.host, config, wait=4) as daemon:
            if lab.xvm("-o", "status", "-H", "on1", t=4).rc == 0:
                return UP
            # The C daemon binds its socket before it finds that it can't go on.
            assert daemon.wait_exit() != 0, "a failure must not look like success"
            assert daemon.lines, "a failure without a word"
            return REFUSED
    except RuntimeError as e:
        said = str(e)
        if "not ready within" in said:
            return DEAF
        assert "ended with 0" not in said, "a failure must not look like success"
        assert len(said.splitlines()) > 1, "a failure without a word"
        return REFUSED


FORMS = {
    "as written": lambda t: t,
    "one line": lambda t: t.replace("\n", " ").replace("\t", " "),
    "no blanks": lambda t: t.replace("\n", "").replace("\t", "").replace(" = ", "="),
    "blank lines": lambda t: t.replace("\n", "\n\n  \t\n"),
    "comment lines": lambda t: "# head\n" + t.replace("backend =", "# mid { } ; = \"\n backend =") + "# end, no newline",
    "comment after a value": lambda t: t.replace('"eth0";', '"eth0"; # the bridge'),
    "other case": lambda t: t.replace("listeners", "LISTENERS").replace("key_file", "Key_File"),
    "value twice": lambda t: t.replace('interface = "eth0"', 'interface = "nope0";\n interface = "eth0"'),
    "blocks in another order": lambda t: t[t.index("listeners"):] + t[:t.index("listeners")],
    "spare blocks": lambda t: t + 'spare { nothing = "of ours"; inner { x = "y"; } }\n',
    "tabs": lambda t: t.replace(" = ", "\t=\t"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(lab, text, form):
    assert outcome(lab, FORMS[form](text)) == UP


@differs("reference.md: CRLF refused / CRLF read", about=VIRTD, reference=REFUSED, ours=UP)
def test_crlf(lab, text, expected):
    assert outcome(lab, text.replace("\n", "\r\n")) == expected


def test_unknown_key(lab, text):
    assert outcome(lab, text.replace("interface =", 'colour = "red";\n\tinterface =')) == UP


WRONG = {
    "empty file": lambda t: "",
    "a brace too many": lambda t: t + "}\n",
    "a brace too few": lambda t: t.rstrip().removesuffix("}"),
    "no semicolon": lambda t: t.replace('"eth0";', '"eth0"'),
    "no quotes": lambda t: t.replace('"eth0"', "eth0"),
    "open quote": lambda t: t.replace('"eth0";', '"eth0;'),
    "empty value": lambda t: t.replace('"eth0"', '""'),
    "port 0": lambda t: t.replace("interface =", 'port = "0"; interface ='),
    "port x": lambda t: t.replace("interface =", 'port = "x"; interface ='),
    "family": lambda t: t.replace("interface =", 'family = "ipx"; interface ='),
    "hash": lambda t: t.replace("interface =", 'hash = "md5"; interface ='),
    "auth": lambda t: t.replace("interface =", 'auth = "md5"; interface ='),
    "address is no group": lambda t: t.replace("interface =", 'address = "10.0.0.1"; interface ='),
    "address is no address": lambda t: t.replace("interface =", 'address = "nonsense"; interface ='),
    "family and address differ": lambda t: t.replace("interface =", 'family = "ipv6"; address = "225.0.0.12"; interface ='),
    "listener": lambda t: t.replace('listener = "multicast"', 'listener = "smoke"'),
    "backend": lambda t: t.replace('backend = "libvirt"', 'backend = "magic"'),
    "no key": lambda t: t.replace("/key", "/no-such-key"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes(lab, text, mistake):
    changed = WRONG[mistake](text)
    assert changed != text
    assert outcome(lab, changed) == REFUSED


@differs("reference.md: port -1 or 70000 accepted / such ports refused", about=VIRTD, reference=DEAF, ours=REFUSED)
@pytest.mark.parametrize("port", ["-1", "70000"])
def test_ports_that_do_not_exist(lab, text, port, expected):
    assert outcome(lab, text.replace("interface =", f'port = "{port}"; interface =')) == expected


@differs("reference.md: a misspelt interface is taken as any / an unknown interface is an error", about=VIRTD,
         reference=UP, ours=REFUSED)
def test_misspelt_interface(lab, text, expected):
    assert outcome(lab, text.replace('"eth0"', '"eht0"')) == expected


@differs("reference.md: empty group or key accepted / such keys refused", about=VIRTD, reference=True, ours=False)
@pytest.mark.parametrize("content", [b"", b"x"], ids=["empty", "one byte"])
def test_bad_keys(lab, uri, content, expected):
    key = programs.write_key(lab.file(".key"), content)
    config = lab.config(uri, listener_options={"key_file": key})
    try:
        with programs.Daemon(lab.host, config, wait=4) as d:
            started = d.alive()
    except RuntimeError as e:
        assert "ended with" in str(e)
        started = False
    assert started is expected


def test_no_config_file(lab):
    with pytest.raises(RuntimeError, match=r"ended with (?!0)"):
        programs.Daemon(lab.host, lab.dir / "no such.conf", wait=4)


@only("ours", VIRTD, "architecture.md, fence-config: all errors in one pass with file:line:column")
def test_all_mistakes_at_once_with_their_places(lab, text):
    wrong = text.replace("interface =", 'hash = "md5";\n\tport = "x";\n\tinterface =')
    config = programs.write_config(lab.file(".conf"), wrong)
    with pytest.raises(RuntimeError) as e:
        programs.Daemon(lab.host, config, wait=4)
    for word in ("md5", '"x"'):
        line = 1 + [i for i, x in enumerate(wrong.splitlines()) if word in x][0]
        assert f"{config.name}:{line}:" in str(e.value), word
