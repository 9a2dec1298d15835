# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain that a host keeps as off, or saw going off, while it runs at another."""

import os
import re
import signal
import subprocess
import threading
import time

import pytest

from lab.hypervisor import until
from lab.programs import program

from .hosts import FAILED, OFF, OK, PATIENCE, ROUNDS, Tally, uuid_of

#: What happens at the host where the domain runs.
OUTAGES = {
    "libvirtd-stands-still": lambda host: host.hypervisor.freeze(),
    "libvirtd-killed": lambda host: host.hypervisor.kill(),
    "daemon-stopped": lambda host: host.stop_serving(),
}


def failed_and_named(answer, host):
    """A failure, and the place that could not be asked stands in a record of the other host."""
    assert answer.rc == FAILED, answer.result
    assert host.node.ip in str(answer.hosts.h2.records()) or host.name in str(answer.hosts.h2.records()), \
        answer.hosts.h2.records()[-1:]


@pytest.mark.parametrize("outage", OUTAGES)
@pytest.mark.parametrize("action", ["status", "off"])
def test_a_host_that_keeps_the_definition_does_not_speak_for_one_that_is_silent(hosts, note, outage, action):
    hosts.h1.has("x")
    hosts.h2.has("x", start=False)
    hosts.serve("h1", "h2")
    tally = Tally(note)
    OUTAGES[outage](hosts.h1)
    answer = hosts.ask(action, "x")
    tally.add(answer)
    tally.none(hosts.logs())
    failed_and_named(answer, hosts.h1)
    if outage == "libvirtd-stands-still":
        # The host itself is well, and says what is not.
        reason = answer.hosts.h2.records()[-1]["reason"]
        assert re.search(r"host h1 \S+: libvirt at \S+ did not answer in time", reason), reason
        # Its call-back comes when the other host's answer was heard, and no firewall is in the way.
        said = hosts.guest.run([program("ours", "fence_xvm"), "--diagnose", "-n", "x", "-k", hosts.key, "-t", "20"]).stdout
        assert "firewall" not in said and re.search(r"cause: .*host h1 \S+: .*libvirt", said), said
    # When it is heard again, the truth is told.
    hosts.h1.hypervisor.recover()
    if outage == "daemon-stopped":
        hosts.h1.serve_again()
    until(lambda: hosts.ask("status", "x").rc == OK, PATIENCE, f"x is on\n{hosts.logs()}")
    assert hosts.ask("off", "x").rc == OK and hosts.where("x") == [], hosts.logs()


@pytest.mark.parametrize("action", ["status", "off"])
def test_a_host_that_saw_a_transient_domain_go_off_does_not_speak_for_one_that_is_silent(hosts, note, action):
    hosts.serve("h1", "h2")
    hosts.h2.has("x", transient=True)
    assert hosts.ask("off", "x").rc == OK
    hosts.h1.has("x", transient=True)
    until(lambda: hosts.ask("status", "x").rc == OK, PATIENCE, f"x is on\n{hosts.logs()}")
    hosts.h1.hypervisor.freeze()
    tally = Tally(note)
    answer = hosts.ask(action, "x")
    tally.add(answer)
    tally.none(hosts.logs())
    failed_and_named(answer, hosts.h1)


def test_a_domain_that_is_stopped_here_and_started_there(hosts, note):
    """The way in which a cluster moves a machine without live migration. Both hosts are well: an answer has to come."""
    hosts.h1.has("x")
    hosts.h2.has("x", start=False)
    hosts.serve("h1", "h2")
    tally, good = Tally(note), 0
    here, there = hosts.h1, hosts.h2
    for n in range(ROUNDS):
        here.hypervisor.virsh("destroy", "x")
        there.hypervisor.virsh("start", "x")
        time.sleep((1, 0, 0.3)[n % 3])
        answer = hosts.ask(("off", "status")[n // 3 % 2], "x")
        tally.add(answer)
        if answer.says_off() or answer.says_on():
            good += 1
        here, there = there, here
        here.has("x")
    tally.none(hosts.logs())
    assert good * 2 >= ROUNDS, f"{tally.ends}\n{hosts.logs()}"


@pytest.mark.parametrize("action", ["status", "off"])
def test_a_definition_at_one_uri_does_not_speak_for_another_uri(hosts, note, action):
    """Restarted, the daemon has never seen what the other one has."""
    hosts.h1.has("x")
    hosts.h1.second.domain("x", start=False)
    hosts.h1.serve(backend={"uri1": hosts.h1.second.uri})
    assert hosts.ask("status", "x").rc == OK
    hosts.h1.hypervisor.kill()
    hosts.h1.serve_again()
    tally = Tally(note)
    answer = hosts.ask(action, "x")
    tally.add(answer)
    tally.none(hosts.logs())
    assert answer.rc == FAILED
    assert hosts.h1.hypervisor.uri in str(hosts.h1.records()), hosts.h1.records()[-1:]
    # It is found again, and goes off.
    hosts.h1.hypervisor.recover()
    until(lambda: hosts.ask("status", "x").rc == OK, PATIENCE, f"x is on\n{hosts.logs()}")
    assert hosts.ask("off", "x").rc == OK and hosts.where("x") == [], hosts.logs()
    assert hosts.ask("status", "x").rc == OFF


def test_a_machine_that_runs_at_two_uris(hosts):
    """As a migration between them leaves it whose end nobody heard."""
    first, second = hosts.h1.hypervisor, hosts.h1.second
    hosts.h1.serve(backend={"uri1": second.uri})
    for target, *more in (("x",), (uuid_of("x"), "-u")):
        for action in ("off", "reboot"):
            hosts.h1.has("x")
            second.domain("x")
            assert len(hosts.h1.processes("x")) == 2
            assert hosts.ask("status", target, *more).rc == OK, hosts.logs()
            assert hosts.ask(action, target, *more, judged=False).rc == OK, hosts.logs()
            runs = [bool(it.processes().get(uuid_of("x"))) for it in (first, second)]
            assert runs == [action == "reboot", False], (action, runs, hosts.logs())
    assert hosts.ask("off", "x").rc == OK and hosts.where("x") == [], hosts.logs()


@pytest.mark.parametrize("action", ["off", "reboot"])
@pytest.mark.parametrize("listener", ["tcp", "multicast"])
def test_a_machine_that_runs_at_two_hosts(hosts, listener, action):
    """Each started it. A success means that both instances are gone, and nothing is started beside one."""
    hosts.h1.has("x")
    hosts.h2.has("x")
    for host, other in ((hosts.h1, hosts.h2), (hosts.h2, hosts.h1)):
        host.serve(listener=listener, virtd={"peers": other.node.ip, "peer_key_file": hosts.key})
    hosts.acquaint(hosts.h1, hosts.h2)
    if listener == "multicast":
        hosts.h2.does_not_call_back()
    to = {host: ["-T", host.node.ip] if listener == "tcp" else [] for host in hosts.all}
    answer = hosts.ask(action, "x", *to[hosts.h1])
    assert (answer.rc, hosts.where("x")) == (FAILED, ["h2"]), (answer.result, hosts.logs())
    reason = hosts.h1.records()[-1]["reason"]
    assert "h2" in reason and "Ask for off again" in reason, reason
    if listener == "tcp":
        # The host that was asked has no instance any more, and can't end the other one.
        assert (hosts.ask("off", "x", *to[hosts.h1]).rc, hosts.where("x")) == (FAILED, ["h2"]), hosts.logs()
    hosts.h2.unfilter()
    answer = hosts.ask("off", "x", *to[hosts.h2])
    assert (answer.rc, hosts.where("x")) == (OK, []), (answer.result, hosts.logs())
    assert hosts.ask("status", "x", *to[hosts.h1]).rc == OFF, hosts.logs()


@pytest.mark.parametrize("runs", ["runs-soon", "stands-still"])
@pytest.mark.parametrize("action", ["off", "reboot"])
def test_a_machine_that_just_starts_at_another_host(hosts, action, runs):
    """As with much memory or slow storage: its QEMU is there, and does not run yet."""
    hosts.h1.has("x")
    hosts.h2.has("x", start=False)
    hosts.serve("h1", "h2")
    hosts.h2.does_not_call_back()
    starts = subprocess.Popen(["virsh", "-q", "-c", hosts.h2.hypervisor.uri, "start", "x"])
    until(lambda: hosts.h2.processes("x"), PATIENCE, "QEMU is there")
    (pid,) = hosts.h2.processes("x")
    os.kill(pid, signal.SIGSTOP)
    try:
        # Not before libvirt knows of that.
        until(lambda: hosts.h2.state("x") == "paused", PATIENCE, "x starts")
        goes_on = threading.Timer(0.7, os.kill, (pid, signal.SIGCONT))
        if runs == "runs-soon":
            goes_on.start()
        answer = hosts.ask(action, "x")
    finally:
        goes_on.cancel()
        os.kill(pid, signal.SIGCONT)
        assert starts.wait(PATIENCE) == 0
    assert (answer.rc, hosts.where("x")) == (FAILED, ["h2"]), (answer.result, hosts.logs())
    reason = hosts.h1.records()[-1]["reason"]
    assert "h2" in reason and "Ask for off again" in reason, reason
    hosts.h2.unfilter()
    assert hosts.ask("off", "x").rc == OK and hosts.where("x") == [], hosts.logs()


def test_a_start_at_another_host_that_is_under_way(hosts, note):
    """Began a moment before the request: no success while that instance comes."""
    hosts.h2.has("x", start=False)
    hosts.serve("h1", "h2")
    hosts.h2.does_not_call_back()
    tally = Tally(note)
    for n in range(2 * ROUNDS):
        hosts.h1.has("x")
        until(lambda: hosts.ask("status", "x").rc == OK, PATIENCE, f"x is on\n{hosts.logs()}")
        starts = subprocess.Popen(["virsh", "-q", "-c", hosts.h2.hypervisor.uri, "start", "x"])
        until(lambda: hosts.h2.state("x") != "shut off", PATIENCE, "x starts")
        time.sleep((0, 0.05, 0.2)[n % 3])
        answer = hosts.ask(("off", "reboot")[n // 3 % 2], "x")
        assert starts.wait(PATIENCE) == 0
        tally.add(answer, answer.lie_afterwards())
        assert (answer.rc, hosts.where("x")) == (FAILED, ["h2"]), (n, answer.result, hosts.logs())
        hosts.h2.hypervisor.virsh("destroy", "x")
    tally.none(hosts.logs())


def test_a_machine_that_moved_a_moment_ago_has_no_second_instance(hosts, note):
    """It was at the other host when the request came, or is there soon after: no fence fails for that. Live, and stopped and started."""
    hosts.h1.has("x")
    hosts.h2.has("x", start=False)
    hosts.serve("h1", "h2", options={"negative_delay": 0})
    tally = Tally(note)
    here, there = hosts.h1, hosts.h2
    for n in range(2 * ROUNDS):
        if n % 2:
            here.hypervisor.virsh("destroy", "x")
            there.hypervisor.virsh("start", "x")
        else:
            assert here.migrate("x", there).wait(PATIENCE) == 0
        answer = hosts.ask("off", "x")
        tally.add(answer)
        assert (answer.rc, hosts.where("x")) == (OK, []), (n, answer.result, hosts.logs())
        # A cluster starts it elsewhere as soon as it was told.
        here.has("x")
    tally.none(hosts.logs())


BACKUP = """<domainbackup mode='pull'><server transport='unix' socket='{directory}/backup-sock'/><disks>
<disk name='hda' backup='yes' type='file'><scratch file='{directory}/scratch'/></disk></disks></domainbackup>"""


def test_a_backup_takes_the_machine_nowhere(hosts, tmp_path):
    """A job that leaves the machine here is no migration: its end needs no other host's word."""
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    hosts.h1.has("x", disk=image)
    hosts.serve("h1", "h2")
    job = tmp_path / "backup.xml"
    job.write_text(BACKUP.format(directory=tmp_path))
    hosts.h1.hypervisor.virsh("backup-begin", "x", job)
    assert "Backup" in hosts.h1.hypervisor.virsh("domjobinfo", "x").stdout
    hosts.h2.stop_serving()
    assert hosts.ask("off", "x").rc == OK and hosts.where("x") == [], hosts.logs()


def has_saved_memory(host, name, second=False):
    hypervisor = host.second if second else host.hypervisor
    return "yes" in hypervisor.virsh("dominfo", name).stdout.partition("Managed save:")[2].splitlines()[0]


def test_no_host_calls_off_what_another_one_has_a_saved_memory_of(hosts, note):
    """Both have the definition, and either may be the first to answer. Only h1 can remove what its managed save left."""
    hosts.h1.has("x")
    hosts.h2.has("x", start=False)
    hosts.serve("h1", "h2")
    tally = Tally(note)
    for action in ("off", "reboot", "off", "off"):
        hosts.h1.hypervisor.virsh("managedsave", "x")
        answer = hosts.ask(action, "x")
        tally.add(answer)
        assert answer.rc == OK and not has_saved_memory(hosts.h1, "x"), f"{action}\n{hosts.logs()}"
        hosts.h1.hypervisor.virsh("start", "x")
    # It can't answer: so h2 does, after its while.
    hosts.h1.hypervisor.virsh("managedsave", "x")
    hosts.h1.does_not_call_back()
    for action in ("off", "reboot", "on"):
        answer = hosts.ask(action, "x")
        assert answer.rc == FAILED and "keeps a saved memory" in hosts.h2.records()[-1]["reason"], f"{answer.result}\n{hosts.logs()}"
        assert hosts.where("x") == []
    hosts.h1.unfilter()
    answer = hosts.ask("off", "x")
    tally.add(answer)
    assert answer.rc == OK and not has_saved_memory(hosts.h1, "x"), hosts.logs()
    tally.none(hosts.logs())


@pytest.mark.parametrize("second", [False, True], ids=["uri", "uri1"])
def test_an_off_removes_what_either_uri_has_saved(hosts, second):
    hosts.h1.has("x", start=not second)
    hosts.h1.second.domain("x", start=second)
    hosts.h1.serve(backend={"uri1": hosts.h1.second.uri})
    for action in ("off", "reboot"):
        saved = hosts.h1.second if second else hosts.h1.hypervisor
        saved.virsh("managedsave", "x")
        assert hosts.ask(action, "x").rc == OK and not has_saved_memory(hosts.h1, "x", second), f"{action}\n{hosts.logs()}"
        saved.virsh("start", "x")
