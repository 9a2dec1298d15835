# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirtd's ordinary workers are all held, as by a program that polls a machine which hangs: its reserved ones answer all that a fence needs."""

import contextlib
import os
import signal
import subprocess
import threading
import time

import pytest

from lab.hypervisor import until

from .hosts import FAILED, OFF, OK, PATIENCE

#: More than libvirtd has ordinary workers (20).
POLLS = 30
#: A power-off that waits for no ordinary worker takes less, in seconds: two questions that nobody answers take 2.
QUICK = 6
BUSY = "all its ordinary workers are busy"
#: What the daemon logs when no worker lists the domains in one call.
ONE_BY_ONE = "lists the domains one by one"


@contextlib.contextmanager
def polled(host, name, count):
    """The domain's QEMU hangs, and `count` calls wait for it."""
    [pid] = host.processes(name)
    os.kill(pid, signal.SIGSTOP)
    is_over, calls, lock = threading.Event(), set(), threading.Lock()

    def poll():
        while not is_over.is_set():
            call = subprocess.Popen(["virsh", "-q", "-c", host.hypervisor.uri, "domblkstat", name, "hda"],
                                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with lock:
                calls.add(call)
            call.wait()
            with lock:
                calls.discard(call)

    pollers = [threading.Thread(target=poll) for _ in range(count)]
    for it in pollers:
        it.start()
    try:
        until(lambda: len(calls) == count, PATIENCE, "the calls have begun")
        time.sleep(1)
        yield
    finally:
        is_over.set()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        for it in pollers:
            it.join(PATIENCE)


@pytest.fixture
def lone(hosts):
    """h1, a lone host, with machines `sick`, that has a disk, and `well`."""
    disk = hosts.directory / "sick.img"
    disk.write_bytes(b"\0" * 65536)
    hosts.h1.has("sick", disk=disk)
    hosts.h1.has("well")
    hosts.h1.serve(virtd={"peers": "none"})
    return hosts


def answered(hosts, action, name, rc):
    """The answer, which comes soon."""
    answer = hosts.ask(action, name)
    assert answer.rc == rc, (action, answer.result, hosts.logs())
    assert answer.result.seconds < QUICK, (action, answer.result.seconds, hosts.logs())
    return answer


def is_held(host):
    """Whether no ordinary worker takes a call."""
    try:
        host.hypervisor.virsh("domjobinfo", "well", check=False, timeout=2)
    except subprocess.TimeoutExpired:
        return True
    return False


def reason_of_last(host):
    """The reason of the last failure, which the audit record has a moment later."""
    failed = lambda: [it for it in host.records() if it.get("reason")]
    until(failed, PATIENCE, host.daemon.log)
    return failed()[-1]["reason"]


def test_one_call_lists_all_while_a_worker_is_free(lone):
    """And they are read one by one while none is."""
    here = lone.h1
    lists = lambda: {it.split()[0]: it.split()[-1] for it in lone.agent("list").finish(PATIENCE).out.splitlines()}
    assert lists() == {"sick": "on", "well": "on"}, lone.logs()
    assert ONE_BY_ONE not in here.daemon.log, here.daemon.log
    with polled(here, "sick", POLLS):
        assert is_held(here)
        assert lists() == {"sick": "on", "well": "on"}, lone.logs()
        until(lambda: f"{ONE_BY_ONE}: no worker has answered" in here.daemon.log, PATIENCE, here.daemon.log)
        time.sleep(1)
        # Now it is known that a call waits.
        assert lists() == {"sick": "on", "well": "on"}, lone.logs()
        until(lambda: f"{ONE_BY_ONE}: no worker was asked" in here.daemon.log, PATIENCE, here.daemon.log)


def test_another_machine_is_fenced(lone):
    here = lone.h1
    with polled(here, "sick", POLLS):
        assert is_held(here)
        answered(lone, "status", "well", OK)
        assert lone.agent("list").finish(PATIENCE).rc == OK
        answered(lone, "off", "well", OK)
        assert not here.processes("well")
        answered(lone, "off", "well", OK)
        answered(lone, "status", "well", OFF)
        # A start needs a worker: libvirt itself ends a call that waits for 30 s, and then one is free for a moment.
        if lone.ask("on", "well").rc != OK:
            assert BUSY in reason_of_last(here), here.records()
        assert BUSY in here.daemon.log, here.daemon.log
        check = here.run("--check")
        assert "all ordinary workers of libvirtd are busy" in check.stdout, check
        assert is_held(here), "all the time"
    until(lambda: lone.ask("on", "well").rc == OK, PATIENCE, lone.logs)


def test_the_one_that_hangs_is_fenced(lone):
    """It ends the cause as well."""
    here = lone.h1
    with polled(here, "sick", POLLS):
        answer = lone.ask("off", "sick")
        assert answer.rc == OK and not here.processes("sick"), (answer.result, lone.logs())
        until(lambda: not is_held(here), PATIENCE, "the workers are free")
        answered(lone, "off", "well", OK)


def test_one_call_that_waits_for_it_does_not_keep_it(lone):
    with polled(lone.h1, "sick", 1):
        answer = lone.ask("off", "sick")
        assert answer.rc == OK and not lone.h1.processes("sick"), (answer.result, lone.logs())


def test_a_saved_memory_is_not_forgotten(lone):
    """Removing it needs a worker: without one the off fails and says so."""
    here = lone.h1
    here.hypervisor.virsh("managedsave", "well")
    with polled(here, "sick", POLLS):
        assert is_held(here)
        answer = lone.ask("off", "well")
        is_kept = "well" in here.hypervisor.virsh("list", "--all", "--with-managed-save").stdout
        assert is_kept == (answer.rc == FAILED), (answer.result, lone.logs())
        if is_kept:
            reason = reason_of_last(here)
            assert "saved memory" in reason and BUSY in reason, reason
    until(lambda: not is_held(here), PATIENCE, "the workers are free")
    assert lone.ask("off", "well").rc == OK
    assert "well" not in here.hypervisor.virsh("list", "--all", "--with-managed-save").stdout


def test_a_machine_that_was_being_saved_is_not_called_clean(lone):
    """Who paused it is not known: a save does that. Its end alone is then no proof that no memory is left."""
    here = lone.h1
    here.hypervisor.virsh("suspend", "well")
    with polled(here, "sick", POLLS):
        answer = lone.ask("off", "well")
        assert answer.result.seconds > QUICK, "a worker was waited for"
        if answer.rc != OK:
            assert BUSY in reason_of_last(here), here.records()
    until(lambda: not is_held(here), PATIENCE, "the workers are free")
    assert lone.ask("off", "well").rc == OK
