# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts that are killed, cut off, silent or without corosync: nobody is told that their domains are off, and nobody waits for ever."""

import os
import signal
import uuid

import pytest

from lab import process, wire
from lab.cpg_member import Member
from lab.net import wait_until

from .hosts import GROUP, SECOND, listed, refused

OURS, OLD = "ours", "reference"


@pytest.fixture
def three(hosts):
    """h1, h2 and h3 of ours with a running domain each."""
    return serve(hosts)


def serve(hosts, h3=OURS, **options):
    hosts.domains(h1=["a1"], h2=["b1"], h3=["c1"])
    for host, side in ((hosts.h1, OURS), (hosts.h2, OURS), (hosts.h3, h3)):
        host.serve(side, wait=False, **(options if side == OURS else {}))
    for host in hosts.all:
        host.wait_joined()
    for asked in ("h1", "h2", "h3"):
        for domain in ("a1", "b1", "c1"):
            hosts.wait_status(asked, domain, 0)
    return hosts


def asked_all(hosts, host, domain, actions=("status", "off", "reboot")):
    """{action: exit code} of a request each, refused ones as "refused"."""
    results = {action: hosts.ask(host, action, domain) for action in actions}
    return {action: "refused" if refused(it) else it.rc for action, it in results.items()}


def test_a_killed_host_s_domains_are_not_off(three):
    """Neither before corosync has noticed, nor afterwards; and when it is back, everything is as it was."""
    three.h3.kill()
    assert refused(result := three.ask("h1", "off", "c1")), f"at once: {result}\n{three.logs()}"
    three.h1.wait_members(2)
    for asked in ("h1", "h2"):
        assert set(asked_all(three, asked, "c1", ("status", "off", "reboot", "on")).values()) == {"refused"}
    # The others go on.
    assert three.ask("h1", "reboot", "b1").rc == 0
    assert three.h3.state("c1") == "running"
    three.h3.power_on()
    three.h3.serve(OURS)
    three.wait_status("h1", "c1", 0)
    assert three.ask("h1", "off", "c1").rc == 0
    assert three.h3.state("c1") == "shut off"


@pytest.mark.parametrize("lost", ["daemon", "power"])
def test_a_lost_host_s_domains_stay_in_the_list(three, lost):
    """Pacemaker does not fence a machine that no list has."""
    whole = {"a1": "on", "b1": "on", "c1": "on"}
    assert listed(three.ask("h1", "list")) == whole
    if lost == "daemon":
        # A definition that is off at a host that is heard says nothing.
        three.h1.has("c1", start=False)
        three.h3.stop_serving(signal.SIGKILL)
        wait_until(lambda: 3 not in three.h1.group_members(SECOND), 30)
    else:
        three.h3.kill()
        three.h1.wait_members(2)
    for asked in ("h1", "h2"):
        for _ in range(2):
            assert listed(three.ask(asked, "list")) == whole, three.logs()
        assert refused(three.ask(asked, "status", "c1")), "a list is not evidence"
    if lost == "power":
        three.h3.power_on()
    three.h3.hypervisor.virsh("destroy", "c1")
    three.h3.serve(OURS)
    three.wait_status("h1", "c1", 2)
    for asked in ("h1", "h2"):
        wait_until(lambda asked=asked: listed(three.ask(asked, "list")) == {**whole, "c1": "off"}, 30)


def test_a_host_that_was_cut_off_and_comes_back(three):
    """Each side keeps to its own, and afterwards all is as before."""
    three.h3.cut()
    three.h1.wait_members(2)
    three.h3.wait_members(1)
    for asked, domain in (("h1", "c1"), ("h2", "c1"), ("h3", "a1")):
        assert set(asked_all(three, asked, domain).values()) == {"refused"}, f"{domain} asked of {asked}"
    assert [host.state(domain) for host, domain in zip(three.all, ("a1", "b1", "c1"))] == ["running"] * 3
    assert three.ask("h3", "reboot", "c1").rc == 0, three.logs()
    assert three.ask("h1", "off", "b1").rc == 0
    three.h3.heal()
    three.h1.wait_members(3)
    for asked in ("h1", "h2", "h3"):
        three.wait_status(asked, "a1", 0)
        three.wait_status(asked, "b1", 2)
        three.wait_status(asked, "c1", 0)
    assert three.ask("h3", "off", "a1").rc == 0
    assert three.ask("h1", "off", "c1").rc == 0
    assert [host.state(domain) for host, domain in zip(three.all, ("a1", "b1", "c1"))] == ["shut off"] * 3


@pytest.mark.parametrize("host_down", ["never", "membership"])
def test_where_only_the_daemon_went_away_the_host_lives(hosts, host_down):
    serve(hosts, host_down=host_down)
    hosts.h3.stop_serving(signal.SIGKILL)
    wait_until(lambda: 3 not in hosts.h1.group_members(), 30)
    assert set(asked_all(hosts, "h1", "c1").values()) == {"refused"}
    hosts.h3.serve(OURS, host_down=host_down)
    hosts.wait_status("h1", "c1", 0)


def test_membership_as_proof_is_what_c_daemons_take(hosts):
    serve(hosts, host_down="membership")
    hosts.h3.kill()
    hosts.h1.wait_members(2)
    for asked in ("h1", "h2"):
        hosts.wait_status(asked, "c1", 2)
        assert asked_all(hosts, asked, "c1", ("off", "reboot", "on")) == {"off": 0, "reboot": 0, "on": "refused"}


def reason(host, action, target):
    """The reason of its last answer to such a request."""
    records = [it for it in host.records() if (it["action"], it["target"]) == (action, target)]
    return records[-1]["reason"] or ""


def test_a_domain_that_was_off_at_a_host_that_is_down(hosts):
    """Every place is covered: the others are asked, and the host is proved down."""
    hosts.h3.has("c2", start=False)
    serve(hosts, host_down="membership")
    hosts.wait_status("h1", "c2", 2)
    hosts.h3.kill()
    hosts.h1.wait_members(2)
    for asked in (hosts.h1, hosts.h2):
        hosts.wait_status(asked.name, "c2", 2)
        assert asked_all(hosts, asked.name, "c2", ("off", "reboot", "on")) == {"off": 0, "reboot": 0, "on": "refused"}
        assert all("node 3 (h3) is down" in reason(asked, action, "c2") for action in ("off", "on")), asked.records()
        assert "start the domain with virsh at a node that is heard" in reason(asked, "on", "c2"), asked.records()
    # Nobody knows what the node has that a daemon never heard.
    hosts.h2.serve(OURS, host_down="membership")
    assert refused(hosts.ask("h2", "status", "c2"))
    assert "node 3 (h3) is not heard" in reason(hosts.h2, "status", "c2"), hosts.logs()


def test_a_domain_whose_daemon_is_started_anew_is_waited_for(hosts):
    hosts.h3.has("c2", start=False)
    serve(hosts)
    hosts.wait_status("h1", "c2", 2)
    assert refused(hosts.ask("h1", "status", "none")) and reason(hosts.h1, "status", "none").startswith("no such domain")
    hosts.h3.stop_serving(signal.SIGKILL)
    wait_until(lambda: 3 not in hosts.h1.group_members(), 30)
    asked = {name: hosts.agent("h1", action, name, guest=guest) for guest, (name, action) in enumerate((("c1", "off"), ("c2", "status")))}
    hosts.h3.serve(OURS)
    assert {name: agent.finish(60).rc for name, agent in asked.items()} == {"c1": 0, "c2": 2}, hosts.logs()
    assert hosts.h3.state("c1") == "shut off"
    hosts.h3.stop_serving(signal.SIGKILL)
    wait_until(lambda: 3 not in hosts.h1.group_members(), 30)
    assert refused(hosts.ask("h1", "status", "none"))
    assert "node 3 (h3) is not heard" in reason(hosts.h1, "status", "none"), hosts.logs()


def test_a_c_daemon_that_has_just_started_is_heard_first(hosts):
    hosts.domains(h1=["a1"], h2=["b1"], h3=["c1"])
    hosts.h2.serve(OURS)
    hosts.h1.serve(OURS)
    hosts.wait_status("h1", "b1", 0)
    with Member(hosts.h3, GROUP):
        # It is there, and has said nothing: it may have anything.
        assert refused(hosts.ask("h1", "status", "c1"))
        assert "node 3 (h3) has not said which domains it has" in reason(hosts.h1, "status", "c1"), hosts.logs()
    hosts.h3.serve(OLD)
    result = hosts.ask("h1", "status", "c1")
    assert result.rc == 0, f"{result}\n{hosts.logs()}"


def test_a_command_as_proof(hosts):
    """A request waits for the proof; the command is told which host and for how long."""
    proof = hosts.directory / "proof"
    proof.unlink(missing_ok=True)
    said = hosts.directory / "said"
    command = hosts.directory / "is-down"
    command.write_text(f'#!/bin/sh\necho "$@" >>{said}\n[ -e {proof} ]\n')
    command.chmod(0o755)
    serve(hosts, host_down="command", host_down_command=command)
    assert not said.exists(), "nobody is lost"
    hosts.h3.kill()
    hosts.h1.wait_members(2)
    waiting = hosts.agent("h1", "off", "c1", timeout=60)
    wait_until(said.exists, 30)
    assert waiting.process.poll() is None, hosts.logs()
    proof.touch()
    assert waiting.finish(90).rc == 0, hosts.logs()
    name, number, seconds = said.read_text().splitlines()[0].split()
    assert (name, number) == ("h3", "3") and int(seconds) >= 0
    assert asked_all(hosts, "h2", "c1", ("status", "off", "on")) == {"status": 2, "off": 0, "on": "refused"}
    # Who was without corosync can't know whether it came back meanwhile.
    proof.unlink()
    hosts.h1.stop_corosync()
    hosts.h1.start_corosync()
    hosts.h1.wait_joined()
    hosts.wait_status("h1", "b1", 0)
    assert hosts.ask("h1", "off", "c1", timeout=5).rc not in (0, 2), hosts.logs()
    # Back again it is asked itself.
    hosts.h3.power_on()
    hosts.h3.serve(OURS, host_down="command", host_down_command=command)
    hosts.wait_status("h1", "c1", 0)


def test_a_machine_made_anew_after_its_host_went_down(hosts):
    """It has its old name and another UUID. The one that was lost has the name only until it is proved off, in each request."""
    proof = hosts.directory / "proof"
    proof.touch()
    command = hosts.directory / "is-down"
    command.write_text(f"#!/bin/sh\n[ -e {proof} ]\n")
    command.chmod(0o755)
    hosts.domains(h3=["c1"])
    for host, options in ((hosts.h1, {"host_down": "command", "host_down_command": command}), (hosts.h2, {}), (hosts.h3, {})):
        host.serve(OURS, wait=False, **options)
    for host in hosts.all:
        host.wait_joined()
    for asked in ("h1", "h2"):
        hosts.wait_status(asked, "c1", 0)
    hosts.h3.kill()
    hosts.h3.hypervisor.virsh("destroy", "c1")
    hosts.h1.wait_members(2)
    anew = str(uuid.uuid4())
    hosts.h1.has("c1", uuid=anew)
    hosts.wait_status("h2", anew, 0, extra=("-u",))
    # Nothing proves anything to this one: any of both may be meant.
    assert refused(hosts.ask("h2", "off", "c1")), hosts.logs()
    why = reason(hosts.h2, "off", "c1")
    assert why.startswith("ambiguous: ") and "no proof that node 3 (h3) is down" in why, why
    assert hosts.h1.state("c1") == "running"
    assert hosts.ask("h1", "status", "c1").rc == 0, hosts.logs()
    assert hosts.ask("h1", "off", "c1").rc == 0, hosts.logs()
    assert hosts.h1.state("c1") == "shut off"
    assert hosts.ask("h1", "status", "c1").rc == 2, hosts.logs()
    # The proof is one of this request alone.
    proof.unlink()
    assert hosts.ask("h1", "status", "c1", timeout=3).rc == 1, hosts.logs()
    proof.touch()
    # A definition of the old one, at a host that is heard, can be started.
    hosts.h2.has("c1", start=False)
    wait_until(lambda: refused(hosts.ask("h1", "off", "c1")), 30)
    assert reason(hosts.h1, "off", "c1").startswith("ambiguous: "), hosts.logs()


def test_a_silent_owner_delays_nobody_but_who_asks_it(three):
    """Its daemon hangs while corosync says that it is there."""
    with frozen(three.h3):
        waiting = three.agent("h1", "off", "c1", guest=1, timeout=90)
        wait_until(lambda: "c1" in three.h1.daemon.log, 30)
        for asked, domain in (("h1", "a1"), ("h1", "b1"), ("h2", "a1"), ("h2", "b1")):
            assert three.ask(asked, "status", domain).rc == 0, three.logs()
        assert waiting.finish(120).rc == 1, three.logs()
    assert three.ask("h1", "status", "c1").rc in (0, 2)


def test_corosync_that_is_stopped_under_a_daemon_and_started_again(three):
    three.h2.stop_corosync()
    three.h1.wait_members(2)
    # Its own domains that run it still fences, by itself.
    three.wait_status("h2", "b1", 0)
    assert refused(result := three.ask("h2", "off", "a1")), f"{result}\n{three.logs()}"
    assert refused(three.ask("h1", "off", "b1"))
    assert three.ask("h2", "off", "b1").rc == 0, three.logs()
    assert three.h2.state("b1") == "shut off"
    three.h2.has("b1")
    three.h2.start_corosync()
    three.h1.wait_members(3)
    three.h2.wait_joined()
    for asked in ("h1", "h2", "h3"):
        for domain in ("a1", "b1", "c1"):
            three.wait_status(asked, domain, 0)
    assert three.ask("h1", "off", "b1").rc == 0
    assert three.ask("h2", "off", "a1").rc == 0
    assert [three.h1.state("a1"), three.h2.state("b1")] == ["shut off", "shut off"]
    # It ends well, whatever it went through.
    assert [host.stop_serving() for host in three.all] == [0, 0, 0]


def test_daemons_end_well_with_corosync_and_without(three):
    three.h2.stop_corosync()
    assert three.h2.stop_serving() == 0
    three.h3.signal_corosync(signal.SIGSTOP)
    try:
        assert three.h3.stop_serving() == 0
    finally:
        three.h3.signal_corosync(signal.SIGCONT)
    assert three.h1.stop_serving() == 0


def test_a_daemon_that_starts_before_corosync(hosts):
    hosts.domains(h1=["a1"], h2=["b1"])
    hosts.h2.stop_corosync()
    hosts.h1.serve(OURS)
    hosts.h2.serve(OURS, wait=False)
    hosts.wait_status("h2", "b1", 0)
    hosts.h2.start_corosync()
    hosts.wait_status("h1", "b1", 0)
    hosts.wait_status("h2", "a1", 0)


def test_an_old_host_is_set_free_when_the_owner_dies_at_work(hosts):
    """It would wait for ever, and no client of it would be served again."""
    hosts.domains(h1=["a1"], h2=["b1"], h3=["c1"])
    hosts.serve(h1=OLD, h2=OURS, h3=OURS)
    hosts.wait_status("h1", "c1", 0)
    with Member(hosts.h1, GROUP) as member, frozen(hosts.h3):
        agent = hosts.agent("h1", "off", "c1", timeout=60)
        member.wait(lambda e: "message" in e and wire.CpgMessage.parse(e["message"]).name == b"c1"
                    and wire.CpgMessage.parse(e["message"]).kind == 0)
        hosts.h3.kill()
        assert agent.finish(90).rc == 1
        hosts.wait_status("h1", "a1", 0)
        assert hosts.ask("h1", "off", "b1").rc == 0
        assert hosts.h2.state("b1") == "shut off"


def test_a_killed_old_host_s_domains_are_not_off(hosts):
    serve(hosts, h3=OLD)
    hosts.h3.kill()
    hosts.h1.wait_members(2)
    assert set(asked_all(hosts, "h1", "c1", ("status", "off", "reboot", "on")).values()) == {"refused"}


class frozen:
    """The daemon of a host is stopped for the length of the block, or until the host is killed."""

    def __init__(self, host):
        self.host, self.daemon = host, host.daemon

    def __enter__(self):
        # It does not take a message that is sent from now on.
        process.freeze(self.daemon.pid)

    def __exit__(self, *_):
        if self.host.daemon is self.daemon:
            os.kill(self.daemon.pid, signal.SIGCONT)
        # nsenter stops and goes on with its child.
        self.daemon.process.send_signal(signal.SIGCONT)


def test_an_old_host_that_has_said_nothing_may_have_it_on(hosts):
    """Its libvirt hangs, so it tells its domains to nobody who comes."""
    hosts.h1.has("late", start=False)
    hosts.h3.has("late")
    hosts.h3.serve(OLD)
    hosts.h3.hypervisor.freeze()
    hosts.serve(h1=OURS, h2=OURS)
    hosts.h1.wait_members(3)
    try:
        for asked in ("h1", "h2"):
            assert set(asked_all(hosts, asked, "late").values()) == {"refused"}, hosts.logs()
    finally:
        hosts.h3.hypervisor.thaw()
    hosts.wait_status("h1", "late", 0)
    assert hosts.ask("h1", "off", "late").rc == 0
    assert hosts.h3.state("late") == "shut off"
