# SPDX-License-Identifier: GPL-2.0-or-later
"""A start is a fresh boot: no machine goes on with the memory of before its fencing, whoever starts it."""

import os
import pathlib
import re
import subprocess
import time

import pytest
from lab.net import wait_until

from lab.rig import FAILED, OK, Asker, starts

pytestmark = pytest.mark.ours

#: Rounds of a save that races with a fence. 200 is the long run.
ROUNDS = int(os.environ.get("ROUNDS", "12"))

DISCARDED = "a saved memory was discarded"


@pytest.fixture
def victim(site):
    domain = site.hypervisor.domain("victim")
    yield domain
    site.hypervisor.virsh("managedsave-remove", domain.uuid, check=False)


@pytest.fixture
def host(start_host):
    """A host that starts a domain for a reboot even if it was off."""
    return start_host(listener="tcp", backend={"reboot_starts": 1})


def image(site):
    """The file that a managed save writes, as libvirtd sees it."""
    return site.hypervisor.path("/var/lib/libvirt/qemu/save/victim.save")


def fence(site, action):
    """An agent asks."""
    return site.agent("ours", "-T", site.host.ip, "-o", action, "-H", "victim", name="fence_virt")


def save(site, domain):
    """The domain is off, and its memory is saved."""
    site.hypervisor.virsh("managedsave", domain.uuid)
    assert domain.state() == "shut off" and image(site).exists()


def fresh(domain):
    """Whether its QEMU was started with nothing to restore."""
    words = pathlib.Path(f"/proc/{domain.pid()}/cmdline").read_bytes().split(b"\0")
    return b"-incoming" not in words


def test_the_rig_sees_a_memory_that_is_restored(site, victim):
    """What the cases below must not see."""
    save(site, victim)
    victim.start()
    assert not fresh(victim)


def test_off_removes_it(site, host, victim):
    save(site, victim)
    assert fence(site, "off").rc == OK
    assert not image(site).exists()
    assert DISCARDED in host.wait_records(1)[0]["reason"]
    victim.start()
    assert fresh(victim)
    # Without one there is nothing to say.
    assert fence(site, "off").rc == OK
    assert host.wait_records(2)[1]["reason"] is None


@pytest.mark.parametrize("action", ["on", "reboot"])
def test_a_start_of_ours_never_restores_it(site, host, victim, action):
    before = starts(site.hypervisor, victim)
    save(site, victim)
    assert fence(site, action).rc == OK
    assert starts(site.hypervisor, victim) == before + 1
    assert fresh(victim) and not image(site).exists()
    assert DISCARDED in host.wait_records(1)[0]["reason"]


@pytest.mark.parametrize("action", ["off", "reboot"])
def test_one_that_can_not_be_removed_fails_the_fence(site, host, victim, action):
    save(site, victim)
    inside = ["nsenter", "-t", str(site.hypervisor._init), "--mount", "--"]
    place = "/var/lib/libvirt/qemu/save"
    subprocess.run([*inside, "mount", "--bind", "-o", "ro", place, place], check=True)
    try:
        assert fence(site, action).rc == FAILED
    finally:
        subprocess.run([*inside, "umount", place], check=True)
    (record,) = host.wait_records(1)
    assert "its saved memory is still there" in record["reason"], record
    assert f"virsh managedsave-remove {victim.uuid}" in record["reason"], record
    assert not victim.pid()


def ends(site):
    """Why its QEMUs ended, oldest first, by libvirt's log of the domain."""
    log = pathlib.Path(f"/proc/{site.hypervisor._init}/root/var/log/libvirt/qemu/victim.log")
    return re.findall(r": shutting down, reason=(\w+)", log.read_text())


@pytest.mark.parametrize("action", ["off", "reboot"])
def test_a_fence_in_the_middle_of_a_save(site, host, victim, note, action):
    """The fence comes at each moment of the save, also at its very end."""
    begin = time.monotonic()
    save(site, victim)
    length = time.monotonic() - begin
    wrong, saved, late = [], 0, 0
    for number in range(ROUNDS):
        site.hypervisor.virsh("managedsave-remove", victim.uuid, check=False)
        victim.start()
        wait_until(lambda: victim.state() == "running")
        old, earlier = victim.process(), len(ends(site))
        asker = Asker(host, action, "victim").wait_asked()
        saver = subprocess.Popen(["virsh", "-q", "-c", site.hypervisor.uri, "managedsave", victim.uuid],
                                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Spread over the save and a little more: only the moment is drawn, nothing is awaited by the clock.
        time.sleep(length * number / ROUNDS)
        answer = asker.prove().answer()
        saved += saver.wait(60) == 0
        if answer != b"\0":
            wrong.append((number, answer, host.records()[-1]))
            continue
        left = image(site).exists()
        if action == "off":
            wrong += [(number, "runs")] * bool(victim.pid())
            victim.start()
        if action == "reboot" and left and saver.returncode == 0 and ends(site)[earlier:] == ["destroyed", "saved"]:
            # On a busy machine virsh is heard after the start, or libvirt begins the save then: it is one of the new machine.
            assert old.ended() and not victim.pid()
            late += 1
            continue
        runs = bool(victim.pid())
        if not old.ended() or left or not runs or not fresh(victim):
            wrong.append((number, old.ended(), left, runs, ends(site)[earlier:], host.records()[-1]))
    note(f"{ROUNDS} rounds over {length:.2f} s: {saved} saves went through, {late} after the fence, {len(wrong)} wrong")
    assert not wrong, wrong[:3]
