# SPDX-License-Identifier: GPL-2.0-or-later
"""Ends and moves that happened before the daemon was started anew."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

from lab import process, programs
from lab.hypervisor import until

from .hosts import FAILED, OFF, OK, PATIENCE, Tally
from .relay import CONFIRM, FINISH, Relay
from .test_migrations import settle


@pytest.fixture
def pair(hosts):
    """h1 and h2 with our daemons, which know of each other. Nobody asks h3."""
    hosts.serve("h1", "h2")
    return hosts


def moved_to_nobody(hosts):
    """x moves from h1 to h3, and only h1 can tell of it."""
    here, nowhere = hosts.h1, hosts.h3
    here.has("x")
    settle(hosts, here.migrate("x", nowhere))
    assert hosts.where("x") == ["h3"]
    hosts.h2.does_not_call_back()


def anew(here):
    """The definition that stayed behind is removed and made again: libvirt tells of no move then."""
    here.hypervisor.virsh("undefine", "x")
    here.has("x", start=False)


def libvirtd(here):
    """libvirtd is started anew: it tells of no move then."""
    here.hypervisor.restart()


@pytest.mark.parametrize("forgets, number", [(anew, signal.SIGKILL), (libvirtd, signal.SIGTERM)], ids=["definition", "libvirtd"])
def test_a_move_outlives_all_daemons(pair, forgets, number):
    here = pair.h1
    moved_to_nobody(pair)
    until(lambda: pair.ask("status", "x").rc == FAILED, PATIENCE, "the move was seen")
    here.stop_serving(number)
    forgets(here)
    assert here.state("x") == "shut off"
    here.serve_again()
    assert [pair.ask(it, "x").rc for it in ("status", "off")] == [FAILED, FAILED], pair.logs()
    # It is started again where somebody looks, and fenced there.
    pair.h3.hypervisor.virsh("destroy", "x")
    here.has("x")
    assert pair.ask("off", "x").rc == OK and pair.where("x") == [], pair.logs()
    here.serve_again()
    assert pair.ask("status", "x").rc == OFF, pair.logs()


@contextlib.contextmanager
def a_half_of_x(pair):
    """x stands still at h1 for a migration to h3, which nobody asks; at the end the migration is over, as whoever migrates sees it."""
    here = pair.h1
    pair.h2.does_not_call_back()
    here.has("x")
    with Relay(here.hypervisor, here.directory / "relay", CONFIRM) as relay:
        migration = here.migrate("x", pair.h3, source=relay)
        assert relay.wait_held(migration), migration.communicate()[0]
        until(lambda: "moved" in moves(here), PATIENCE, "it is on disk that the machine may be elsewhere")
        yield
    migration.communicate(timeout=PATIENCE)


def come_back(here, what):
    """libvirtd runs again, and so does fence_virtd if `what` names it."""
    here.hypervisor.start()
    if what == "libvirtd":
        until(lambda: here.daemon.log.count("connected to libvirt") == 2, PATIENCE, here.daemon.log)
    else:
        here.serve_again()


def none_lies(pair, note):
    """No answer of the two says that x is off."""
    tally = Tally(note)
    for action in ("status", "off"):
        answer = pair.ask(action, "x")
        tally.add(answer, answer.lie_afterwards())
    tally.none(pair.logs())


@pytest.mark.parametrize("dies", ["libvirtd", "libvirtd+fence_virtd"])
def test_a_half_that_is_gone_has_moved(pair, note, dies):
    """A machine that stands still here for a migration runs at the target, which nobody asks. Then libvirtd and QEMU die here."""
    here = pair.h1
    with a_half_of_x(pair):
        if dies != "libvirtd":
            here.stop_serving(signal.SIGKILL)
        here.hypervisor.kill()
        for pid in here.processes("x"):
            os.kill(pid, signal.SIGKILL)
        until(lambda: pair.where("x") == ["h3"], PATIENCE, "it is gone here")
    come_back(here, dies)
    none_lies(pair, note)


@pytest.mark.parametrize("anew", ["libvirtd", "libvirtd+fence_virtd"])
def test_a_half_that_ends_before_its_new_libvirtd_reaches_it(pair, note, anew):
    """The same, and the libvirtd that is started anew lists the half from its files. Then it finds that QEMU has ended, without an event."""
    here = pair.h1
    with a_half_of_x(pair):
        (half,) = here.processes("x")
        os.kill(half, signal.SIGSTOP)
        if anew != "libvirtd":
            here.stop_serving(signal.SIGKILL)
        here.hypervisor.kill()
    come_back(here, anew)
    assert here.state("x") == "paused", "libvirtd waits for QEMU"
    os.kill(half, signal.SIGKILL)
    until(lambda: here.state("x") == "shut off", PATIENCE, "libvirtd sees that it is gone")
    assert pair.where("x") == ["h3"]
    none_lies(pair, note)


@pytest.mark.parametrize("anew", ["libvirtd", "fence_virtd"])
def test_a_pause_hides_no_migration(pair, note, anew):
    """The target has the machine, the client never hears that and lets the source run on. libvirt keeps the last reason only, so it
    has forgotten the migration at the target, where the machine was paused since; and so has whoever is started anew."""
    tally = Tally(note)
    here, there = pair.h1, pair.h2
    here.does_not_call_back()
    here.has("x")
    with Relay(here.hypervisor, here.directory / "relay", held=CONFIRM) as relay, \
            Relay(there.hypervisor, there.directory / "relay", loses=FINISH) as deaf:
        migration = here.migrate("x", there, source=relay, target=deaf)
        assert relay.wait_held(migration), migration.communicate()[0]
        until(lambda: there.state("x") == "running", PATIENCE, "x runs at the target")
        for word in ("suspend", "resume"):
            there.hypervisor.virsh(word, "x")
        if anew == "fence_virtd":
            there.serve_again()
        else:
            there.hypervisor.restart()
            until(lambda: there.daemon.log.count("connected to libvirt") == 2, PATIENCE, there.daemon.log)
        answer = pair.ask("off", "x")
        relay.let_go()
        settle(pair, migration)
    tally.add(answer, answer.lie_afterwards())
    tally.none(pair.logs())


def moves(host):
    """What is on disk of a host's ends and moves."""
    path = pathlib.Path(f"{host._config}.state/moves")
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("names", [["h1"], ["h2"], ["h1", "h2"]], ids="+".join)
def test_an_end_after_a_move_outlives_the_daemons(pair, names):
    here, there = pair.h1, pair.h2
    here.has("x")
    settle(pair, here.migrate("x", there))
    there.hypervisor.virsh("destroy", "x")
    until(lambda: pair.ask("status", "x").rc == OFF, PATIENCE, f"off: it ended after it moved\n{pair.logs()}")
    for name in names:
        getattr(pair, name).serve_again()
    for mute in (here, there):
        # One alone answers: each of them knows it.
        mute.does_not_call_back()
        assert [pair.ask(it, "x").rc for it in ("status", "off")] == [OFF, OK], pair.logs()
        mute.unfilter()


@pytest.mark.parametrize("restarts", [False, True], ids=["", "restarted"])
def test_what_was_saved_to_a_file_may_be_restored_anywhere(pair, restarts):
    here, nowhere = pair.h1, pair.h3
    here.has("x")
    file = here.directory / "memory"
    here.hypervisor.virsh("save", "x", file)
    nowhere.hypervisor.virsh("restore", file)
    assert pair.where("x") == ["h3"]
    if restarts:
        here.serve_again()
    pair.h2.does_not_call_back()
    assert [pair.ask(it, "x").rc for it in ("status", "off")] == [FAILED, FAILED], pair.logs()
    nowhere.hypervisor.virsh("destroy", "x")
    here.has("x")
    assert pair.ask("off", "x").rc == OK, pair.logs()


@pytest.mark.parametrize("removed", [False, True], ids=["", "removed"])
def test_a_managed_save_stays_where_it_is(pair, removed):
    here = pair.h1
    here.has("x")
    here.hypervisor.virsh("managedsave", "x")
    if removed:
        until(lambda: "a domain was saved" in here.daemon.log, PATIENCE, "the daemon has seen the save")
        here.hypervisor.virsh("managedsave-remove", "x")
    assert [pair.ask(it, "x").rc for it in ("status", "off", "status")] == [OFF, OK, OFF], pair.logs()
    assert pair.ask("on", "x").rc == OK and pair.where("x") == ["h1"], pair.logs()


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "peers"])
@pytest.mark.parametrize("managed", [True, False], ids=["managed", "file"])
def test_a_machine_that_was_restored_paused(hosts, alone, managed):
    """libvirt says the same of it as of one half of a migration."""
    here = hosts.h1
    if alone:
        hosts.serve("h1", virtd={"peers": "none"})
    else:
        hosts.serve("h1", "h2")
    here.has("x", paused=managed)
    memory = here.directory / "memory"
    for step in (("managedsave", "x"), ("start", "x")) if managed else (("save", "x", memory), ("restore", memory, "--paused")):
        here.hypervisor.virsh(*step)
    assert here.reason("x") == "paused (migrating)"
    if not alone:
        hosts.h2.does_not_call_back()
    assert [hosts.ask(it, "x").rc for it in ("status", "off", "status", "off")] == [OK, OK, OFF, OK], hosts.logs()
    assert hosts.where("x") == [] and hosts.ask("on", "x").rc == OK, hosts.logs()


def test_a_lone_host_has_what_it_saved(hosts):
    here = hosts.h1
    hosts.serve("h1", virtd={"peers": "none"})
    here.has("x")
    here.hypervisor.virsh("save", "x", here.directory / "memory")
    assert [hosts.ask(it, "x").rc for it in ("status", "off")] == [OFF, OK], hosts.logs()


@pytest.fixture
def owing(hosts, monkeypatch):
    """h1 has powered x off for a reboot, and its daemon was killed then: it owes the start. The fault points are in debug
    builds alone (see fence_races/test_ends.py)."""
    here, other = hosts.h1, hosts.h2
    here.has("x")
    other.has("x", start=False)
    with monkeypatch.context() as patch:
        patch.setattr(programs, "OURS_DIR", programs.DEBUG_DIR)
        patch.setenv("FENCE_VIRTD_STOP_AT", "seen_off")
        here.serve()
    hosts.serve("h2")
    hosts.acquaint(here, other)
    shot = hosts.agent("reboot", "x", timeout=10)
    until(lambda: process.is_frozen(here.daemon.pid), PATIENCE, "the power-off was seen")
    assert hosts.where("x") == []
    here.stop_serving(signal.SIGKILL)
    assert shot.finish(PATIENCE).rc != OK
    return hosts


def what_became_of_it(host):
    """The reason in the record of what was under way."""
    said = []
    until(lambda: said.extend(it["reason"] for it in host.records() if (it["reason"] or "").startswith("was under way"))
          or said, PATIENCE, "the record of what was under way")
    return said[-1]


def test_a_start_that_is_owed_is_made_good(owing):
    owing.h1.serve_again()
    assert "the start that the reboot owed is made good" in what_became_of_it(owing.h1), owing.logs()
    assert owing.where("x") == ["h1"], owing.logs()


def test_a_start_that_is_owed_gives_way_though_the_other_daemon_was_started_anew(owing):
    """Somebody started it at h2 and was told that it is off. h2's next daemon does not know that: it was away for long."""
    owing.h2.hypervisor.virsh("start", "x")
    owing.h2.hypervisor.virsh("destroy", "x")
    owing.h2.stop_serving()
    # As after a pause of ten seconds and more.
    pathlib.Path(f"{owing.h2._config}.state/moves.watched").unlink()
    owing.h2.serve_again()
    owing.h1.serve_again()
    said = what_became_of_it(owing.h1)
    assert "the domain is left off, since nobody can tell whether somebody asked for it meanwhile: host h2" in said, owing.logs()
    assert "has noted for" in said and owing.where("x") == [], f"{said}\n{owing.logs()}"
    assert "a reboot owes a start, and nobody can tell any more" in owing.h1.daemon.log


def own_pid(pid):
    """A process's pid as it sees it itself."""
    return int(re.search(r"^NSpid:.*\s(\d+)$", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M)[1])


def listed(hosts):
    """The lists of all hosts, merged as the agent does it."""
    return {it.split()[0]: it.split()[-1] for it in hosts.agent("list").finish(PATIENCE).out.splitlines()}


@pytest.mark.parametrize("transient", [False, True], ids=["defined", "transient"])
@pytest.mark.parametrize("stopped", [False, True], ids=["libvirtd", "both"])
def test_a_machine_that_libvirtd_lost(hosts, transient, stopped):
    """Its status file is gone: libvirtd says that it is shut off, or knows no such domain, and QEMU runs."""
    here = hosts.h1
    here.has("x", transient=transient)
    here.has("y", start=False)
    here.serve(at=here.hypervisor.beside(here.node))
    hosts.h2.has("x", start=False)
    hosts.h2.serve()
    hosts.acquaint(here, hosts.h2)
    if stopped:
        here.stop_serving()
    here.hypervisor.kill()
    here.hypervisor.path("/run/libvirt/qemu/x.xml").unlink()
    here.hypervisor.start()
    if stopped:
        here.serve_again()
    else:
        until(lambda: here.daemon.log.count("connected to libvirt") == 2, PATIENCE, "it is connected again")
    assert here.state("x") == (None if transient else "shut off") and hosts.where("x") == ["h1"]
    (pid,) = here.processes("x")
    try:
        for action in ("status", "off", "reboot", "on"):
            assert hosts.ask(action, "x").rc == FAILED, (action, hosts.logs())
            reasons = [it.records()[-1]["reason"] for it in (here, hosts.h2)]
            assert all(f"process {own_pid(pid)} " in it for it in reasons), (action, reasons)
        assert hosts.where("x") == ["h1"]
        # Whoever lists and checks sees it too, before anybody needs the fence. The word of the other host alone would be "off".
        assert listed(hosts)["x"] == ("off" if transient else "on") and listed(hosts)["y"] == "off", hosts.logs()
        checked = here.run("--check")
        (line,) = [it for it in checked.stdout.splitlines() if " domain x (" in it]
        assert line.startswith("warning" if transient else "failed") and f"process {own_pid(pid)} of this host has " in line, line
        assert f"kill {own_pid(pid)}" in checked.stdout and " domain y (" not in checked.stdout, checked.stdout
        assert transient or checked.returncode == 1 and "libvirt lost its status file" in line, checked.stdout
        # Nothing is lost of the others.
        assert [hosts.ask(it, "y").rc for it in ("status", "on", "reboot", "off")] == [OFF, OK, OK, OK], hosts.logs()
    finally:
        os.kill(pid, signal.SIGKILL)
    until(lambda: hosts.where("x") == [], PATIENCE, "the process ended")
    until(lambda: listed(hosts)["x"] == "off", PATIENCE, "the list has it off")
    assert "domain x (" not in here.run("--check").stdout
    assert [hosts.ask(it, "x").rc for it in ("status", "off", "on")] == [OFF, OK, OK], hosts.logs()


def test_a_machine_with_two_processes_at_one_host(hosts):
    """libvirtd lost it, and somebody started it again: libvirt shows one instance, and two QEMUs write."""
    here = hosts.h1
    here.has("x")
    here.serve(at=here.hypervisor.beside(here.node))
    (first,) = here.processes("x")
    assert "domain x (" not in here.run("--check").stdout
    here.hypervisor.kill()
    here.hypervisor.path("/run/libvirt/qemu/x.xml").unlink()
    here.hypervisor.start()
    here.hypervisor.virsh("start", "x")
    second = int(here.hypervisor.path("/run/libvirt/qemu/x.pid").read_text())
    assert here.state("x") == "running" and pathlib.Path(f"/proc/{first}").exists() and second != own_pid(first)
    try:
        checked = here.run("--check")
        (line,) = [it for it in checked.stdout.splitlines() if " domain x (" in it]
        assert checked.returncode == 1 and line.startswith("failed "), checked.stdout
        pids = sorted((own_pid(first), second))
        assert sorted(map(int, re.search(r"machine: (\d+), (\d+)\.", line).groups())) == pids, line
        assert "/run/libvirt/qemu/x.pid has the process that libvirt knows" in checked.stdout, checked.stdout
        assert hosts.ask("off", "x").rc == FAILED, hosts.logs()
    finally:
        os.kill(first, signal.SIGKILL)
    until(lambda: not pathlib.Path(f"/proc/{first}").exists(), PATIENCE, "the process ended")
    assert "domain x (" not in here.run("--check").stdout
    assert hosts.ask("off", "x").rc == OK, hosts.logs()


def held_writers(save):
    """PIDs of libvirt's processes that write a memory to disk for this virsh, stopped; none if it was faster."""
    while save.poll() is None:
        held = []
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if b"libvirt_iohelper" in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGSTOP)
                    held.append(int(entry.name))
        if held:
            time.sleep(0.2)
            return held if save.poll() is None else []
    return []


@contextlib.contextmanager
def a_save_that_stands_still(here):
    """A managed save of x whose disk is slow: whoever starts x waits for it in libvirt, for up to 30 s. Yields what goes on with it."""
    stopped = []
    for _ in range(20):
        here.hypervisor.virsh("start", "x", check=False)
        save = subprocess.Popen(["virsh", "-q", "-c", here.hypervisor.uri, "managedsave", "x"], stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stopped = held_writers(save)
        if stopped:
            break
        save.wait(PATIENCE)
    assert stopped, "the save was always over before it could be held"

    def go_on():
        while stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(stopped.pop(), signal.SIGCONT)
    try:
        yield go_on
    finally:
        go_on()
        save.wait(PATIENCE)


def a_start_that_waits(hosts, here):
    """x is off, and its `on` waits in libvirt; returns the agent."""
    assert hosts.ask("off", "x").rc == OK and hosts.where("x") == [], hosts.logs()
    agent = hosts.agent("on", "x")
    until(lambda: "action=on" in here.daemon.log, PATIENCE, "the request is heard")
    time.sleep(2)
    assert hosts.where("x") == [], hosts.logs()
    return agent


@pytest.mark.parametrize("number, runs", [(None, 0), (signal.SIGKILL, 1), (signal.SIGKILL, 2), (signal.SIGTERM, 1)],
                         ids=["lives", "kill", "killed-twice", "term"])
def test_a_start_of_an_earlier_daemon_waits_in_libvirt(pair, note, number, runs):
    """Nobody says that x is off, here or at h2: libvirt carries the start out when the save is over. One that lives waits as well."""
    here = pair.h1
    pair.h2.has("x", start=False)
    here.has("x")
    with a_save_that_stands_still(here) as go_on:
        # Who asks reaches h1: h2 could start x.
        pair.h2.does_not_call_back()
        a_start_that_waits(pair, here).process.kill()
        for _ in range(runs):
            here.stop_serving(number)
            here.serve_again()
        tally = Tally(note)
        asked = pair.agent("off", "x", timeout=60)
        answers = [pair.ask("status", "x")]
        here.does_not_call_back()
        pair.h2.unfilter()
        answers.append(pair.ask("status", "x"))
        here.unfilter()
        # One that lives says what it sees here, as beside every start.
        assert [it.rc for it in answers] == [FAILED if runs else OFF, OK], pair.logs()
        assert asked.process.poll() is None, f"it waits\n{pair.logs()}"
        go_on()
        # The start comes, and then the off that waited.
        assert asked.finish(90).rc == OK, pair.logs()
        time.sleep(3)
        answer = pair.ask("status", "x")
        tally.add(answer, answer.lie_afterwards())
        tally.none(pair.logs())
        assert answer.rc == OFF and pair.where("x") == [], pair.logs()


@contextlib.contextmanager
def disk_of_its_own(here):
    """What the daemon of that host remembers is on a small disk from now on. Yields what fills that disk."""
    here.stop_serving()
    directory = here.state_directory
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k,mode=0700", "tmpfs", directory], check=True)
    here.serve_again()

    def fill():
        with open(directory / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(b"-" * 512)

    try:
        yield fill
    finally:
        here.stop_serving(signal.SIGKILL)
        subprocess.run(["umount", directory], check=True)


def test_a_start_that_waits_is_known_though_the_disk_has_filled_up(hosts):
    """Room for it is kept. The next daemon waits for the start of the killed one, and calls the machine off after it alone."""
    here = hosts.h1
    hosts.serve("h1", virtd={"peers": "none"})
    here.has("x")
    with disk_of_its_own(here) as fill, a_save_that_stands_still(here) as go_on:
        fill()
        a_start_that_waits(hosts, here).process.kill()
        here.stop_serving(signal.SIGKILL)
        here.serve_again()
        asked = hosts.agent("off", "x", timeout=60)
        assert hosts.ask("status", "x").rc == FAILED, hosts.logs()
        assert asked.process.poll() is None, f"it waits\n{hosts.logs()}"
        go_on()
        assert asked.finish(90).rc == OK, hosts.logs()
        answer = hosts.ask("status", "x")
        assert answer.rc == OFF and hosts.where("x") == [], hosts.logs()


@pytest.mark.parametrize("transient", [False, True], ids=["defined", "transient"])
def test_a_start_that_is_owed_is_known_though_the_disk_has_filled_up(hosts, monkeypatch, transient):
    """Three times: there is room for the XML of each."""
    here = hosts.h1
    with monkeypatch.context() as patch:
        patch.setattr(programs, "OURS_DIR", programs.DEBUG_DIR)
        hosts.serve("h1", virtd={"peers": "none"})
    here.has("x", transient=transient)
    with disk_of_its_own(here) as fill:
        fill()
        for number in range(1, 4):
            with monkeypatch.context() as patch:
                patch.setenv("FENCE_VIRTD_STOP_AT", "seen_off")
                here.serve_again()
            shot = hosts.agent("reboot", "x", timeout=10)
            until(lambda: process.is_frozen(here.daemon.pid), PATIENCE, "the power-off was seen")
            assert hosts.where("x") == []
            here.stop_serving(signal.SIGKILL)
            shot.process.kill()
            here.serve_again()
            until(lambda: hosts.where("x") == ["h1"], PATIENCE, f"the start is made good, {number}")
            until(lambda: hosts.ask("status", "x").rc == OK, PATIENCE, "it is seen")
