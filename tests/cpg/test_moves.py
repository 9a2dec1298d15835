# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains that move between hosts while they are asked for."""

import os
import signal
import threading
import time

import pytest

from lab import net, testdriver
from lab.hypervisor import until

from .hosts import PATIENCE, refused
from .sites import Site, gone, serve

OURS = "ours"

#: Rounds of real migrations; more with those of the long run.
ROUNDS = 4 if int(os.environ.get("ROUNDS", "5")) < 20 else 60


@pytest.fixture
def two(hosts):
    """h1 and h2 of ours, and h3 that has nothing to do with what moves."""
    hosts.domains(h3=["c1"])
    hosts.serve(h1=OURS, h2=OURS, h3=OURS)
    return hosts


def test_a_domain_that_moves_is_never_off(two):
    """It is somewhere at every moment, and mostly at both."""
    two.h1.has("mover", transient=True)
    for asked in ("h1", "h2", "h3"):
        two.wait_status(asked, "mover", 0)
    stop, answers = threading.Event(), []

    def ask():
        while not stop.is_set():
            for asked in ("h1", "h2", "h3"):
                answers.append((asked, two.ask(asked, "status", "mover", guest=1)))

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        for n in range(20):
            here, there = (two.h1, two.h2)[::1 if n % 2 == 0 else -1]
            there.has("mover", transient=True)
            here.hypervisor.virsh("destroy", "mover")
    finally:
        stop.set()
        asker.join(120)
    assert not [it for it in answers if it[1].rc == 2], f"said to be off\n{two.logs()}"
    assert [it for it in answers if it[1].rc == 0], answers[-3:]
    # Where it rests now, it is found at once by whoever asks.
    for asked in ("h1", "h2", "h3"):
        two.wait_status(asked, "mover", 0)
    assert two.ask("h3", "off", "mover").rc == 0
    assert [two.h1.state("mover"), two.h2.state("mover")] == [None, None]


def test_a_definition_that_stays_behind_is_not_the_domain(two):
    """Persistent at both, running at one: the other's "shut off" is nothing."""
    two.h1.has("kept")
    two.h2.has("kept", start=False)
    for asked in ("h1", "h2", "h3"):
        two.wait_status(asked, "kept", 0)
    assert two.ask("h2", "off", "kept").rc == 0
    assert [two.h1.state("kept"), two.h2.state("kept")] == ["shut off", "shut off"]
    # It comes up at the other.
    two.h2.has("kept")
    for asked in ("h1", "h2", "h3"):
        two.wait_status(asked, "kept", 0)
    assert two.ask("h1", "reboot", "kept").rc == 0
    assert [two.h1.state("kept"), two.h2.state("kept")] == ["shut off", "running"]
    assert two.ask("h1", "off", "kept").rc == 0
    assert [two.h1.state("kept"), two.h2.state("kept")] == ["shut off", "shut off"]


def test_running_at_both_it_is_not_said_to_be_off(two):
    """In the middle of a migration, or after an accident: one that is left running makes "off" a lie."""
    two.h1.has("both")
    two.h2.has("both")
    for asked in ("h1", "h2", "h3"):
        two.wait_status(asked, "both", 0)
    result = two.ask("h3", "off", "both")
    running = [host.name for host in (two.h1, two.h2) if host.state("both") == "running"]
    assert refused(result) if running else result.rc == 0, (running, result)
    two.h1.has("both").destroy()
    assert two.ask("h3", "off", "both").rc == 0 and two.h2.state("both") == "shut off", two.logs()


def test_a_move_and_an_off_in_the_same_moment(two):
    """Whatever was answered: afterwards the domain is found where it runs, and what is said to be off is."""
    for n in range(10):
        here, there = (two.h1, two.h2)[::1 if n % 2 == 0 else -1]
        name = f"quick{n}"
        here.has(name, transient=True)
        two.wait_status("h3", name, 0)
        agent = two.agent("h3", "off", name)
        there.has(name, transient=True)
        here.hypervisor.virsh("destroy", name, check=False)
        assert agent.finish(60).rc in (0, 1)
        # If it was off before it began to run there, that was another life.
        if there.state(name):
            two.wait_status("h3", name, 0)
            assert two.ask("h3", "off", name).rc == 0, two.logs()
        assert (here.state(name), there.state(name)) == (None, None)


def test_an_end_counts_only_after_the_move(hosts, sites):
    """Where it moved to and ended, it is off, whoever is asked. What ended there before says nothing of a later move."""
    serve(hosts, sites)
    here, there = sites
    outside = Site(hosts, hosts.h3, None)
    try:
        domain = here.hypervisor.domain("goer")
        hosts.wait_status("h3", "goer", 0)
        assert here.migrate("goer", there).wait(PATIENCE) == 0
        hosts.wait_status("h3", "goer", 0)
        there.hypervisor.virsh("destroy", "goer")
        for asked in ("h1", "h2", "h3"):
            hosts.wait_status(asked, "goer", 2)
        assert hosts.ask("h1", "off", "goer").rc == 0, hosts.logs()
        # From h1 to a hypervisor that no daemon knows.
        here.hypervisor.domain("goer")
        hosts.wait_status("h3", "goer", 0)
        assert here.migrate("goer", outside).wait(PATIENCE) == 0
        assert domain.uuid in outside.hypervisor.processes()
        for asked in ("h1", "h2", "h3"):
            assert refused(hosts.ask(asked, "status", "goer")), f"{asked}\n{hosts.logs()}"
        assert refused(hosts.ask("h3", "off", "goer")), hosts.logs()
    finally:
        outside.close()


def left_behind(hosts, sites):
    """x went from h2 to h1, and an off ended it there: libvirt of h2 says of its definition that the machine migrated away."""
    there, here = sites
    uuid = here.hypervisor.domain("x").uuid
    hosts.wait_status("h3", "x", 0)
    migration = here.migrate("x", there, keeps=True)
    assert migration.wait(PATIENCE) == 0, migration.communicate()
    assert uuid in there.hypervisor.processes() and "migrated" in here.hypervisor.virsh("domstate", "--reason", "x").stdout
    hosts.wait_status("h3", "x", 0)
    assert hosts.ask("h3", "off", "x").rc == 0, hosts.logs()
    assert [site for site in sites if uuid in site.hypervisor.processes()] == [], hosts.logs()
    return uuid


@pytest.mark.parametrize("asked", ["h1", "h2", "h3"])
def test_a_definition_that_stayed_behind_is_started(hosts, sites, asked):
    """After a live migration and an off: the definition is at node 2, and node 1 has the memory of what ended there."""
    serve(hosts, sites)
    there, here = sites
    uuid = left_behind(hosts, sites)
    for host in ("h1", "h2", "h3"):
        result = hosts.ask(host, "on", "x", extra=("--diagnose",))
        at = "host h2" if host == "h2" else "node 2"
        assert result.rc == 0 and f"would be started at {at}" in result.out, f"{host}: {result}\n{hosts.logs()}"
    result = hosts.ask(asked, "on", "x")
    assert result.rc == 0, f"{result}\n{hosts.logs()}"
    assert uuid in here.hypervisor.processes() and uuid not in there.hypervisor.processes(), hosts.logs()
    assert hosts.ask(asked, "off", "x").rc == 0 and hosts.ask(asked, "on", "x").rc == 0, hosts.logs()
    assert uuid in here.hypervisor.processes(), hosts.logs()


@pytest.mark.parametrize("asked", ["h1", "h2", "h3"])
def test_a_reboot_of_a_machine_whose_definition_stayed_behind(hosts, sites, asked):
    """With `reboot_starts` it is started from there."""
    serve(hosts, sites, reboot_starts="yes")
    there, here = sites
    uuid = left_behind(hosts, sites)
    assert hosts.ask(asked, "reboot", "x").rc == 0, hosts.logs()
    assert uuid in here.hypervisor.processes() and uuid not in there.hypervisor.processes(), hosts.logs()


@pytest.mark.parametrize("asked", ["h1", "h2", "h3"])
def test_without_a_definition_nothing_is_started_and_a_dry_run_says_so(hosts, sites, asked):
    """Every node knows the machine's name for a while."""
    serve(hosts, sites)
    there, here = sites
    uuid = left_behind(hosts, sites)
    here.hypervisor.virsh("undefine", "x")
    time.sleep(1)
    result = hosts.ask(asked, "on", "x", extra=("--diagnose",))
    assert result.rc == 1 and "definition of the domain" in result.out, f"{result}\n{hosts.logs()}"
    assert refused(hosts.ask(asked, "on", "x")), hosts.logs()
    assert not [site for site in sites if uuid in site.hypervisor.processes()], hosts.logs()


@pytest.mark.parametrize("asked", ["h1", "h2", "h3"])
def test_a_definition_that_stayed_behind_is_not_started_if_the_machine_moved_again(hosts, sites, asked):
    """It runs at a hypervisor that no daemon knows: no node starts it, calls it off or lists it."""
    serve(hosts, sites)
    there, here = sites
    outside = Site(hosts, hosts.h3, None)
    try:
        uuid = left_behind(hosts, sites)
        here.hypervisor.virsh("start", "x")
        hosts.wait_status("h3", "x", 0)
        assert here.migrate("x", outside, keeps=True).wait(PATIENCE) == 0
        assert uuid in outside.hypervisor.processes()
        for action in ("status", "on", "off", "reboot"):
            assert refused(hosts.ask(asked, action, "x")), f"{action}\n{hosts.logs()}"
        assert hosts.ask(asked, "on", "x", extra=("--diagnose",)).rc == 1, hosts.logs()
        assert uuid not in hosts.ask(asked, "list").out, hosts.logs()
        assert [it for it in sites if uuid in it.hypervisor.processes()] == [] and uuid in outside.hypervisor.processes()
    finally:
        outside.close()


@pytest.mark.parametrize("action", ["off", "reboot"])
def test_a_dry_run_tells_what_the_owner_says(hosts, sites, action):
    """Whoever is asked: a moment after a migration the host that has it can't say, and one that passes it on knows no more."""
    serve(hosts, sites)
    here, there = sites
    domain = here.hypervisor.domain("goer")
    hosts.wait_status("h3", "goer", 0)
    for asked in ("h1", "h2", "h3"):
        result = hosts.ask(asked, action, "goer", extra=("--diagnose",))
        assert result.rc == 0 and f"{action} would be carried out" in result.out, f"{asked}: {result}\n{hosts.logs()}"
        assert asked == "h1" or "at node 1" in result.out, result
    assert here.migrate("goer", there).wait(PATIENCE) == 0
    hosts.wait_status("h3", "goer", 0)
    for asked in ("h1", "h2", "h3"):
        result = hosts.ask(asked, action, "goer", extra=("--diagnose",))
        assert result.rc == 1, f"{asked}: {result}\n{hosts.logs()}"
        assert f"{action} would be tried, and nobody can say what comes of it" in result.out, result
        assert asked == "h2" or "node 2" in result.out, result
    told = [it for it in hosts.h2.records() if it["peer"].startswith("node 3")][-1]
    assert (told["action"], told["dry_run"], told["uuid"]) == ("status", action, domain.uuid), told
    assert there.state("goer") == "running" and hosts.ask("h3", "off", "goer").rc == 0, hosts.logs()


def test_a_namesake_that_left_the_cluster(hosts, sites):
    """Two domains with one name. The definition at h2 is off, the other one runs at a hypervisor that no daemon knows."""
    serve(hosts, sites)
    here, there = sites
    outside = Site(hosts, hosts.h3, None)
    try:
        domain = here.hypervisor.domain("twin")
        hosts.wait_status("h3", "twin", 0)
        assert here.migrate("twin", outside).wait(PATIENCE) == 0
        there.hypervisor.domain("twin", uuid="0f5f1c36-6f5c-4c08-8d8f-2f6a3a3f7e11", start=False)
        until(lambda: "0f5f1c36" in there.hypervisor.virsh("list", "--all", "--uuid").stdout, PATIENCE, "it is defined")
        for asked in ("h1", "h2", "h3"):
            assert refused(hosts.ask(asked, "status", "twin")), f"{asked}\n{hosts.logs()}"
        assert refused(hosts.ask("h2", "off", "twin")), hosts.logs()
        assert domain.uuid in outside.hypervisor.processes()
    finally:
        outside.close()


def test_off_while_qemu_migrates_the_domain(hosts, sites, note):
    """A real migration: what is said to be off does not run anywhere, neither then nor when the migration has ended.

    At the target there may be a process for a moment more, which waits for the memory that will not come."""
    serve(hosts, sites)
    ends = []
    for n in range(ROUNDS):
        here, there = sites[::1 if n % 2 == 0 else -1]
        name = f"migrant{n}"
        domain = here.hypervisor.domain(name, bios=True)
        hosts.wait_status("h3", name, 0)
        # A little later in each round.
        migration = here.migrate(name, there)
        if n % 3:
            until(lambda: domain.uuid in there.hypervisor.processes(), PATIENCE, "the migration began")
        if n % 3 == 2:
            migration.wait(PATIENCE)
        result = hosts.ask("h3", "off", name)
        if result.rc == 0:
            gone(sites, domain, f"round {n}", hosts.logs)
        said = migration.communicate(timeout=PATIENCE)[0]
        if result.rc == 0:
            gone(sites, domain, f"round {n}, after the migration ({said})", hosts.logs)
        running = [site.host.name for site in sites if domain.uuid in site.hypervisor.processes()]
        ends.append((result.rc, migration.returncode, running))
        if running:
            hosts.wait_status("h3", name, 0)
            assert hosts.ask("h3", "off", name).rc == 0, f"round {n}: {hosts.logs()}"
            assert not [site for site in sites if domain.uuid in site.hypervisor.processes()]
        for site in sites:
            site.hypervisor.virsh("undefine", name, check=False)
    note(f"(off, migration, running at): {ends}")


@pytest.mark.parametrize("outage", ["frozen after the end", "killed in the start"])
def test_a_start_at_another_node_ends_the_start_of_a_reboot(hosts, sites, outage):
    """Somebody starts x there with virsh, while libvirtd of the host that reboots x is away."""
    serve(hosts, sites)
    here, there = sites
    uuid = here.hypervisor.domain("x").uuid
    there.hypervisor.domain("x", start=False)
    hosts.wait_status("h3", "x", 0)
    before = here.hypervisor.processes()[uuid]
    agent = hosts.agent("h3", "reboot", "x", timeout=40)
    if outage == "killed in the start":
        net.wait_until(lambda: agent.process.poll() is not None or here.hypervisor.processes().get(uuid, before) != before, PATIENCE, 0.0005)
        assert agent.process.poll() is None, (agent.finish(1), hosts.logs())
        here.hypervisor.kill()
    else:
        net.wait_until(lambda: here.hypervisor.processes().get(uuid) != before, PATIENCE, 0.0005)
        here.hypervisor.freeze()
    half = here.hypervisor.processes().get(uuid)
    there.hypervisor.virsh("start", "x")
    time.sleep(4)
    here.hypervisor.recover()
    result = agent.finish(60)
    assert uuid in there.hypervisor.processes(), hosts.logs()
    # If libvirtd went away a moment later, there were two before anybody could know.
    left = here.hypervisor.processes().get(uuid)
    assert left in (None, half), f"two instances: {result}\n{hosts.logs()}"


def test_off_between_the_end_of_a_migration_s_copy_and_its_start_at_the_target(hosts, sites):
    """The memory is over there, nobody runs yet, and the migration's client is held: each host alone would be wrong."""
    serve(hosts, sites)
    for n, (here, there) in enumerate((sites, sites[::-1])):
        domain = here.hypervisor.domain(f"held{n}", bios=True)
        hosts.wait_status("h3", domain.name, 0)
        # Slow, so that its client can be stopped in the middle of it.
        migration = here.migrate(domain.name, there, "--bandwidth", "4")
        until(lambda: "status: active" in here.hypervisor.virsh(
            "qemu-monitor-command", domain.name, "--hmp", "info migrate", check=False).stdout
            or migration.poll() is not None, PATIENCE, "the copy began")
        migration.send_signal(signal.SIGSTOP)
        try:
            # libvirtd gives the migration up when its client has been silent for half a minute.
            here.hypervisor.virsh("migrate-setspeed", domain.name, "1024", check=False)     # it may be over
            until(lambda: here.state(domain.name) == there.state(domain.name) == "paused" or migration.poll() is not None,
                  PATIENCE, "the copy is complete")
            result = hosts.ask("h3", "off", domain.name)
        finally:
            migration.send_signal(signal.SIGCONT)
        migration.communicate(timeout=PATIENCE)
        if result.rc == 0:
            gone(sites, domain, domain.name, hosts.logs)
        assert result.rc == 0 or refused(result), result


def test_what_came_to_a_host_that_has_not_noticed_is_not_off(two):
    """libvirt of h2 was gone for a while and is back, and the daemon there does not know yet."""
    two.h1.has("late", start=False)
    for asked in ("h1", "h2", "h3"):
        two.wait_status(asked, "late", 2)
    two.h2.hypervisor.kill()
    # The longer it is gone, the later the daemon sees that it is back.
    until(lambda: two.h2.daemon.log.count("can't connect to libvirt") > 0, PATIENCE, "h2 noticed")
    time.sleep(8)
    two.h2.hypervisor.start()
    two.h2.has("late", transient=True)
    answers = []

    def is_on():
        answers.append((two.ask("h1", "status", "late"), two.ask("h3", "status", "late")))
        return all(it.rc == 0 for it in answers[-1])

    until(is_on, PATIENCE, "h1 and h3 found it\n" + two.logs())
    assert not [it for both in answers for it in both if it.rc == 2], f"{answers}\n{two.logs()}"


@pytest.mark.parametrize("action", ["off", "reboot"])
@pytest.mark.parametrize("saved_at", ["h1", "h2", "h3"])
def test_what_a_managed_save_left_at_any_host_is_removed(hosts, saved_at, action):
    """All hosts have the definition, and it is off at each."""
    at = getattr(hosts, saved_at)
    for host in (hosts.h1, hosts.h2, hosts.h3):
        host.has("x", uuid=testdriver.uuid_of("x"), start=host is at)
    hosts.serve(h1="ours", h2="ours", h3="ours")
    hosts.wait_status("h1", "x", 0)
    at.hypervisor.virsh("managedsave", "x")
    hosts.wait_status("h1", "x", 2)
    assert hosts.ask("h1", action, "x").rc == 0, hosts.logs()
    shown = at.hypervisor.virsh("dominfo", "x").stdout.partition("Managed save:")[2].splitlines()[0]
    assert "no" in shown, hosts.logs()
