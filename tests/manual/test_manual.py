# SPDX-License-Identifier: GPL-2.0-or-later
"""What the programs take, say of themselves, and what the manual says of them is the same.

Options come from three places: from trying every letter, from -h, and from the tables of docs/*.md, which are the
manual pages; agents have their metadata too. Who adds an option gets told here what is missing. The keys of
fence_virt.conf are held against its page and the sample by crates/fence-config/tests/manual.rs.
"""

import re
import string
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

from lab import programs

pytestmark = pytest.mark.skipif(programs.SIDE != "ours", reason="about our programs and our manual")

DOCS = programs.REPOSITORY / "docs"
AGENTS = ["fence_xvm", "fence_virt"]
PROGRAMS = [*AGENTS, "fence_virtd"]
# Taken so that an old command line gets a good answer, and nothing else.
REFUSED = {"fence_xvm": {"-M"}, "fence_virt": {"-M"}, "fence_virtd": set()}
# Parameters that only we have; cluster shells compare the metadata with those of the C agents.
NOT_IN_METADATA = {"quiet_time"}
# Values for parameters that do not take "1".
VALUES = {"action": "metadata", "option": "metadata", "ip_family": "ipv4", "hash": "sha256", "auth": "sha256",
          "multicast_address": "225.0.0.12", "ipaddr": "127.0.0.1", "channel_address": "10.0.2.179", "vsock": "2",
          "serial_params": "115200,8N1"}
# Words that options choose from; -h and the manual must name the same ones.
WORDS = {"none", "sha1", "sha256", "sha512", "hmac-sha256", "hmac-sha512", "auto", "ipv4", "ipv6"}


def run(name, *args, stdin=""):
    """Runs a program where it can reach nobody. None instead of its exit code: it was still at work after a minute."""
    command = ["unshare", "--net", "--", getattr(programs, name.upper()), *args]
    try:
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired as e:
        return subprocess.CompletedProcess(command, None, (e.stdout or b"").decode(), (e.stderr or b"").decode())


def table(page, heading):
    """The rows of the first table under a heading: a list of {column: cell}."""
    lines = (DOCS / page).read_text().splitlines()
    lines = lines[lines.index(heading) + 1:]
    rows = []
    for line in lines:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows or line.startswith("#"):
            break
    assert rows, f"docs/{page}: no table under {heading}"
    return [dict(zip(rows[0], row)) for row in rows[2:]]


def literals(cell):
    return re.findall(r"`([^`]+)`", cell)


def manual_options(name):
    """{form: row} of a program's options, such as -t or --check."""
    page = "fence_virtd.md" if name == "fence_virtd" else "fence_xvm.md"
    options = {}
    for row in table(page, "## OPTIONS"):
        if row.get("agent", "both") in ("both", name):
            for literal in literals(row["option"]):
                options[literal.split("=")[0].split("[")[0]] = row
    return options


def help_options(name):
    """{form: text} of -h, and {name: text} of its part about standard input."""
    text = run(name, "-h").stdout
    options, names = {}, {}
    for line in text.splitlines():
        # Two blanks before the option, at least two (or the end of a long one) before its text.
        if option := re.match(r"  (-\S.*?)(?:  +(.*)|$)", line):
            for form in re.findall(r"(?:^|[ ,])(--?[A-Za-z0-9?][\w-]*)", option[1]):
                options[form] = option[2] or ""
        elif parameter := re.match(r"  ([a-z_]+)  +(.*)", line):
            names[parameter[1]] = parameter[2]
    return options, names


def metadata(name):
    return ElementTree.fromstring(run(name, "-o", "metadata").stdout)


def said_default(text):
    found = re.search(r"\(default ([^)]*)\)", text)
    return found and found[1].replace("for ipv6 ", "").split(", ")


@pytest.mark.parametrize("name", PROGRAMS)
def test_letters(name):
    """Each letter that the program takes is in -h and in the manual, and none other."""
    # An operand, and a file that is not there, keep the daemon from doing anything.
    rest = ["-f", "/nonexistent/fence_virt.conf", "operand"] if name == "fence_virtd" else []
    taken = set()
    for letter in string.ascii_letters + string.digits + "?":
        said = run(name, f"-{letter}", *rest).stderr
        if f"unknown option -{letter}" not in said:
            taken.add(f"-{letter}")
    taken -= REFUSED[name]
    options, _ = help_options(name)
    manual = manual_options(name)
    assert {it for it in options if len(it) == 2} == taken, f"{name} -h, and the letters that {name} takes"
    assert {it for it in manual if len(it) == 2} == taken, f"the table OPTIONS in docs, and the letters of {name}"


@pytest.mark.parametrize("name", AGENTS)
def test_refused_letters(name):
    for form in REFUSED[name]:
        assert run(name, form, "x").returncode == 1
        assert f"`{form}` is refused" in (DOCS / "fence_xvm.md").read_text()


@pytest.mark.parametrize("name", PROGRAMS)
def test_long_options(name):
    options, _ = help_options(name)
    said = {it for it in options if it.startswith("--")}
    assert said == {it for it in manual_options(name) if it.startswith("--")}, f"{name} -h, and the manual"
    for form in said:
        # With more than any of them takes, so that none does anything: --keygen would make a key on this machine.
        assert "unknown option" not in run(name, form, "a", "b").stderr, f"{name} {form}"


@pytest.mark.parametrize("name", AGENTS)
def test_long_options_stand_for_letters(name):
    """A long option sets what its letter sets, with a value attached and after it; what it says names it as written."""
    options = manual_options(name)
    for form, row in options.items():
        letter = next((it for it in literals(row["option"]) if re.fullmatch("-[A-Za-z]", it.split("=")[0])), None)
        parameter = (literals(row.get("standard input", "")) or [None])[0]
        if not form.startswith("--") or letter is None or parameter is None:
            continue
        value = VALUES.get(parameter, "1")
        takes_value = "*" in row["option"]
        lines = [[letter + value], [f"{form}={value}"], [form, value]] if takes_value else [[letter], [form]]
        if parameter == "vsock":
            lines[2] = [form]
        said = {(it.returncode, it.stdout, it.stderr) for it in
                (run(name, *line, *([] if form == "--action" else ["-o", "metadata"])) for line in lines)}
        assert len(said) == 1 and next(iter(said))[0] == 0, f"{name} {form}: {said}"
        if parameter in {"ipport", "timeout", "delay", "retrans", "hash", "ip_family"}:
            assert run(name, form, "x\u00e4").stderr.startswith(f"{name}: {form}: 'x")
        wrong = run(name, f"{form}x", "-o", "metadata")
        assert wrong.returncode == 1 and f"unknown option {form}x, did you mean --" in wrong.stderr


@pytest.mark.parametrize("name", PROGRAMS)
def test_defaults_of_help(name):
    options, names = help_options(name)
    manual = manual_options(name)
    for form, text in options.items():
        row = manual[form]
        if "default" in row:
            default = literals(row["default"]) or [row["default"]]
        else:
            default = re.findall(r"default `([^`]+)`", row["meaning"])
        # A flag that is not given need not be said to be 0.
        if default not in ([], [""], ["0"]) or said_default(text):
            assert said_default(text) == default, f"{name} {form}: the default in -h, and in the manual"
        assert set(re.findall(r"[a-z0-9-]+", text.split("(default")[0])) & WORDS \
            == set(literals(row["meaning"])) & WORDS, f"{name} {form}: the words in -h, and in the manual"
    for parameter, text in names.items():
        row = next(it for it in manual.values() if parameter in literals(it["standard input"]))
        assert text in options.values(), f"{name}, {parameter}: two texts in -h"
        assert row is not None


@pytest.mark.parametrize("name", AGENTS)
def test_parameters(name):
    """Names on standard input: those of -h, of the metadata, of the manual, and those that are taken."""
    _, named = help_options(name)
    manual = {it: row for row in manual_options(name).values() for it in literals(row.get("standard input", ""))}
    described = {it.get("name"): it for it in metadata(name).iter("parameter")}
    assert set(named) - set(described) == NOT_IN_METADATA & set(named), f"{name}: -h, and the metadata"
    missing = (set(named) | set(described)) - set(manual)
    assert not missing, f"docs/fence_xvm.md: add {missing} to the column \"standard input\""
    for parameter, row in manual.items():
        # The action comes last: what it prints says that everything before it was taken.
        result = run(name, stdin=f"{parameter}={VALUES.get(parameter, '1')}\naction=metadata\n")
        assert (result.returncode, result.stderr) == (0, ""), f"{name}, {parameter} on standard input"
        entry = described.get(parameter)
        if entry is None:
            continue
        # -t, --timeout=[seconds], as the fence agents' library writes it.
        forms = [it.split("=")[0] for it in entry.find("getopt").get("mixed").split(", ")]
        if forms != [""]:
            assert forms == literals(row["option"])[:len(forms)], f"{name}, {parameter}: the options in the metadata"
        default = entry.find("content").get("default")
        if default is not None:
            assert default in (literals(row["default"]) or [row["default"]]), f"{name}, {parameter}: the default"


@pytest.mark.parametrize("name", AGENTS)
def test_actions(name):
    manual = {it for row in table("fence_xvm.md", "## ACTIONS") for it in literals(row["action"])}
    assert {it.get("name") for it in metadata(name).iter("action")} == manual
    options, _ = help_options(name)
    assert set(re.findall(r"[a-z-]+", options["-o"].split(":")[1].split("(")[0])) == manual
    assert "unknown action" not in run(name, "-o", "no-such-action").stdout


def test_listeners_and_backends():
    """What fence_virtd -l lists is what the page of its configuration names."""
    listed = set(re.findall(r"(?m)^    (\w+) ", run("fence_virtd", "-l").stdout))
    rows = table("fence_virt.conf.md", "## BLOCK fence_virtd")
    named = {word for row in rows for key in ("listener", "backend") if f"`{key}`" == row["key"]
             for word in literals(row["type"])}
    assert listed <= named, "docs/fence_virt.conf.md: the types of listener and backend"


@pytest.mark.parametrize("source, page", [
    ("fence_virtd.md", "man8/fence_virtd.8"), ("fence_xvm.md", "man8/fence_xvm.8"),
    ("fence_xvm.md", "man8/fence_virt.8"), ("fence_virt.conf.md", "man5/fence_virt.conf.5")])
def test_page_shows_every_row(source, page, tmp_path):
    """Nothing of the tables gets lost on the way to the terminal."""
    subprocess.run([programs.REPOSITORY / "scripts/man-pages", tmp_path], check=True, env={
        "PATH": "/usr/bin:/bin", "SOURCE_DATE_EPOCH": "1700000000"})
    number, name = page[3], page.split("/")[1][:-2]
    shown = subprocess.run(["man", "-M", tmp_path, "-P", "cat", number, name], capture_output=True, text=True, env={
        "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "500"}, check=True).stdout
    shown = re.sub(r".\x08", "", shown)
    lines = [it for it in (DOCS / source).read_text().splitlines() if it.startswith("|") and "---" not in it]
    cells = [literal for line in lines for literal in literals(line)]
    assert cells
    for cell in cells:
        assert cell in shown, f"{page}: {cell}"
