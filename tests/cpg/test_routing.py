# SPDX-License-Identifier: GPL-2.0-or-later
"""What a target is and what is told to whom, among hosts of ours."""

import time

from lab import testdriver, wire
from lab.cpg_member import Member
from lab.net import wait_until

from .hosts import GROUP, listed, refused

OURS, OLD = "ours", "reference"


def test_a_name_of_two_domains_is_refused(hosts):
    uuids = [testdriver.uuid_of(f"twin {n}") for n in (1, 2)]
    hosts.h2.has("twin", uuid=uuids[0])
    hosts.h3.has("twin", uuid=uuids[1])
    hosts.serve(h1=OURS, h2=OURS, h3=OURS)
    for asked in ("h1", "h2", "h3"):
        for uuid in uuids:
            hosts.wait_status(asked, uuid, 0, extra=("-u",))
    for asked in ("h1", "h2", "h3"):
        for action in ("off", "reboot", "status", "on"):
            assert refused(result := hosts.ask(asked, action, "twin")), f"{action} asked of {asked}: {result}"
    assert [hosts.h2.state("twin"), hosts.h3.state("twin")] == ["running", "running"]
    assert hosts.ask("h1", "off", uuids[1], extra=("-u",)).rc == 0
    assert [hosts.h2.state("twin"), hosts.h3.state("twin")] == ["running", "shut off"]


def test_off_of_a_definition_that_rests_somewhere_is_doubted_while_a_host_is_not_heard(hosts):
    """It may be running there. So may one that was seen to go off here a moment ago."""
    hosts.domains(h1=["a1"], h2=["b1"])
    hosts.h2.has("stopped", start=False)
    hosts.serve(h1=OURS, h2=OURS)
    for asked in ("h1", "h2"):
        hosts.wait_status(asked, "b1", 0)
        assert refused(result := hosts.ask(asked, "status", "stopped")), f"asked of {asked}: {result}\n{hosts.logs()}"
        assert refused(hosts.ask(asked, "off", "stopped"))
    # What runs where a daemon is heard is taken down, and seen off.
    assert hosts.ask("h1", "off", "b1").rc == 0
    assert hosts.h2.state("b1") == "shut off"
    for asked in ("h1", "h2"):
        assert refused(hosts.ask(asked, "status", "b1"))
    hosts.serve(h3=OURS)
    for asked in ("h1", "h2", "h3"):
        hosts.wait_status(asked, "stopped", 2)
        hosts.wait_status(asked, "b1", 2)


def test_a_host_without_domains_lists_those_of_others(hosts):
    hosts.domains(h2=["b1"])
    hosts.serve(h1=OURS, h2=OURS)
    hosts.wait_status("h1", "b1", 0)
    assert listed(hosts.ask("h1", "list")) == {"b1": "on"}
    hosts.h2.has("b1").remove()
    wait_until(lambda: listed(hosts.ask("h1", "list")) == {}, 30)
    hosts.serve(h3=OLD)
    wait_until(lambda: listed(hosts.ask("h1", "list")) == {}, 30)


def test_a_request_makes_no_host_of_ours_tell_its_domains(hosts):
    hosts.domains(h1=[f"a{n}" for n in range(5)], h2=[f"b{n}" for n in range(5)])
    hosts.serve(h1=OURS, h2=OURS)
    hosts.wait_status("h1", "b4", 0)
    hosts.wait_status("h2", "a4", 0)
    with Member(hosts.h3, GROUP) as member:
        def kinds(events):
            return [wire.CpgMessage.parse(e["message"]).kind for e in events if "message" in e]
        # They tell whoever joins; a host that sees the member later than the other one tells twice.
        wait_until(lambda: kinds(member.events).count(2) >= 10, 30)

        def is_quiet():
            before = len(member.events)
            time.sleep(1)
            return len(member.events) == before
        wait_until(is_quiet, 30)
        seen = len(member.events)
        for n in range(5):
            assert hosts.ask("h1", "status", f"b{n}").rc == 0
            assert hosts.ask("h2", "off", f"b{n}").rc == 0
        # b0 to b4 went off, and that is told.
        wait_until(lambda: kinds(member.events[seen:]).count(2) >= 5, 30)
        time.sleep(1)
        assert kinds(member.events[seen:]) == [2] * 5


def test_strange_members_and_messages_harm_nobody(hosts):
    hosts.domains(h1=["a1"], h2=["b1"])
    hosts.serve(h1=OURS, h2=OURS)
    hosts.wait_status("h1", "b1", 0)
    with Member(hosts.h3, GROUP) as member:
        for message in (b"", b"\0", bytes(16), bytes(155), bytes(157), b"\xff" * 156, b"\3\0\0\0" + bytes(152),
                        b"\0" * 16 + b"x" * 140, b"\2\0\0\0" + b"\xff" * 152, bytes(100_000)):
            if message:
                member.send(message)
        # It says of others' domains what it likes: that they are off, that they are its own.
        for name, owner, state in (("a1", 1, 5), ("b1", 2, 5), ("a1", 3, 5), ("b1", 3, 5)):
            uuid = getattr(hosts, {"a1": "h1", "b1": "h2"}[name]).has(name).uuid
            member.send(wire.CpgMessage(2, name=name.encode(), uuid=uuid.encode(), owner=owner, state=state).build())
        for number in range(1, 60):
            member.send(wire.CpgMessage(1, number, 1, b"b1", action=wire.OFF, response=0).build())
        for asked in ("h1", "h2"):
            for domain in ("a1", "b1"):
                assert hosts.ask(asked, "status", domain).rc == 0, hosts.logs()
        assert hosts.ask("h1", "off", "b1").rc == 0
        assert hosts.h2.state("b1") == "shut off"
        # Whether it runs at h3 by now nobody there says.
        assert refused(result := hosts.ask("h2", "status", "b1")), f"{result}\n{hosts.logs()}"
        assert "node 3" in hosts.h2.records()[-1]["reason"]


def test_the_owner_s_own_reason_is_told(hosts):
    """Its libvirt hangs: whoever is asked says so."""
    hosts.domains(h3=["c1"])
    hosts.serve(h1=OURS, h2=OURS, h3=OURS)
    hosts.wait_status("h1", "c1", 0)
    hosts.h3.hypervisor.freeze()
    try:
        assert refused(hosts.ask("h1", "status", "c1")), hosts.logs()
        reason = hosts.h1.records()[-1]["reason"]
        assert "libvirt at" in reason and "did not answer in time" in reason, reason
    finally:
        hosts.h3.hypervisor.thaw()
