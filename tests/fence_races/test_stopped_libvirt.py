# SPDX-License-Identifier: GPL-2.0-or-later
"""A fence asked of a libvirt that does not answer is not carried out after its client gave up."""

import pytest
from lab.net import wait_until

from lab.rig import FAILED


@pytest.mark.parametrize("then", ["goes on", "is started anew"])
@pytest.mark.parametrize("action", ["off", "reboot"])
def test_a_client_that_gave_up(site, start_host, agents, note, action, then):
    start_host()
    victim = site.hypervisor.domain("victim")
    qemu = victim.process()
    # The connection is an old one, as in a daemon that runs for long.
    assert site.agent(agents, "-o", "status", "-H", "victim").rc == 0
    site.hypervisor.freeze()
    result = site.agent(agents, "-o", action, "-H", "victim", "-t", "3")
    if then == "goes on":
        site.hypervisor.thaw()
    else:
        site.hypervisor.restart()
    site.hypervisor.virsh("list")
    later = qemu.ended(2)
    note(f"exit code {result.rc} in {result.seconds:.1f} s; {'carried out later' if later else 'never carried out'}")
    assert result.rc == FAILED
    assert not later, "carried out after its client had been told that it failed"
    assert victim.state() == "running"
    # As soon as the daemon has tried to connect again.
    wait_until(lambda: site.agent(agents, "-o", "status", "-H", "victim", "-t", "5").rc == 0)
