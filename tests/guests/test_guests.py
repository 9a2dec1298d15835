# SPDX-License-Identifier: GPL-2.0-or-later
"""One guest fences another from the inside, by each way there is, proved at QEMU's processes."""

import shlex

import pytest

from conftest import wait_until
from lab.guest import CHANNEL, GuestGone
from scene import DENIED, FAILED, OFF, OK, WAYS, command

BY_KEY = ("multicast", "multicast6", "tcp")
BY_SOCKET = ("serial", "channel", "guestfwd")


def ways(*names):
    return pytest.mark.parametrize("way", names, indirect=True)


def line(domain, state):
    """A line of the agents' list."""
    return f"{domain.name:<32} {domain.uuid} {state}"


def untouched(domain, process):
    """The domain runs on in the same QEMU process."""
    return domain.pid() == process.pid and not process.ended()


@ways(*WAYS)
def test_one_guest_fences_another(pair, way, start_daemon, ask, n1, n2):
    daemon = start_daemon(way)
    own = n1.process()

    result = ask(n1, way, "-o", "list")
    assert result.rc == OK, (result, daemon.log)
    assert result.out.splitlines() == [line(n1, "on"), line(n2, "on")]
    result = ask(n1, way, "-o", "status", "-H", "n2")
    assert (result.rc, result.out) == (OK, "Status: ON\n"), (result, daemon.log)
    assert ask(n1, way, "-o", "monitor").rc == OK, daemon.log

    qemu = n2.process()
    result = ask(n1, way, "-o", "reboot", "-H", "n2")
    assert qemu.ended(), "reboot was reported and the old QEMU still ran"
    assert result.rc == OK, (result, daemon.log)
    assert n2.state() == "running" and n2.pid() != qemu.pid

    qemu = n2.process()
    result = ask(n1, way, "-o", "off", "-H", "n2")
    assert qemu.ended(), "off was reported and QEMU still ran"
    assert result.rc == OK, (result, daemon.log)
    assert n2.state() == "shut off"
    result = ask(n1, way, "-o", "status", "-H", "n2")
    assert (result.rc, result.out) == (OFF, "Status: OFF\n"), (result, daemon.log)
    assert line(n2, "off") in ask(n1, way, "-o", "list").out

    result = ask(n1, way, "-o", "on", "-H", "n2")
    assert result.rc == OK, (result, daemon.log)
    assert n2.state() == "running"
    n2.up()
    if way.socket:
        # A guest that was started again has its line again.
        wait_until(lambda: ask(n2, way, "-o", "status", "-H", "n1", "-t", 2).rc == OK)
    result = ask(n2, way, "-o", "status", "-H", "n1")
    assert (result.rc, result.out) == (OK, "Status: ON\n"), (result, daemon.log)
    assert untouched(n1, own)


@ways("multicast", "serial")
def test_by_uuid_and_from_standard_input(pair, way, start_daemon, n1, n2):
    """As the cluster manager calls the agent."""
    daemon = start_daemon(way)
    keys = "key_file=/etc/key\n" if way.has_key else "serial_device=/dev/ttyS1\n"
    options = f"{keys}port={n2.uuid}\nuse_uuid=1\nnodename=n2\naction=status\n"
    agent = command(pair.agent, way, key="").split()[0]
    result = n1.sh(f"printf %s {shlex.quote(options)} | {agent}")
    assert (result.rc, result.out.splitlines()[-1:]) == (OK, ["Status: ON"]), (result, daemon.log)


@ways("multicast", "tcp")
def test_a_wrong_key(pair, way, start_daemon, ask, n1, n2):
    daemon = start_daemon(way)
    qemu = n2.process()
    result = ask(n1, way, "-o", "off", "-H", "n2", "-t", 2, key="/etc/wrong_key")
    assert result.rc == FAILED, (result, daemon.log)
    assert untouched(n2, qemu)
    assert ask(n1, way, "-o", "status", "-H", "n2").rc == OK, daemon.log


@pytest.mark.pairs(agent="reference")
def test_the_reference_agent_has_no_channel(start_daemon, n1, n2, pair):
    """It sets up a terminal, and a virtio port is none."""
    start_daemon(WAYS["channel"])
    result = n1.sh(f"/reference/fence_virt -D /dev/virtio-ports/{CHANNEL} -t 5 -o status -H n2")
    assert result.rc not in (OK, OFF) and "tcsetattr" in result.out + result.err, result


# -- who may fence whom -----------------------------------------------------------------------------------


@ways(*BY_KEY)
def test_groups_by_address(pair, way, start_daemon, ask, n1, n2):
    source = n1.ip6 if way.name == "multicast6" else n1.ip
    # The reference takes a target by the very text of a group, and lists by UUID.
    daemon = start_daemon(way, groups=[{"ip": source, "uuid": [n2.name, n2.uuid]}])
    own, other = n1.process(), n2.process()
    assert ask(n1, way, "-o", "status", "-H", "n2").rc == OK, daemon.log
    assert ask(n1, way, "-o", "off", "-H", "n1").rc == DENIED, daemon.log
    assert ask(n2, way, "-o", "off", "-H", "n1").rc == DENIED, daemon.log
    assert ask(n1, way, "-o", "list").out.splitlines() == [line(n2, "on")], daemon.log
    # A group that names its sources by address means no others, even where the domain behind one is known.
    assert ask(n2, way, "-o", "status", "-H", "n2").rc == DENIED, daemon.log
    assert untouched(n1, own) and untouched(n2, other)


def each_itself_alone(pair, way, start_daemon, ask, guests):
    """Groups tell domains apart by where their requests come from."""
    daemon = start_daemon(way, groups=[{"uuid": [it.uuid, it.name]} for it in guests])
    processes = [it.process() for it in guests]
    for source, target in (guests, reversed(guests)):
        assert ask(source, way, "-o", "status", "-H", source.name).rc == OK, daemon.log
        assert ask(source, way, "-o", "off", "-H", target.name).rc == DENIED, daemon.log
        assert ask(source, way, "-o", "list").out.splitlines() == [line(source, "on")], daemon.log
    assert all(map(untouched, guests, processes))


@ways(*BY_SOCKET)
def test_groups_by_domain(pair, way, start_daemon, ask, guests):
    """The socket is of one domain."""
    each_itself_alone(pair, way, start_daemon, ask, guests)


@pytest.mark.pairs(daemon="ours")
@ways(*BY_KEY)
def test_groups_by_the_domain_behind_an_address(pair, way, start_daemon, ask, guests):
    """The kernel's neighbour table has the MAC address of the source, and libvirt the domain with that address."""
    each_itself_alone(pair, way, start_daemon, ask, guests)


# -- both ends of the gun ---------------------------------------------------------------------------------


@pytest.mark.pairs(daemon="ours")
@ways("multicast", "serial")
def test_a_guest_fences_itself(pair, way, start_daemon, n1):
    """No answer is needed: who would read it?"""
    daemon = start_daemon(way)
    qemu = n1.process()
    with pytest.raises(GuestGone):
        n1.sh(command(pair.agent, way, "-o", "off", "-H", "n1"))
    assert qemu.ended(30), daemon.log
    assert wait_until(lambda: n1.state() == "shut off")


@pytest.mark.pairs(agent="ours", daemon="ours")
@ways("serial", "channel")
def test_a_guest_reboots_itself(pair, way, start_daemon, n1):
    daemon = start_daemon(way)
    qemu = n1.process()
    with pytest.raises(GuestGone):
        n1.sh(command(pair.agent, way, "-o", "reboot", "-H", "n1"))
    assert qemu.ended(30), daemon.log
    wait_until(lambda: n1.state() == "running")
    n1.up()


@pytest.mark.pairs(daemon="ours")
@pytest.mark.parametrize("way, action", [("multicast", "off"), ("tcp", "reboot"), ("serial", "reboot"),
                                         ("channel", "off")], indirect=["way"])
def test_two_guests_that_shoot_at_each_other(pair, way, action, start_daemon, guests, n1, n2):
    """One stays up, however it falls out: the request of a guest that was fenced does not run."""
    daemon = start_daemon(way)
    before = [it.process() for it in guests]
    for shooter, victim in ((n1, n2), (n2, n1)):
        shooter.begin(command(pair.agent, way, "-o", action, "-H", victim.name))
    wait_until(lambda: any(it.ended() for it in before))
    survivors = [(it, process) for it, process in zip(guests, before) if not process.ended()]
    assert len(survivors) == 1, daemon.log
    survivor, process = survivors[0]
    # Its shell answers when its own agent is done.
    survivor.sh("true", 60)
    assert not process.ended(), daemon.log


# -- several ways at once ---------------------------------------------------------------------------------


@pytest.mark.pairs(daemon="ours")
def test_several_ways_into_one_daemon(pair, start_daemon, ask, n1, n2):
    several = [WAYS[name] for name in ("multicast", "tcp", "serial")]
    daemon = start_daemon(*several)
    for it in several:
        for asker, target in ((n1, "n2"), (n2, "n1")):
            assert ask(asker, it, "-o", "status", "-H", target).rc == OK, (it.name, daemon.log)
    qemu = n2.process()
    assert ask(n1, WAYS["tcp"], "-o", "off", "-H", "n2").rc == OK, daemon.log
    assert qemu.ended()
    # What one way did is seen by the others.
    assert ask(n1, WAYS["serial"], "-o", "status", "-H", "n2").rc == OFF, daemon.log
    assert ask(n1, WAYS["multicast"], "-o", "on", "-H", "n2").rc == OK, daemon.log
    n2.up()
    wait_until(lambda: ask(n2, WAYS["serial"], "-o", "status", "-H", "n1", "-t", 2).rc == OK)
