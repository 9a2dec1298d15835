# SPDX-License-Identifier: GPL-2.0-or-later
"""Live migrations: two hosts have the domain, and each alone would be wrong."""

import os
import signal
import struct

import pytest

from lab import net, process, programs
from lab.hypervisor import crashing_disk, until
from lab.programs import program

from .hosts import FAILED, OFF, OK, PATIENCE, ROUNDS, Tally
from .relay import CONFIRM, FINISH, Relay


def settle(hosts, migration):
    """The migration has ended, and so has every QEMU that waited for it."""
    said = migration.communicate(timeout=PATIENCE)[0]

    def waiting():
        return [it for it in hosts.all for pid, comes in it.processes("x").items() if comes and it.state("x") != "running"]

    until(lambda: not waiting(), PATIENCE, f"what came in runs or is gone: {said}")
    return said


def slow(here, there, *extra):
    """A migration whose copy takes a while, when it has begun; None when it was over before it was seen."""
    migration = here.migrate("x", there, "--bandwidth", "1", *extra)
    until(lambda: here.copies("x") or migration.poll() is not None, PATIENCE, "the copy began")
    if migration.poll() is not None:
        migration.communicate()
        return None
    return migration


@pytest.fixture
def pair(hosts):
    """h1 and h2 with our daemons, which know of each other; x is for the case to make."""
    hosts.serve("h1", "h2")
    return hosts


def test_a_dry_run_a_moment_after_a_migration(pair):
    """The host that has it can't say what an off would do, and the other one calls back 2 s later: it is no host of the C programs."""
    pair.h1.has("x")
    migration = pair.h1.migrate("x", pair.h2)
    settle(pair, migration)
    until(lambda: pair.where("x") == ["h2"] and pair.ask("status", "x").rc == OK, PATIENCE, f"x runs at h2\n{pair.logs()}")
    for action in ("off", "reboot"):
        asked = pair.guest.run([program("ours", "fence_xvm"), "--diagnose", "-o", action, "-n", "x", "-k", pair.key, "-t", "20"])
        said = asked.stdout
        assert asked.returncode == 1 and f"{action} would be tried, and nobody can say what comes of it" in said, said
        assert "C programs" not in said and said.count("cause: ") == 1, said
    assert pair.where("x") == ["h2"] and pair.ask("off", "x").rc == OK, pair.logs()


def left_behind(pair, defined_too=False):
    """x went from h1 to h2, and an off ended it there: libvirt of h1 says of its definition that the machine migrated away."""
    here, there = pair.h1, pair.h2
    here.has("x")
    settle(pair, here.migrate("x", there, *(["--persistent"] if defined_too else [])))
    assert pair.where("x") == ["h2"] and here.reason("x") == "shut off (migrated)", pair.logs()
    assert pair.ask("off", "x").rc == OK and pair.where("x") == [], pair.logs()
    assert pair.ask("status", "x").rc == OFF and here.reason("x") == "shut off (migrated)", pair.logs()


def dry_run(pair, action):
    """What `--diagnose` says of an action on x, with its exit code."""
    asked = pair.guest.run([program("ours", "fence_xvm"), "--diagnose", "-o", action, "-n", "x", "-k", pair.key, "-t", "20"])
    return asked.returncode, asked.stdout


@pytest.mark.parametrize("first", ["h1", "h2", "both"])
@pytest.mark.parametrize("defined", ["h1", "both"])
def test_a_definition_that_stayed_behind_is_started(pair, defined, first):
    """After a live migration and an off: the only definition is where the machine came from. Whoever calls back first."""
    left_behind(pair, defined == "both")
    if first != "both":
        (pair.h2 if first == "h1" else pair.h1).does_not_call_back()
    starts = first != "h2" or defined == "both"
    code, said = dry_run(pair, "on")
    assert (code == 0) == starts and ("would be started at host h" in said) == starts, said
    result = pair.ask("on", "x")
    assert result.rc == (OK if starts else FAILED), f"{result.result}\n{pair.logs()}"
    runs = pair.where("x")
    assert len(runs) == starts and (defined == "both" or runs in (["h1"], [])), runs
    if starts and defined == first == "h1":
        assert f"would be started at host {runs[0]}" in said, said
    if not starts:
        assert "has no definition of the domain" in said and "has no definition of the domain" in str(pair.h2.records()[-1]), said
        return
    # Once more, from where it is.
    pair.h1.unfilter(), pair.h2.unfilter()
    assert pair.ask("off", "x").rc == OK and pair.where("x") == [], pair.logs()
    assert pair.ask("on", "x").rc == OK and len(pair.where("x")) == 1, pair.logs()


@pytest.mark.parametrize("starts", ["yes", "no"])
def test_a_reboot_of_a_machine_whose_definition_stayed_behind(hosts, starts):
    """With `reboot_starts` it is started from there, and else it stays off: a dry run says so before."""
    hosts.serve("h1", "h2", backend={"reboot_starts": starts})
    left_behind(hosts)
    hosts.h2.does_not_call_back()
    code, said = dry_run(hosts, "reboot")
    assert code == 0 and ("would be started at host h1" in said) == (starts == "yes"), said
    assert hosts.ask("reboot", "x").rc == OK, hosts.logs()
    assert hosts.where("x") == (["h1"] if starts == "yes" else []), hosts.logs()


def test_a_reboot_where_only_the_memory_of_a_machine_is_starts_nothing(hosts):
    """The dry run of a host without a definition does not promise a start."""
    hosts.serve("h1", "h2", backend={"reboot_starts": "yes"})
    left_behind(hosts)
    hosts.h1.does_not_call_back()
    code, said = dry_run(hosts, "reboot")
    assert code == 0 and "would stay off" in said, said


@pytest.mark.parametrize("how", ["removed", "moved again", "moved again, while h2 has the definition too"])
def test_a_definition_that_stayed_behind_is_not_started_if(pair, how):
    """What libvirt says of the first move is old. Nothing is started beside a machine that went to a host which nobody asks."""
    left_behind(pair, how.endswith("too"))
    if how == "removed":
        pair.h1.hypervisor.virsh("undefine", "x")
    else:
        pair.h1.hypervisor.virsh("start", "x")
        settle(pair, pair.h1.migrate("x", pair.h3))
        assert pair.where("x") == ["h3"] and pair.h1.reason("x") == "shut off (migrated)"
    left = pair.where("x")
    code, said = dry_run(pair, "on")
    assert code == 1, said
    result = pair.ask("on", "x")
    assert result.rc == FAILED and pair.where("x") == left, f"{result.result}\n{pair.logs()}"


def test_a_machine_that_came_and_moved_again_before_the_order(hosts, monkeypatch):
    """h1 has seen x off everywhere and is about to start it. The definition says the same after the move of another instance. The
    fault points are in debug builds alone (see fence_races/test_ends.py)."""
    with monkeypatch.context() as patch:
        patch.setattr(programs, "OURS_DIR", programs.DEBUG_DIR)
        hosts.h1.serve(backend={"reboot_starts": "yes"})
        hosts.h2.serve()
        hosts.acquaint(hosts.h1, hosts.h2)
        left_behind(hosts)
        hosts.h2.does_not_call_back()
        patch.setenv("FENCE_VIRTD_STOP_AT", "seen_off")
        hosts.h1.serve_again()
    agent = hosts.agent("reboot", "x")
    until(lambda: process.is_frozen(hosts.h1.daemon.pid), PATIENCE, f"x was seen off\n{hosts.logs()}")
    hosts.h1.hypervisor.virsh("start", "x")
    settle(hosts, hosts.h1.migrate("x", hosts.h3))
    assert hosts.where("x") == ["h3"]
    process.thaw(hosts.h1.daemon.pid)
    agent.finish(PATIENCE)
    until(hosts.h1.records, PATIENCE, f"the reboot has ended\n{hosts.logs()}")
    assert hosts.where("x") == ["h3"], hosts.logs()


def test_a_reboot_whose_start_fails_is_a_warning(pair):
    """The answer is a success, since the node is fenced. So the log has the domain, libvirt's reason and the step."""
    uuid, host = pair.h1.has("x").uuid, pair.h1
    # It is on from what it was; the definition of now can't be started.
    shown = host.hypervisor.virsh("dumpxml", "--inactive", "x").stdout
    broken = host.directory / "broken.xml"
    broken.write_text(shown.replace("</os>", "<kernel>/nowhere/kernel</kernel></os>"))
    host.hypervisor.virsh("define", broken)
    try:
        assert pair.ask("reboot", "x").rc == OK and pair.where("x") == [], pair.logs()
        warned = [it for it in host.daemon.log.splitlines() if "and the start failed: " in it]
        assert len(warned) == 1 and "WARN" in warned[0], host.daemon.log[-3000:]
        for words in (uuid, "/nowhere/kernel", "fence_xvm -o on -n x", "virsh start x"):
            assert words in warned[0], (words, warned)
    finally:
        host.hypervisor.virsh("destroy", "x", check=False)
        host.hypervisor.virsh("undefine", "x")


def test_off_at_the_target_of_a_migration(pair, note):
    """The target calls back first. What it has is an instance that waits for memory: to end that one ends the migration, and
    the domain runs on where it was."""
    tally = Tally(note)
    here, there = pair.h1, pair.h2
    here.does_not_call_back()
    ends = []
    for _ in range(ROUNDS):
        here.has("x", bios=True)
        migration = slow(here, there)
        answer = pair.ask("off", "x")
        said = settle(pair, migration) if migration else "over at once"
        tally.add(answer, answer.lie_afterwards(), said.strip())
        ends.append((answer.rc, pair.where("x")))
        for host in (here, there):
            host.hypervisor.virsh("destroy", "x", check=False)
    note(f"(off, runs at): {ends}")
    tally.none(pair.logs())


@pytest.mark.parametrize("end", ["held", "cut"])
@pytest.mark.parametrize("first", ["h1", "h2"])
def test_a_migration_that_is_not_confirmed(pair, note, end, first):
    """It runs at the target, and the source has it paused: nobody told it how the migration ended."""
    tally = Tally(note)
    here, there = pair.h1, pair.h2
    (there if first == "h1" else here).does_not_call_back()
    good = 0
    for n in range(max(ROUNDS // 2, 2)):
        here.has("x")
        with Relay(here.hypervisor, here.directory / "relay", CONFIRM) as relay:
            migration = here.migrate("x", there, source=relay)
            assert relay.wait_held(migration), migration.communicate()[0]
            assert (here.state("x"), there.state("x")) == ("paused", "running")
            if end == "cut":
                relay.cut()
                migration.communicate(timeout=PATIENCE)
                # The source's libvirtd has seen it when nobody holds the domain any more.
                until(lambda: "None" in here.hypervisor.virsh("domjobinfo", "x").stdout, PATIENCE, "no job is left")
            answer = pair.ask(("off", "status")[n % 2], "x")
            relay.let_go()
            settle(pair, migration)
        tally.add(answer, answer.lie_afterwards())
        good += answer.says_off() or answer.says_on()
        if answer.action == "off":
            # Half of it was ended. The other half is ended when it is asked for again, and all is known then.
            here.unfilter()
            there.unfilter()
            until(lambda: pair.ask("off", "x").rc == OK, PATIENCE, f"x goes off\n{pair.logs()}")
            assert pair.where("x") == []
            (there if first == "h1" else here).does_not_call_back()
        for host in (here, there):
            host.hypervisor.virsh("destroy", "x", check=False)
    tally.none(pair.logs())
    note(f"{good} answers that help")


@pytest.mark.parametrize("action, others", [("off", "none"), ("reboot", "none"), ("off", "h3")])
def test_a_migration_that_is_not_confirmed_to_a_host_that_nobody_knows(hosts, action, others):
    """A machine that stands still here for a migration: it runs at the target, which nobody asks. This host is alone by its
    configuration, or knows another one, which has nothing to do with it."""
    here, there = hosts.h1, hosts.h2
    if others == "none":
        hosts.serve("h1", virtd={"peers": "none"})
    else:
        hosts.serve("h1", "h3")
        hosts.h3.does_not_call_back()
    for _ in range(max(ROUNDS // 4, 1)):
        here.has("x")
        with Relay(here.hypervisor, here.directory / "relay", CONFIRM) as relay:
            migration = here.migrate("x", there, source=relay)
            assert relay.wait_held(migration), migration.communicate()[0]
            assert (here.state("x"), there.state("x")) == ("paused", "running")
            # What is ended here says nothing of the target; nor later on.
            assert [hosts.ask(action, "x").rc for _ in range(2)] == [FAILED, FAILED], hosts.logs()
            relay.let_go()
            settle(hosts, migration)
        assert hosts.where("x") == ["h2"], hosts.logs()
        for host in (here, there):
            host.hypervisor.virsh("destroy", "x", check=False)
    # Once it was seen to run here again, it is fenced as always.
    here.has("x")
    assert hosts.ask("off", "x").rc == OK, hosts.logs()
    assert hosts.ask("off", "x").rc == OK, hosts.logs()


def test_what_comes_in_from_a_host_that_nobody_knows(pair, note):
    """The end of what waits for its memory is not that of the machine, which runs on at a host that nobody asks."""
    tally = Tally(note)
    pair.h1.does_not_call_back()
    nowhere, there = pair.h3, pair.h2
    for _ in range(max(ROUNDS // 2, 1)):
        nowhere.has("x", bios=True)
        migration = slow(nowhere, there)
        answer = pair.ask("off", "x")
        said = settle(pair, migration) if migration else "over at once"
        tally.add(answer, answer.lie_afterwards(), said.strip())
        for host in (nowhere, there):
            host.hypervisor.virsh("destroy", "x", check=False)
    tally.none(pair.logs())


def test_what_came_in_a_moment_ago_is_not_ended_in_vain(pair):
    """While the host that it came from can't be asked, its end would prove nothing, then or later."""
    here, there = pair.h1, pair.h2
    here.has("x")
    settle(pair, here.migrate("x", there))
    here.stop_serving()
    answer = pair.ask("off", "x")
    assert answer.rc == FAILED and pair.where("x") == ["h2"], pair.logs()
    assert "Ask again in" in str(there.records()[-1]), there.records()[-1]
    here.serve_again()
    assert pair.ask("off", "x").rc == OK and pair.where("x") == [], pair.logs()


#: Who calls back first, what is done to the machine at the target, and how many rounds there are of it.
UNHEARD = {"h1": ("h1", "", ROUNDS // 2), "h2": ("h2", "", ROUNDS // 2), "suspend": ("h2", "suspend", ROUNDS // 4),
           "suspend+resume": ("h2", "suspend resume", ROUNDS // 4)}


@pytest.mark.parametrize("case", UNHEARD)
def test_a_migration_whose_end_is_not_heard(pair, note, case):
    """The target says that it has it, and the client never hears that: it tells the source to let it run on. What was ended at
    the target meanwhile is not the machine. Pausing the machine there changes the reason of its state, and not where it may run
    on."""
    first, touched, rounds = UNHEARD[case]
    tally = Tally(note)
    here, there = pair.h1, pair.h2
    (there if first == "h1" else here).does_not_call_back()
    for _ in range(max(rounds, 1)):
        here.has("x")
        with Relay(here.hypervisor, here.directory / "relay", held=CONFIRM) as relay, \
                Relay(there.hypervisor, there.directory / "relay", loses=FINISH) as deaf:
            migration = here.migrate("x", there, source=relay, target=deaf)
            assert relay.wait_held(migration), migration.communicate()[0]
            until(lambda: there.state("x") == "running", PATIENCE, "x runs at the target")
            for word in touched.split():
                there.hypervisor.virsh(word, "x")
            answer = pair.ask("off", "x")
            relay.let_go()
            said = settle(pair, migration)
        tally.add(answer, answer.lie_afterwards(), f"{here.state('x')} {there.state('x')} {said.strip()}")
        for host in (here, there):
            host.hypervisor.virsh("destroy", "x", check=False)
    tally.none(pair.logs())


def test_what_a_paused_machine_left_at_its_source(pair, note):
    """A machine that was paused when it migrated looks at its source as if it had never left, if nobody told the source how the
    migration ended."""
    tally = Tally(note)
    here, there = pair.h1, pair.h2
    for _ in range(max(ROUNDS // 4, 1)):
        here.has("x", paused=True)
        with Relay(here.hypervisor, here.directory / "relay", CONFIRM) as relay:
            migration = here.migrate("x", there, source=relay)
            assert relay.wait_held(migration), migration.communicate()[0]
            relay.cut()
            said = migration.communicate(timeout=PATIENCE)[0]
        there.hypervisor.virsh("resume", "x")
        there.does_not_call_back()
        answer = pair.ask("off", "x")
        tally.add(answer, answer.lie(), f"{here.state('x')} {there.state('x')} {said.strip()}")
        for host in (here, there):
            host.hypervisor.virsh("destroy", "x", check=False)
    tally.none(pair.logs())


@pytest.mark.parametrize("silent", [False, True])
def test_what_a_crashed_machine_left_at_its_source(pair, note, silent):
    """A guest that crashed, whose machine is kept: libvirt calls it crashed at the source of a migration, too."""
    tally = Tally(note)
    here, there = pair.h1, pair.h2
    disk = crashing_disk(pair.directory / "crashes.img")
    for _ in range(max(ROUNDS // 4, 1)):
        here.has("x", crashes=disk)
        until(lambda: here.reason("x") == "crashed (panicked)", PATIENCE, "the guest crashed")
        with Relay(here.hypervisor, here.directory / "relay", CONFIRM) as relay:
            migration = here.migrate("x", there, source=relay)
            assert relay.wait_held(migration), migration.communicate()[0]
            relay.cut()
            migration.communicate(timeout=PATIENCE)
        until(lambda: "None" in here.hypervisor.virsh("domjobinfo", "x").stdout, PATIENCE, "no job is left")
        assert here.reason("x") == "crashed (panicked)" and pair.where("x") == ["h1", "h2"]
        (there.stop_serving if silent else there.does_not_call_back)()
        answer = pair.ask("off", "x")
        tally.add(answer, answer.lie_afterwards(), f"{pair.where('x')} {here.records()[-1]['reason']}")
        (there.serve_again if silent else there.unfilter)()
        for host in (here, there):
            host.hypervisor.virsh("destroy", "x", check=False)
    tally.none(pair.logs())


def test_a_crashed_machine_that_never_left_is_fenced_beside_a_silent_host(pair):
    """What was started here and not copied since is the machine, though it stands still."""
    here, there = pair.h1, pair.h2
    here.has("x", crashes=crashing_disk(pair.directory / "crashes.img"))
    until(lambda: here.reason("x") == "crashed (panicked)", PATIENCE, "the guest crashed")
    assert pair.ask("status", "x").says_on()
    there.stop_serving()
    answer = pair.ask("off", "x")
    assert answer.rc == OK and pair.where("x") == [], pair.logs()


def test_an_end_counts_only_after_the_move(pair, note):
    """What ended at a host once may have moved since, from another one, to a host that nobody asks."""
    tally = Tally(note)
    here, there, nowhere = pair.h1, pair.h2, pair.h3
    here.has("x")
    settle(pair, here.migrate("x", there))
    there.hypervisor.virsh("destroy", "x")
    for mute in (here, there):
        # One alone answers: each of them knows it.
        mute.does_not_call_back()
        until(lambda: pair.ask("status", "x").rc == OFF, PATIENCE, f"off: it ended after it moved\n{pair.logs()}")
        assert pair.ask("off", "x").rc == OK, pair.logs()
        mute.unfilter()
    here.has("x")
    settle(pair, here.migrate("x", nowhere))
    assert pair.where("x") == ["h3"]
    for again in (False, True):
        if again:
            # A libvirtd that is started anew has forgotten what moved.
            here.hypervisor.restart()
            until(lambda: here.daemon.log.count("connected to libvirt") == 2, PATIENCE, here.daemon.log)
        answer = pair.ask("off" if again else "status", "x")
        tally.add(answer)
        assert answer.rc == FAILED, pair.logs()
    tally.none(pair.logs())
    nowhere.hypervisor.virsh("destroy", "x")
    here.has("x")
    assert pair.ask("off", "x").rc == OK and pair.where("x") == [], pair.logs()
    assert pair.ask("status", "x").rc == OFF


def kill(host, name):
    """The machine's QEMU is killed, as by want of memory."""
    for pid in host.processes(name):
        os.kill(pid, signal.SIGKILL)
    until(lambda: host.state(name) != "running", PATIENCE, "libvirt has seen that")


#: What becomes of the machine at the target, and whether it was paused when it came.
LATER_ENDS = {"killed": (kill, False), "saved": (lambda host, name: host.hypervisor.virsh("managedsave", name), False),
              "paused": (lambda *_: None, True)}


@pytest.mark.parametrize("case", LATER_ENDS)
def test_what_came_in_ends_where_it_is(pair, case):
    """All hosts are well: an end where the machine came to is one, whatever ended it."""
    end, paused = LATER_ENDS[case]
    here, there = pair.h1, pair.h2
    here.has("x", paused=paused)
    said = here.migrate("x", there, "--persistent").communicate(timeout=PATIENCE)[0]
    assert pair.where("x") == ["h2"], said
    end(there, "x")
    here.does_not_call_back()
    assert [pair.ask(it, "x").rc for it in ("off", "status")] == [OK, OFF], pair.logs()
    assert pair.where("x") == [] and pair.ask("on", "x").rc == OK, pair.logs()


#: Boot sector of a machine that writes into each page from 1 MiB to 15 MiB, once, and halts: QEMU has to send those pages.
FILLS_MEMORY = bytes.fromhex("fa31c08ed80f0116507c0f20c06683c8010f22c0ea197c080066b810008ed8bf00001000893f81c70010000081ff0000f00072f0f4ebfd") + bytes(9) \
    + struct.pack("<QQ", 0x00CF9A000000FFFF, 0x00CF92000000FFFF) + struct.pack("<HI", 0x17, 0x7C38)
LAST_PAGE = "0x00eff000"


@pytest.mark.parametrize("first", ["off", "killed"])
def test_post_copy_whose_source_ends_first(pair, note, first, tmp_path):
    """The target is the machine as soon as it runs, with a part of its memory alone, and the source can't go on: what ends at the
    target is the machine, though nothing is left of the other half."""
    tally = Tally(note)
    here, there = pair.h1, pair.h2
    image = tmp_path / "image"
    image.write_bytes(FILLS_MEMORY.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    here.has("x", disk=image)
    page = ("qemu-monitor-command", "x", "--hmp", f"xp /1wx {LAST_PAGE}")
    until(lambda: here.hypervisor.virsh(*page).stdout.count(LAST_PAGE[2:]) == 2, PATIENCE, "its memory is full")
    migration = slow(here, there, "--persistent", "--postcopy", "--postcopy-bandwidth", "1")
    assert migration, "it was over at once"
    here.hypervisor.virsh("migrate-postcopy", "x")
    until(lambda: there.reason("x") == "running (post-copy)", PATIENCE, "the target runs")
    if first == "off":
        there.does_not_call_back()
        answer = pair.ask("off", "x")
        tally.add(answer, answer.lie_afterwards())
        assert answer.rc == FAILED, pair.logs()
        there.unfilter()
    else:
        kill(here, "x")
    assert pair.where("x") == ["h2"], migration.communicate(timeout=PATIENCE)[0]
    here.does_not_call_back()
    answer = pair.ask("off", "x")
    tally.add(answer, answer.lie_afterwards())
    assert answer.rc == OK and pair.where("x") == [], pair.logs()
    migration.communicate(timeout=PATIENCE)
    assert pair.ask("status", "x").rc == OFF, pair.logs()
    here.unfilter()
    there.does_not_call_back()
    assert pair.ask("status", "x").rc == OFF, pair.logs()
    tally.none(pair.logs())


@pytest.mark.parametrize("case", ["off", "killed", "daemon anew", "libvirtd anew"])
def test_what_was_restored_paused_and_moved(pair, note, case):
    """At its source it looks the same as before: libvirt calls both "paused (migrating)", and no event tells that the machine was
    handed over. It may run where nobody asks."""
    tally = Tally(note)
    here, nowhere = pair.h1, pair.h3
    pair.h2.does_not_call_back()
    here.has("x", paused=True)
    here.hypervisor.virsh("managedsave", "x")
    here.hypervisor.virsh("start", "x")
    before = here.reason("x")
    with Relay(here.hypervisor, here.directory / "relay", CONFIRM) as relay:
        migration = here.migrate("x", nowhere, source=relay)
        assert relay.wait_held(migration), migration.communicate()[0]
        relay.cut()
        migration.communicate(timeout=PATIENCE)
    nowhere.hypervisor.virsh("resume", "x")
    assert here.reason("x") == before == "paused (migrating)"
    if case == "killed":
        kill(here, "x")
    elif case == "daemon anew":
        here.stop_serving()
        here.serve_again()
        pair.acquaint(here)
    elif case == "libvirtd anew":
        here.hypervisor.restart()
        until(lambda: here.daemon.log.count("connected to libvirt") == 2, PATIENCE, here.daemon.log)
    for action in ("off", "status"):
        answer = pair.ask(action, "x")
        tally.add(answer, answer.lie_afterwards())
        assert answer.rc == FAILED and pair.where("x") == ["h3"], pair.logs()
    tally.none(pair.logs())


def test_a_return_that_is_aborted(pair, note):
    """A machine that moved to a host which nobody asks begins to come back, and does not: it is where it was."""
    tally = Tally(note)
    here, nowhere = pair.h1, pair.h3
    pair.h2.does_not_call_back()
    here.has("x", bios=True)
    settle(pair, here.migrate("x", nowhere, "--persistent"))
    migration = slow(nowhere, here)
    assert migration, "it was over at once"
    nowhere.hypervisor.virsh("domjobabort", "x", check=False)
    settle(pair, migration)
    assert pair.where("x") == ["h3"]
    for action in ("status", "off"):
        answer = pair.ask(action, "x")
        tally.add(answer, answer.lie_afterwards())
    tally.none(pair.logs())


def test_a_source_that_was_told_to_go_on(pair, note):
    """The client did not hear that the target has the machine. It runs at both, and the end at the source proves nothing."""
    tally = Tally(note)
    here, there = pair.h1, pair.h2
    there.does_not_call_back()
    here.has("x")
    with Relay(there.hypervisor, there.directory / "relay", loses=FINISH) as deaf:
        settle(pair, here.migrate("x", there, target=deaf))
    assert pair.where("x") == ["h1", "h2"]
    answer = pair.ask("off", "x")
    tally.add(answer, answer.lie_afterwards())
    tally.none(pair.logs())
    there.unfilter()
    until(lambda: pair.ask("off", "x").rc == OK, PATIENCE, "each host ends what it has")
    assert pair.where("x") == [], pair.logs()


def standing_still(host, name):
    """The QEMU that a host starts for a domain that comes in, stopped before libvirt hears of it: as if it were slow."""
    found = {}

    def starts():
        found.update(host.processes(name))
        return found

    net.wait_until(starts, PATIENCE)
    pid, comes = next(iter(found.items()))
    os.kill(pid, signal.SIGSTOP)
    assert comes
    return pid


@pytest.mark.parametrize("case", ["off", "reboot", "daemon anew"])
def test_what_comes_in_too_late_renews_no_move(pair, note, case):
    """A machine goes to and fro, and is ended while the host that it left once is slow to start what comes in. That one never ran: its
    end makes the old move no younger than the end of the machine."""
    tally = Tally(note)
    here, there = pair.h1, pair.h2
    here.has("x")
    settle(pair, here.migrate("x", there))
    assert pair.where("x") == ["h2"]
    migration = there.migrate("x", here)
    stopped = standing_still(here, "x")
    try:
        # The one that has the machine ends it. What just starts at the other host may be its other half.
        here.does_not_call_back()
        answer = pair.ask("reboot" if case == "reboot" else "off", "x")
        tally.add(answer)
        assert answer.rc == FAILED and pair.where("x") == ["h1"], pair.logs()
        if case == "daemon anew":
            here.serve_again()
    finally:
        os.kill(stopped, signal.SIGCONT)
    settle(pair, migration)
    until(lambda: pair.where("x") == [], PATIENCE, "what came in is gone")
    for answers in ("h2", "h1"):
        (here if answers == "h2" else there).does_not_call_back()
        answer = pair.ask("status", "x")
        tally.add(answer, answer.lie_afterwards())
        assert answer.rc == OFF, f"{answers}: {pair.logs()}"
        here.unfilter()
        there.unfilter()
    assert pair.ask("off", "x").rc == OK, pair.logs()
    tally.none(pair.logs())


@pytest.mark.parametrize("keeps", ["definition", "nothing"])
def test_a_migration_that_is_aborted(pair, note, keeps):
    """The domain never left, and the target saw an instance end: that is no sight of the domain."""
    tally = Tally(note)
    here, there = pair.h1, pair.h2
    if keeps == "definition":
        there.has("x", start=False)
    here.does_not_call_back()
    good = 0
    for n in range(ROUNDS):
        here.has("x", transient=keeps == "nothing", bios=True)
        migration = slow(here, there)
        if migration:
            # One abort may come before there is anything to abort.
            until(lambda: here.hypervisor.virsh("domjobabort", "x", check=False) and migration.poll() is not None,
                  PATIENCE, "the migration is aborted")
            settle(pair, migration)
        if keeps == "nothing":
            here.hypervisor.freeze()
        answer = pair.ask(("status", "off")[n % 2], "x")
        tally.add(answer, answer.lie_afterwards())
        good += answer.says_off() or answer.says_on()
        if keeps == "nothing":
            # Unless the migration was over before it could be aborted.
            assert answer.rc == FAILED or answer.lie() or there.processes("x"), answer.result
            here.hypervisor.thaw()
        if there.processes("x"):
            there.hypervisor.virsh("destroy", "x")
    tally.none(pair.logs())
    if keeps == "definition":
        # Both hosts are well.
        assert good * 2 >= ROUNDS, f"{tally.ends}\n{pair.logs()}"
    here.unfilter()
    assert pair.ask("off", "x").rc == OK and pair.where("x") == [], pair.logs()
    assert pair.ask("status", "x").rc == OFF
