# SPDX-License-Identifier: GPL-2.0-or-later
"""The same work is done once, and all who asked for it are told the same."""

import pytest
from lab import judged, wire
from lab.net import wait_until

from lab.rig import OK, SIDE, Asker, answers, slow_to_die, starts


@pytest.fixture
def victim(site):
    """A running domain, and its QEMU process."""
    return site.hypervisor.domain("victim")


@pytest.fixture
def nodes(site):
    """Three nodes that ask."""
    return [site.net.nodes.get(name) or site.node(name) for name in ("peer1", "peer2", "peer3")]


def done_once(site, victim, qemu, before, action):
    """QEMU has ended, and after a reboot the next one runs, not the one after it."""
    judged.gone(qemu)
    assert starts(site.hypervisor, victim) == before + (action == "reboot")
    assert bool(victim.pid()) == (action == "reboot")


def comes_too_late(host):
    """Whether the second request's target was found when the first was over: libvirt tells nothing of a domain while it
    ends that, and on a busy machine all else of a reboot takes less time than one look."""
    log = host.daemon.log
    over, found = log.find("id=1 transport="), log.find("resolved id=2 ")
    return 0 <= over < found


def test_a_request_that_is_sent_again(site, start_host, nodes, victim):
    """The same sequence number, fresh random bytes, while the first is at work and after it is done."""
    host = start_host()
    qemu, before = victim.process(), starts(site.hypervisor, victim)
    client = wire.FakeClient(site.guest(), wire.read_key(site.key))
    packets = [client.packet(wire.REBOOT, "victim", seqno=4711) for _ in range(7)]
    with client.listening() as listener:
        listener.settimeout(30)
        with slow_to_die(victim) as wait_killed:
            client.send(packets[0])
            sock, _ = listener.accept()
            stream = wire.Stream(sock, 30)
            wire.challenge_as_client(stream, client.key)
            for packet in packets[1:4]:
                client.send(packet)
            wait_killed()
        assert stream.recv(1) == bytes([wire.SUCCESS])
        for packet in packets[4:]:
            client.send(packet)
        # A request from elsewhere: by its answer the earlier ones have been looked at.
        assert wire.FakeClient(nodes[0], client.key).multicast(wire.STATUS, "victim", timeout=30).code == OK
        listener.settimeout(1)
        with pytest.raises(TimeoutError):
            listener.accept()
    done_once(site, victim, qemu, before, "reboot")
    if SIDE == "ours":
        assert len([it for it in host.records() if it["action"] == "reboot"]) == 1


@pytest.mark.ours
@pytest.mark.parametrize("action", ["off", "reboot"])
def test_the_same_request_from_several_nodes(site, start_host, nodes, victim, action):
    """The others come before the first has given its proof."""
    host = start_host(listener="tcp")
    other = site.hypervisor.domain("other")
    qemu, before = victim.process(), starts(site.hypervisor, victim)
    with slow_to_die(other) as wait_killed:
        # The three may shoot its source: they wait.
        ahead = Asker(host, "off", "other").wait_asked().prove()
        wait_killed()
        askers = [Asker(host, action, "victim", node=node) for node in nodes]
        wait_until(lambda: host.daemon.log.count("joins the same work") == 2)
        assert not qemu.ended()
    assert answers([ahead, *askers]) == [b"\0"] * 4
    done_once(site, victim, qemu, before, action)
    records = host.wait_records(3, which=lambda it: it["target"] == "victim")
    assert [(it["decision"], it["result"]) for it in records] == [("run", "success")] * 3
    # Who joined may be told, and written down, before who did the work.
    (did_it,) = [it for it in records if it["reason"] is None]
    joined = [it["reason"] for it in records if it is not did_it]
    assert joined == [f"the same work as request {did_it['id']}"] * 2, records


@pytest.mark.parametrize("action", ["off", "reboot"])
def test_the_same_request_while_libvirt_is_at_it(site, start_host, nodes, victim, note, action):
    """The others come when QEMU has been told to end and has not; libvirt tells nothing of the domain meanwhile."""
    host = start_host(listener="tcp")
    qemu, before = victim.process(), starts(site.hypervisor, victim)
    with slow_to_die(victim) as wait_killed:
        first = Asker(host, action, "victim", node=nodes[0]).wait_asked().prove()
        wait_killed()
        if SIDE == "ours":
            others = [Asker(host, action, "victim", node=node) for node in nodes[1:]]
    if SIDE != "ours":
        others = []     # it serves nobody meanwhile
    told = answers([first, *others])
    reasons = [it["reason"] for it in host.wait_records(3)] if SIDE == "ours" else []
    note(f"answers {told}, QEMU started {starts(site.hypervisor, victim) - before} times, {reasons}")
    assert told == [b"\0"] * len(told)
    done_once(site, victim, qemu, before, action)


@pytest.mark.parametrize("when", ["while it is done", "after it was done"])
@pytest.mark.parametrize("action", ["off", "reboot"])
def test_a_retry_after_a_lost_answer(site, start_host, agents, victim, note, action, when):
    """The agent is killed when its proof is given and libvirt has begun, and the cluster asks again.

    The result of work that is over says nothing to a later request: that one does its own."""
    host = start_host()
    qemu, before = victim.process(), starts(site.hypervisor, victim)

    def ask():
        return site.agent(agents, "-o", action, "-H", "victim", wait=False)

    with slow_to_die(victim) as wait_killed:
        killed = ask()
        wait_killed()
        killed.process.kill()
        killed.finish()
        if when == "while it is done":
            again = ask()
            if SIDE == "ours":
                host.daemon.wait_log(r"heard id=2 ")
    if when == "after it was done":
        if SIDE == "ours":
            assert not host.wait_records(1)[0]["delivered"]
        else:
            wait_until(qemu.ended)
        again = ask()
    result = again.finish()
    records = host.records() if SIDE == "ours" else []
    note(f"retry: exit code {result.rc} in {result.seconds:.1f} s; "
         f"QEMU started {starts(site.hypervisor, victim) - before} times; {[it['reason'] for it in records]}")
    assert result.rc == OK, (result, records)
    if action == "off" or when == "while it is done" and not (SIDE == "ours" and comes_too_late(host)):
        return done_once(site, victim, qemu, before, action)
    judged.gone(qemu)
    assert victim.pid()
    assert SIDE != "ours" or starts(site.hypervisor, victim) == before + 2


@pytest.mark.ours
@pytest.mark.parametrize("transport", ["tcp", "multicast"])
def test_a_later_reboot_is_not_told_of_an_earlier_one(site, start_host, agents, victim, transport):
    """The client of a reboot is killed; the domain is destroyed and started by its administrator, and fails again: the
    next reboot from the same address must take down the instance that runs then."""
    host = start_host(listener=transport)
    where = ["-T", site.host.ip] if transport == "tcp" else []

    def ask(wait):
        return site.agent(agents, *where, "-o", "reboot", "-H", "victim", wait=wait,
                          name="fence_virt" if transport == "tcp" else "fence_xvm")

    with slow_to_die(victim) as wait_killed:
        killed = ask(wait=False)
        wait_killed()
        killed.process.kill()
        killed.finish()
    (first,) = host.wait_records(1)
    assert (first["result"], first["delivered"]) == ("success", False), first
    victim.destroy()
    victim.start()
    qemu = victim.process()
    result = ask(wait=True)
    record = host.wait_records(2)[1]
    assert result.rc == OK and record["reason"] is None, (result, record)
    assert qemu.ended(), f"told success, and the same machine runs: {record}"
    assert victim.pid() not in (None, qemu.pid)


@pytest.mark.ours
def test_an_answer_is_not_kept_back_for_a_later_request_of_the_port(site, start_host, victim):
    """A C agent gives its port away as soon as it is called back. While the host powers the victim off, another agent of
    the same machine asks there."""
    host = start_host(listener="multicast")

    def ask(action, wait):
        return site.agent("reference", "-o", action, "-H", "victim", wait=wait)

    with slow_to_die(victim) as wait_killed:
        off = ask("off", wait=False)
        wait_killed()
        status = ask("status", wait=False)
        host.daemon.wait_log(r"heard id=2 ")
    result = off.finish()
    assert result.rc == OK, (result, host.records())
    status.finish()
    assert host.wait_records(2)[0]["delivered"], host.records()
