# SPDX-License-Identifier: GPL-2.0-or-later
"""Metadata: valid against the schema, and the same parameters, defaults and actions as the reference's."""

import pathlib
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

from compliance.support import AGENT, differs
from lab import programs

SCHEMA = "/usr/share/cluster/relaxng/metadata.rng"
NAMES = ["fence_xvm", "fence_virt"]


def metadata(lab, path, stdin=False):
    args, text = ([], "action=metadata\n") if stdin else (["-o", "metadata"], None)
    r = programs.run_agent(lab.guest, *args, program=path, stdin=text, timeout=9)
    assert (r.rc, r.err) == (0, "")
    return r.out


def under_test(name):
    return getattr(programs, name.upper())


@pytest.mark.parametrize("name", NAMES)
def test_schema(lab, name):
    file = lab.file(".xml")
    file.write_text(metadata(lab, under_test(name)))
    r = subprocess.run(["xmllint", "--noout", "--relaxng", SCHEMA, file], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr


@pytest.mark.parametrize("name", NAMES)
def test_on_stdin_the_same(lab, name):
    assert metadata(lab, under_test(name)) == metadata(lab, under_test(name), stdin=True)


@pytest.mark.parametrize("reference", programs.REFERENCES)
@pytest.mark.parametrize("name", NAMES)
def test_parameters_defaults_and_actions_of_the_reference(lab, name, reference):
    """The same as of both versions of the C agents."""
    paths = under_test(name), programs.program(reference, name)
    ours, theirs = (ElementTree.fromstring(metadata(lab, path)) for path in paths)
    assert ours.tag == theirs.tag and ours.get("name") == theirs.get("name") == name
    assert parameters(ours) == parameters(theirs)
    assert actions(ours) == actions(theirs)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_words(lab, name):
    for p in ElementTree.fromstring(metadata(lab, under_test(name))).iter("parameter"):
        assert (p.findtext("shortdesc") or "").strip(), p.get("name")


@differs("reference.md, Metadata: a diff shows only wording (4.12.1, 4.17.0 and ours say it in other words)", about=AGENT,
         reference="is an I/O Fencing agent which can be used with virtual machines.",
         today="is a Power Fencing agent which can be used with virtual machines.",
         ours="powers virtual machines off, on, or off and on again")
@pytest.mark.parametrize("name", NAMES)
def test_what_it_says_that_it_is(lab, name, expected):
    assert ElementTree.fromstring(metadata(lab, under_test(name))).findtext("longdesc").startswith(f"{name} {expected}")


def test_works_without_key_network_or_config(lab):
    r = subprocess.run(["unshare", "-n", programs.FENCE_XVM, "-o", "metadata"], capture_output=True, text=True)
    assert r.returncode == 0 and r.stdout.startswith("<?xml")


def test_stonith_actions(lab):
    """Pacemaker's needs: off, on, reboot, status, list, monitor, metadata, validate-all."""
    have = {a["name"] for a in actions(ElementTree.fromstring(metadata(lab, programs.FENCE_XVM)))}
    assert {"off", "on", "reboot", "status", "list", "monitor", "metadata"} <= have


def parameters(tree):
    out = {}
    for p in tree.iter("parameter"):
        content = p.find("content")
        out[p.get("name")] = {
            "unique": p.get("unique"), "required": p.get("required"), "deprecated": p.get("deprecated"),
            "obsoletes": p.get("obsoletes"), **content.attrib,
            # Ours has long options behind the letters.
            "getopt": p.find("getopt").get("mixed").split(", --")[0],
            "options": [o.get("value") for o in content.iter("option")]}
    return out


def actions(tree):
    return [dict(a.attrib) for a in tree.iter("action")]


assert pathlib.Path(SCHEMA).exists(), "package fence-agents"
