# SPDX-License-Identifier: GPL-2.0-or-later
"""The examples of docs/agent.md: every agent is installed, knows every option that it is given, and gets all that it needs."""

import pathlib
import re
import subprocess
import xml.etree.ElementTree as xml

import pytest

from lab import programs

PAGE = programs.REPOSITORY / "docs/agent.md"
EXAMPLES = programs.REPOSITORY / "docs/examples"
#: `action` is the daemon's, and so is the plug.
PLUG = {"plug", "port"}


def devices():
    """[(name, agent, {option: value}, plug_option)] of the page."""
    blocks = re.split(r"\n +device = ", PAGE.read_text())[1:]
    found = []
    for block in blocks:
        text = block[:re.search(r"\n +}\n +}", block).end()]
        keys, options = text.split("options {")
        pairs = [dict(re.findall(r'(\w+) *= "([^"]*)";', part)) for part in (keys, options)]
        found.append((re.match(r'"(.*?)"', text)[1], pairs[0]["agent"], pairs[1], pairs[0].get("plug_option")))
    return found


def parameters(agent):
    """{name: (needed, the name that it replaces)} of an agent's metadata. What has a default is not needed."""
    program = EXAMPLES / agent.rpartition("/")[2] if "/" in agent else agent
    done = subprocess.run([program, "-o", "metadata"], input="action=metadata\n", capture_output=True, text=True, check=True)
    return {it.get("name"): (it.get("required") == "1" and it.find("content").get("default") is None, it.get("obsoletes"))
            for it in xml.fromstring(done.stdout).iter("parameter")}


@pytest.mark.parametrize(("agent", "options", "plug_option"), [it[1:] for it in devices()], ids=[it[0] for it in devices()])
def test_an_example_suits_its_agent(agent, options, plug_option):
    known = parameters(agent)
    given = {name if name in known else name.removesuffix("_file") for name in options} | {"action"}
    assert given <= set(known), f"{agent} does not know {given - set(known)}"
    needed = {name for name, (required, _) in known.items() if required}
    # An old name and its new one need one of them.
    missing = {name for name in needed - given - PLUG
               if not any(obsolete == name and other in given for other, (_, obsolete) in known.items())
               and known[name][1] not in given}
    assert not missing, f"{agent} needs {missing}"
    assert plug_option is None or plug_option in known


def test_all_examples_are_found():
    assert len(devices()) >= 10 and {"fence_xenapi", "fence_redfish", "fence_pve", "fence_vmware_rest", "fence_virsh"} \
        <= {agent for _, agent, _, _ in devices()}


def test_what_is_said_when_it_fails():
    """The page's table has the words of the daemon, of its configuration, and of Debian's agents."""
    rows = [line for line in PAGE.read_text().split("## When it fails")[1].splitlines() if line.startswith("| `")]
    said = [piece for row in rows for phrase in re.findall(r"`([^`]+)`", row.split(" | ")[0])
            for piece in re.split(r"…|exit \d: |not run: |killed: |device (?=…)", phrase) if len(piece.strip(" :,")) > 3]
    sources = [*programs.REPOSITORY.glob("crates/fence-*/src/**/*.rs"), *pathlib.Path("/usr/share/fence").glob("*.py"),
               pathlib.Path("/usr/sbin/fence_xenapi")]
    # Texts of Rust go over lines with a backslash, and have their values in braces.
    text = " ".join(re.sub(r"\\\n\s*", "", it.read_text()) for it in sources).replace('\\"', '"')
    library = "'NullTranslations' object has no attribute 'ugettext'"       # Python's own, of XenAPI.py's
    missing = [it for it in said if it != library and not all(part in text for part in re.split(r"\bon\b", it.strip(" :,")))]
    assert len(said) > 12 and not missing, missing
