# SPDX-License-Identifier: GPL-2.0-or-later
"""Groups: who may fence what, and whose names the list shows."""

import contextlib

import pytest

from compliance.support import VIRTD, differs
from lab import programs
from lab.testdriver import uuid_of

ALLOWED_OFF = "vm1"


@contextlib.contextmanager
def daemon(lab, uri, groups):
    with programs.Daemon(lab.host, lab.config(uri, groups=groups)) as d:
        yield d


def listed(lab, at):
    r = lab.xvm("-o", "list", at=at)
    assert r.rc == 0
    return sorted(line.split()[0] for line in r.out.splitlines())


def status(lab, name, at=None, *flags):
    return lab.xvm("-o", "status", *flags, "-H", name, at=at).rc


class TestByUuid:
    """A group of a source's address and two UUIDs."""

    @pytest.fixture(scope="class", autouse=True)
    def running(self, lab, uri):
        group = {"name": "cluster1", "ip": lab.guest.ip, "uuid": [uuid_of("on1"), uuid_of("off1")]}
        with daemon(lab, uri, [group]):
            yield

    def test_by_uuid(self, lab):
        assert status(lab, uuid_of("on1"), None, "-u") == 0
        assert status(lab, uuid_of("off1"), None, "-u") == 2

    @differs("reference.md, Groups: name or UUID, resolved first", about=VIRTD, reference=3, ours=0)
    def test_by_name(self, lab, expected):
        assert status(lab, "on1") == expected

    @pytest.mark.parametrize("action", ["off", "on", "reboot", "status"])
    def test_not_in_the_group(self, lab, action):
        r = lab.xvm("-o", action, "-u", "-H", uuid_of("vm2"))
        assert r.rc == 3
        assert lab.xvm("-o", action, "-H", "vm2").rc == 3

    def test_another_source(self, lab):
        assert status(lab, uuid_of("on1"), lab.other, "-u") == 3
        assert listed(lab, lab.other) == []

    def test_list_shows_the_group(self, lab):
        assert listed(lab, lab.guest) == ["off1", "on1"]

    def test_monitor_is_everybodys(self, lab):
        assert lab.xvm("-o", "monitor").rc == 0
        assert lab.xvm("-o", "monitor", at=lab.other).rc == 0

    def test_denied_is_not_done(self, lab):
        assert lab.xvm("-o", "off", "-u", "-H", uuid_of("on1"), at=lab.other).rc == 3
        assert status(lab, uuid_of("on1"), None, "-u") == 0

    def test_an_unknown_target_is_denied_or_fails(self, lab):
        assert lab.xvm("-o", "off", "-H", "nobody").rc in (1, 3)


class TestByName:
    """A group that lists names."""

    @pytest.fixture(scope="class", autouse=True)
    def running(self, lab, uri):
        with daemon(lab, uri, [{"ip": [lab.guest.ip, lab.other.ip], "uuid": ["on1", "vm1"]}]):
            yield

    def test_by_name(self, lab):
        assert status(lab, "on1") == 0
        assert status(lab, "vm1", lab.other) == 0
        assert status(lab, "vm2") == 3

    @differs("reference.md, Groups: groups that list names only: actions denied / name or UUID, resolved first",
             about=VIRTD, reference=3, ours=0)
    def test_by_uuid(self, lab, expected):
        assert status(lab, uuid_of("on1"), None, "-u") == expected

    def test_list(self, lab):
        assert listed(lab, lab.guest) == ["on1", "vm1"]

    def test_off_and_on(self, lab):
        assert lab.xvm("-o", "off", "-H", "vm1").rc == 0
        assert status(lab, "vm1") == 2
        assert lab.xvm("-o", "on", "-H", "vm1").rc == 0


def test_several_groups(lab, uri):
    groups = [{"name": "a", "ip": lab.other.ip, "uuid": [uuid_of("vm2")]},
              {"name": "b", "ip": [lab.other.ip, lab.guest.ip], "uuid": [uuid_of("vm1"), uuid_of("vm3")]}]
    with daemon(lab, uri, groups):
        assert listed(lab, lab.other) == ["vm1", "vm2", "vm3"]
        assert listed(lab, lab.guest) == ["vm1", "vm3"]
        assert status(lab, uuid_of("vm2"), lab.other, "-u") == 0
        assert status(lab, uuid_of("vm2"), lab.guest, "-u") == 3


@pytest.mark.parametrize("half", ["ip", "uuid"])
def test_half_a_group_allows_nothing(lab, uri, half):
    group = {"ip": lab.guest.ip} if half == "ip" else {"uuid": [uuid_of("on1")]}
    with daemon(lab, uri, [group]):
        assert status(lab, uuid_of("on1"), None, "-u") == 3
        assert listed(lab, lab.guest) == []


@differs("reference.md: empty group or `groups { }` = open to all / an empty group allows nobody", about=VIRTD,
         reference=0, ours=3)
@pytest.mark.parametrize("groups", [[], [{}]], ids=["no group", "an empty group"])
def test_empty_groups(lab, uri, groups, expected):
    with daemon(lab, uri, groups):
        assert status(lab, "on1") == expected


def test_the_address_of_the_source_counts_not_one_it_names(lab, uri):
    """On TCP the address is the connection's."""
    group = {"ip": lab.guest.ip, "uuid": [uuid_of("on1"), "on1"]}
    with programs.Daemon(lab.host, lab.config(uri, "tcp", groups=[group]), ready="tcp"):
        assert lab.virt("-o", "status", "-n", "on1").rc == 0
        assert lab.virt("-o", "status", "-n", "on1", at=lab.other).rc == 3
        assert lab.virt("-o", "status", "-n", "vm1").rc == 3
        assert [line.split()[0] for line in lab.virt("-o", "list").out.splitlines()] == ["on1"]
