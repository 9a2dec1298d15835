# SPDX-License-Identifier: GPL-2.0-or-later
"""Whichever host is asked, the one that has the domain does it: hosts of ours alone, and mixed with C daemons."""

import os
import time

import pytest

from lab.net import wait_until

from .hosts import listed, refused

OURS, OLD = "ours", "reference"

#: Whose daemons h1, h2 and h3 run.
MIXES = {"all ours": (OURS, OURS, OURS), "lowest old": (OLD, OURS, OURS), "highest old": (OURS, OURS, OLD),
         **({"two old": (OLD, OURS, OLD)} if int(os.environ.get("ROUNDS", "5")) >= 20 else {})}

#: Of the pairs with a C daemon, those of which a reboot is asked.
REBOOTED = [("h1", "h2"), ("h2", "h3"), ("h2", "h1"), ("h3", "h1")]

OWNERS = {"h1": "a1", "h2": "b1", "h3": "c1"}


@pytest.fixture(scope="module", params=MIXES)
def mix(request, cluster):
    """Hosts with one running domain each, and one at h2 that is off; each host knows of all. Tests leave it so."""
    hosts = cluster
    hosts.recover()
    for host, domain in OWNERS.items():
        hosts.domains(**{host: [domain]})
    hosts.h2.has("stopped", start=False)
    sides = dict(zip(OWNERS, MIXES[request.param]))
    hosts.serve(**sides)
    hosts.ours = [host for host, side in sides.items() if side == OURS]
    hosts.old = [host for host, side in sides.items() if side == OLD]
    for asked in OWNERS:
        for domain in OWNERS.values():
            hosts.wait_status(asked, domain, 0)
    yield hosts
    hosts.stop_serving()


def test_every_host_does_what_is_asked_with_every_domain(mix):
    for asked in OWNERS:
        for owner, domain in OWNERS.items():
            hypervisor = getattr(mix, owner).hypervisor
            for action, code, state in (("off", 0, "shut off"), ("off", 0, "shut off"), ("status", 2, "shut off"),
                                        ("on", 0, "running"), ("status", 0, "running"), ("reboot", 0, "running")):
                if action == "reboot" and "reference" in (getattr(mix, asked).side, getattr(mix, owner).side) \
                        and (asked, owner) not in REBOOTED:
                    continue        # a C daemon takes more than a second for it
                life = hypervisor.virsh("domid", domain).stdout
                result = mix.ask(asked, action, domain)
                assert (result.rc, getattr(mix, owner).state(domain)) == (code, state), \
                    f"{action} {domain} asked of {asked}: {result}\n{mix.logs()}"
                if action == "reboot":
                    assert hypervisor.virsh("domid", domain).stdout != life, "it was started again"


def test_by_uuid(mix):
    for asked in mix.ours:
        for owner, domain in OWNERS.items():
            uuid = getattr(mix, owner).has(domain).uuid
            assert mix.ask(asked, "status", uuid, extra=("-u",)).rc == 0
            assert mix.ask(asked, "off", uuid, extra=("-u",)).rc == 0, mix.logs()
            assert getattr(mix, owner).state(domain) == "shut off"
            assert mix.ask(asked, "on", uuid, extra=("-u",)).rc == 0, mix.logs()


def test_a_domain_that_is_off_is_off_where_every_host_is_heard(mix):
    for asked in OWNERS:
        mix.wait_status(asked, "stopped", 2)


def test_the_list_is_that_of_all_hosts(mix):
    expected = {**dict.fromkeys(OWNERS.values(), "on"), "stopped": "off"}
    for asked in mix.ours:
        wait_until(lambda asked=asked: listed(mix.ask(asked, "list")) == expected, 30)


def test_a_domain_that_was_never_seen_fails(mix):
    for asked in mix.ours:
        for action in ("status", "off", "reboot", "on"):
            assert refused(result := mix.ask(asked, action, "nobody")), f"{action} asked of {asked}: {result}\n{mix.logs()}"


def test_an_old_host_hears_a_failure_of_a_domain_that_was_never_seen(mix):
    if not mix.old or mix.old[-1] == "h3":
        pytest.skip("the highest node answers, and it is old")
    for asked in mix.old:
        for action in ("status", "off", "reboot", "on"):
            assert refused(result := mix.ask(asked, action, "nobody")), f"{action} asked of {asked}: {result}\n{mix.logs()}"


def test_what_changes_is_known_without_asking(mix):
    """At our hosts; old ones look when something is asked, and so hear of it too."""
    mix.h2.has("new")
    for asked in mix.ours:
        mix.wait_status(asked, "new", 0)
    for asked in mix.old:
        mix.wait_status(asked, "new", 0)
    mix.h2.has("new", paused=True)
    for asked in OWNERS:
        assert mix.ask(asked, "status", "new").rc == 0, "what is paused holds its disks"
    mix.h2.has("new").destroy()
    for asked in OWNERS:
        mix.wait_status(asked, "new", 2)
    mix.h2.hypervisor.virsh("undefine", "new")
    time.sleep(1)
    for asked in mix.ours:
        assert mix.ask(asked, "on", "new").rc == 1


def test_an_old_host_whose_domains_others_have_too_is_asked(hosts):
    """Every host defines all, as with shared storage: what an old host has on it does not say by itself."""
    for host in hosts.all:
        host.has("shared", start=False)
    hosts.serve(h1=OURS, h2=OURS, h3=OLD)
    for asked in ("h1", "h2"):
        hosts.wait_status(asked, "shared", 2)
    hosts.h3.has("shared")
    for asked in ("h1", "h2"):
        assert hosts.ask(asked, "status", "shared").rc == 0, hosts.logs()
    hosts.h3.has("shared").destroy()
    for asked in ("h1", "h2"):
        assert hosts.ask(asked, "status", "shared").rc == 2, hosts.logs()
    hosts.h3.has("shared")
    hosts.h3.hypervisor.freeze()
    try:
        for asked in ("h1", "h2"):
            assert refused(result := hosts.ask(asked, "status", "shared")), f"{result}\n{hosts.logs()}"
    finally:
        hosts.h3.hypervisor.thaw()
    hosts.wait_status("h1", "shared", 0)
    assert hosts.ask("h2", "off", "shared").rc == 0
    assert [host.state("shared") for host in hosts.all] == ["shut off"] * 3
