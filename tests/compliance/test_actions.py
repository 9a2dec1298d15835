# SPDX-License-Identifier: GPL-2.0-or-later
"""Agent and daemon together: every action, over multicast and TCP, by name and by UUID."""

import re

import pytest

from compliance.support import VIRTD, differs, told
from lab.testdriver import uuid_of

pytestmark = pytest.mark.usefixtures("multicast")


def status(lab, name):
    return lab.xvm("-o", "status", "-H", name).rc


@pytest.mark.parametrize("name,rc,out", [("on1", 0, "Status: ON\n"), ("off1", 2, "Status: OFF\n"),
                                         ("paused1", 0, "Status: ON\n")])
@pytest.mark.parametrize("by", ["name", "uuid", "uuid without -u", "UUID"])
def test_status(lab, name, rc, out, by):
    target = {"name": [name], "uuid": ["-u", uuid_of(name)], "uuid without -u": [uuid_of(name)],
              "UUID": ["-u", uuid_of(name).upper()]}[by]
    *flags, target = target
    r = lab.xvm("-o", "status", *flags, "-H", target)
    assert (r.rc, r.out, r.err) == (rc, out, "")


@pytest.mark.parametrize("action,start,end", [
    ("off", "vm1", 2), ("off", "off2", 2), ("on", "off3", 0), ("on", "on1", 0), ("reboot", "vm2", 0),
    ("off", "paused2", 2)])
def test_action_by_name(lab, action, start, end):
    r = lab.xvm("-o", action, "-H", start)
    assert (r.rc, r.out, r.err) == (0, "", "")
    assert status(lab, start) == end


@pytest.mark.parametrize("action,name,end", [("off", "vm3", 2), ("reboot", "vm4", 0), ("on", "vm3", 0)])
def test_action_by_uuid(lab, action, name, end):
    r = lab.xvm("-o", action, "-u", "-H", uuid_of(name))
    assert (r.rc, r.out, r.err) == (0, "", "")
    assert status(lab, name) == end


def test_reboot_is_the_default_action(lab):
    r = lab.xvm("-H", "vm5")
    assert (r.rc, r.out) == (0, "")
    assert status(lab, "vm5") == 0


def test_reboot_of_a_stopped_domain_leaves_it_off(lab):
    """Kept (reference.md): reboot of a VM that is off leaves it off and says success."""
    assert lab.xvm("-o", "reboot", "-H", "off1").rc == 0
    assert status(lab, "off1") == 2


def test_off_twice_then_on_twice(lab):
    for action, end in (("off", 2), ("off", 2), ("on", 0), ("on", 0)):
        assert lab.xvm("-o", action, "-H", "vm6").rc == 0
        assert status(lab, "vm6") == end


def test_list(lab, domains):
    r = lab.xvm("-o", "list")
    assert (r.rc, r.err) == (0, "")
    lines = r.out.splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(d.name for d in domains)
    for line in lines:
        name, uuid, state = line.split()
        assert line == f"{name:<32} {uuid} {state}" and uuid == uuid_of(name) and state in ("on", "off")
    states = {line.split()[0]: line.split()[2] for line in lines}
    assert (states["on1"], states["off1"]) == ("on", "off")


@differs("reference.md: paused VMs: list says off, status says on / one truth: anything not shut off is on",
         about=VIRTD, reference="off", ours="on")
def test_list_of_a_paused_domain(lab, expected):
    assert re.search(rf"^paused1 +\S+ {expected}$", lab.xvm("-o", "list").out, re.M)


def test_list_status_is_list(lab):
    assert lab.xvm("-o", "list-status").out == lab.xvm("-o", "list").out


@pytest.mark.parametrize("case", ["LIST", "List"])
def test_actions_compare_without_case(lab, case):
    assert lab.xvm("-o", case).rc == 0


def test_monitor(lab):
    r = lab.xvm("-o", "monitor")
    assert (r.rc, r.out, r.err) == (0, "", "")


def test_null_is_a_failure(lab):
    r = lab.xvm("-o", "null", "-H", "on1")
    assert r.rc == 1 and told(r)


@differs("reference.md: status of an unknown VM says OFF / failure, with the reason", about=VIRTD, reference=2, ours=1)
@pytest.mark.parametrize("target", [["-H", "nobody"], ["-u", "-H", uuid_of("nobody")]])
def test_status_of_an_unknown_domain(lab, target, expected):
    assert lab.xvm("-o", "status", *target).rc == expected


@pytest.mark.parametrize("action", ["off", "on", "reboot"])
def test_unknown_domain(lab, action):
    r = lab.xvm("-o", action, "-H", "nobody")
    assert r.rc == 1 and told(r)


def test_a_name_is_not_a_prefix_of_another(lab):
    assert lab.xvm("-o", "off", "-H", "vm").rc == 1
    assert lab.xvm("-o", "off", "-H", "vm777").rc == 1


class TestTcp:
    """The same over TCP, where the agent is fence_virt."""

    pytestmark = pytest.mark.usefixtures("tcp")

    @pytest.mark.parametrize("args,rc,out", [
        (["-o", "status", "-n", "on1"], 0, "Status: ON\n"), (["-o", "status", "-n", "off1"], 2, "Status: OFF\n"),
        (["-o", "off", "-n", "vm1"], 0, ""), (["-o", "status", "-n", "vm1"], 2, "Status: OFF\n"),
        (["-o", "on", "-n", "vm1"], 0, ""), (["-o", "reboot", "-n", "vm1"], 0, ""),
        (["-o", "status", "-n", uuid_of("on1")], 0, "Status: ON\n"), (["-o", "monitor"], 0, "")])
    def test_action(self, lab, args, rc, out):
        r = lab.virt(*args)
        assert (r.rc, r.out, r.err) == (rc, out, "")

    def test_list(self, lab, domains):
        r = lab.virt("-o", "list")
        assert r.rc == 0 and len(r.out.splitlines()) == len(domains)

    @differs("reference.md: status of an unknown VM says OFF", about=VIRTD, reference=2, ours=1)
    def test_unknown(self, lab, expected):
        assert lab.virt("-o", "status", "-n", "nobody").rc == expected
        assert lab.virt("-o", "off", "-n", "nobody").rc == 1
