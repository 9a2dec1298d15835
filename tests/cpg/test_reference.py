# SPDX-License-Identifier: GPL-2.0-or-later
"""What C daemons do among themselves and with a member that is neither: the facts in docs/protocol.md that ours stand on."""

import time

import pytest

from lab import wire
from lab.cpg_member import Member
from lab.net import wait_until

from .hosts import GROUP

REQUEST, REPLY, DOMAIN = 0, 1, 2


@pytest.fixture
def three(hosts):
    """Three C daemons: vm1 at h1, vm2 and stopped at h2, vm3 at h3."""
    hosts.domains(h1=["vm1"], h2=["vm2"], h3=["vm3"])
    hosts.h2.has("stopped", start=False)
    hosts.serve(h1="reference", h2="reference", h3="reference")
    return hosts


def told(events, node=None):
    """{name: state} of the domains that the events tell, by one node or by all."""
    messages = [(e["node"], wire.CpgMessage.parse(e["message"])) for e in events if "message" in e]
    return {m.name.decode(): m.state for n, m in messages if m.kind == DOMAIN and node in (None, n)}


def is_kind(kind, **fields):
    """A condition for `Member.wait`: a message of that kind with these fields."""
    def holds(event):
        if "message" not in event:
            return False
        message = wire.CpgMessage.parse(event["message"])
        return message.kind == kind and all(getattr(message, k) == v for k, v in fields.items())
    return holds


ALL = {"vm1": 1, "vm2": 1, "stopped": 5, "vm3": 1}


def test_a_join_and_any_request_make_all_tell_all_their_domains_and_nothing_else_does(three):
    with Member(three.h1, GROUP) as member:
        wait_until(lambda: told(member.events) == ALL, 30)
        three.h2.has("new")
        three.h2.has("stopped").start()
        seen = len(member.events)
        time.sleep(2)
        assert told(member.events[seen:]) == {}, "a change is told by nobody"
        assert three.ask("h1", "status", "nobody", side="reference").rc == 2
        wait_until(lambda: told(member.events[seen:]) == {**ALL, "stopped": 1, "new": 1}, 30)
        seen = len(member.events)
        with Member(three.h2, GROUP):
            pass
        # One joined and left: twice.
        wait_until(lambda: sum("vm1" in told([e]) for e in member.events[seen:]) == 2, 30)


def test_the_owner_tells_its_domains_before_it_replies(three):
    """What stands between a request and its reply is how the owner saw its domains when it took the request."""
    with Member(three.h3, GROUP) as member:
        for action, before in (("off", 1), ("status", 5), ("on", 5), ("status", 1)):
            seen = len(member.events)
            asked = three.ask("h1", action, "vm2", side="reference")
            member.wait(is_kind(REPLY))
            events = member.events[seen:]
            end = next(i for i, e in enumerate(events) if is_kind(REPLY)(e))
            start = next(i for i, e in enumerate(events) if is_kind(REQUEST)(e))
            assert events[end]["node"] == 2, (action, asked, events)
            assert told(events[start:end], node=2).get("vm2") == before, (action, asked, events)


def test_of_a_domain_that_nobody_has_the_highest_node_says_off(three):
    assert three.ask("h1", "status", "nobody", side="reference").rc == 2
    assert three.ask("h1", "off", "nobody", side="reference").rc == 0
    assert three.ask("h2", "reboot", "nobody", side="reference").rc == 0
    assert three.ask("h1", "on", "nobody", side="reference").rc == 1


def test_a_silent_member_with_the_highest_id_makes_the_asker_wait_until_it_replies(hosts):
    """And whoever replies is believed."""
    hosts.domains(h1=["vm1"], h2=["vm2"])
    hosts.serve(h1="reference", h2="reference")
    with Member(hosts.h3, GROUP) as member:
        agent = hosts.agent("h1", "status", "nobody", timeout=60, side="reference")
        request = wire.CpgMessage.parse(member.wait(is_kind(REQUEST))["message"])
        assert (request.name, request.action, request.response) == (b"nobody", wire.STATUS, 0)
        # No other client is served meanwhile.
        assert hosts.ask("h1", "status", "vm1", guest=1, timeout=3, side="reference").rc != 0
        wire_reply = wire.CpgMessage(REPLY, request.sequence, 1, request.name, action=request.action, response=2)
        for other in (wire.CpgMessage(REPLY, request.sequence, 2, request.name, action=request.action, response=0),
                      wire.CpgMessage(REPLY, request.sequence + 9, 1, request.name, action=request.action, response=0)):
            member.send(other.build())
        member.send(wire_reply.build())
        assert agent.finish(60).rc == 2, "not the reply to another node or another request"
        hosts.wait_status("h1", "vm1", 0, side="reference")


def test_a_domain_that_went_away_is_asked_of_its_owner_for_ever(three):
    with Member(three.h1, GROUP) as member:
        wait_until(lambda: told(member.events) == ALL, 30)
        three.h2.hypervisor.virsh("undefine", "stopped")
        agent = three.agent("h1", "off", "stopped", timeout=60, side="reference")
        request = wire.CpgMessage.parse(member.wait(is_kind(REQUEST, name=b"stopped"))["message"])
        # Everybody has worked on it: they reply to what comes after.
        member.send(wire.CpgMessage(REQUEST, 77, name=b"vm2", action=wire.STATUS).build())
        member.send(wire.CpgMessage(REQUEST, 78, name=b"vm3", action=wire.STATUS).build())
        member.wait(is_kind(REPLY, sequence=77))
        member.wait(is_kind(REPLY, sequence=78))
        assert not [e for e in member.events if is_kind(REPLY, name=b"stopped")(e)]
        # A failure sets the asker free.
        member.send(wire.CpgMessage(REPLY, request.sequence, 1, b"stopped", action=wire.OFF, response=1).build())
        assert agent.finish(60).rc == 1


def test_strange_messages_are_passed_over(three):
    with Member(three.h3, GROUP) as member:
        member.send(b"\3\0\0\0" + bytes(152))
        member.send(b"\xff" * 156)
        member.send(wire.CpgMessage(REPLY, 1, 1, b"vm1", action=wire.STATUS, response=0).build())
        member.send(wire.CpgMessage(DOMAIN, name=b"strange", uuid=b"no-uuid", owner=9, state=1).build())
        for host in ("h1", "h2", "h3"):
            assert three.ask(host, "status", "vm1", side="reference").rc == 0


def test_name_mode_decides_what_a_target_is(hosts):
    """Where the hosts differ in it a running domain is "off" as well."""
    hosts.domains(h1=["vm1"], h2=["vm2"])
    hosts.h1.serve("reference", name_mode="uuid")
    hosts.h2.serve("reference", name_mode="name")
    uuid = hosts.h1.has("vm1").uuid
    with Member(hosts.h1, GROUP) as member:
        wait_until(lambda: set(told(member.events)) == {"vm1", "vm2"}, 30)
        member.send(wire.CpgMessage(REQUEST, 50, name=uuid.upper().encode(), action=wire.STATUS).build())
        said = {}
        while len(said) < 2:
            event = member.wait(is_kind(REPLY, sequence=50))
            said[event["node"]] = wire.CpgMessage.parse(event["message"]).response
        assert said == {1: 0, 2: 2}, "the owner, and the highest node that knows no such name"
        member.send(wire.CpgMessage(REQUEST, 51, name=b"VM2", action=wire.STATUS).build())
        assert member.wait(is_kind(REPLY, sequence=51))["node"] == 2


def test_a_list_is_of_the_host_that_was_asked(three):
    listed = three.ask("h2", "list", side="reference").out.split()
    assert set(listed) & set(ALL) == {"vm2", "stopped"}
