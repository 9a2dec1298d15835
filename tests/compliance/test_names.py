# SPDX-License-Identifier: GPL-2.0-or-later
"""Which domain a target means where it could be two."""

import pytest

from compliance.support import VIRTD, only
from lab import programs, testdriver
from lab.testdriver import RUNNING, SHUTOFF, Domain, uuid_of


@only("ours", VIRTD, "reference.md: a domain whose name looks like a UUID cannot be reached")
@pytest.mark.parametrize("states", [(RUNNING, RUNNING), (RUNNING, SHUTOFF), (SHUTOFF, RUNNING)])
@pytest.mark.parametrize("hypervisors", [1, 2])
def test_the_uuid_of_one_that_is_the_name_of_another(lab, states, hypervisors):
    """It means neither, at one hypervisor or at two, whichever is on. A client that says "UUID" means the first."""
    uuid = uuid_of("first")
    first, second = Domain("first", state=states[0]), Domain(uuid, state=states[1])
    parts = [[first, second]] if hypervisors == 1 else [[first], [second]]
    uris = [testdriver.write(lab.file(".xml"), part) for part in parts]
    rc = {RUNNING: 0, SHUTOFF: 2}

    def status(*target):
        return lab.xvm("-o", "status", *target).rc

    with programs.Daemon(lab.host, lab.config(uris[0], backend_options={"uri1": uris[1:]})) as daemon:
        for action in ("status", "off", "reboot", "on"):
            assert lab.xvm("-o", action, "-H", uuid).rc == 1, action
        daemon.wait_log("ambiguous")
        assert (status("-H", "first"), status("-u", "-H", uuid_of(uuid))) == (rc[states[0]], rc[states[1]])
        assert lab.xvm("-o", "off", "-u", "-H", uuid).rc == 0
        assert (status("-H", "first"), status("-u", "-H", uuid_of(uuid))) == (2, rc[states[1]])


def test_a_name_that_is_called_a_uuid(lab):
    """Devices have use_uuid=1 beside names. The C daemon ignores the flag."""
    uri = testdriver.write(lab.file(".xml"), [Domain("first"), Domain("second", state=SHUTOFF)])
    audit = lab.file(".audit")
    ours = programs.side_of(programs.FENCE_VIRTD) == "ours"
    with programs.Daemon(lab.host, lab.config(uri, daemon_options={"audit_log": audit} if ours else None)):
        assert lab.xvm("-o", "status", "-u", "-H", "first").rc == 0
        assert lab.stdin("action=off\nuse_uuid=1\nport=first\n").rc == 0
        assert lab.xvm("-o", "status", "-u", "-H", "first").rc == 2
        assert lab.xvm("-o", "status", "-H", "second").rc == 2
    assert [it.get("target_as") for it in programs.audit_records(audit)] == ["name"] * 3 * ours + [None] * ours
