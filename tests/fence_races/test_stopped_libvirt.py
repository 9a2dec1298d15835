# SPDX-License-Identifier: GPL-2.0-or-later
"""A fence asked of a libvirt that does not answer is not carried out after its client gave up."""

import pytest
from lab.hypervisor import Hypervisor, hanging_off
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


@pytest.mark.ours
def test_one_that_stands_still_inside_a_power_off(site, start_host, machines):
    """The order may come at any time from then on. What is known to come from its machine waits for that; another machine, at a hypervisor
    that is well, can be fenced."""
    victim = machines("card")[0]
    with Hypervisor(site.host.ns) as well:
        blues = [well.domain(name) for name in ("blue1", "blue2")]
        host = start_host(backend={"uri1": well.uri})
        host.wait_recognised(victim, "ours")
        with hanging_off(site.hypervisor, victim.domain, lambda: site.agent("ours", "-o", "off", "-H", victim.name, wait=False)) as off:
            assert off.finish(60).rc == FAILED
            first, second = (it.process() for it in blues)
            from_victim = site.agent("ours", "-o", "off", "-H", "blue2", "-t", "60", node=victim.node, wait=False)
            host.daemon.wait_log("heard id=.*blue2")
            result = site.agent("ours", "-o", "off", "-H", "blue1")
            assert result.rc == 0, (result, host.daemon.log[-4000:])
            assert first.ended()
            assert from_victim.process.poll() is None and not second.ended()
        # It comes in the end, and nothing that the machine had asked for does.
        (record,) = host.wait_records(1, which=lambda it: it["target"] == "blue2")
        from_victim.process.kill()
        assert from_victim.finish(60).rc != 0
        assert record["decision"] == "not run" and "was fenced" in record["reason"], record
        assert not second.ended() and victim.domain.state() == "shut off"
