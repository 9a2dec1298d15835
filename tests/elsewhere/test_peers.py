# SPDX-License-Identifier: GPL-2.0-or-later
"""Which other hosts are asked: those that were found, those that are configured, none; and who can't speak for them."""

import pathlib
import re
import signal

import pytest

from lab import programs
from lab.hypervisor import until

from .hosts import FAILED, OFF, OK, PATIENCE, Tally, Tap, filter_at


class Thief:
    """A machine with the key that takes over a host's address and name while that host is gone, and has no domain. (A client
    that it calls back believes it: it holds the client's key. What it can't do is to speak for that host to another one.)"""

    def __init__(self, hosts, victim, kind="ours", **options):
        self._hosts, self.node = hosts, hosts.net.node("thief")
        victim.stop_serving()
        victim.node.link(False)
        self.node.ip_cmd("addr flush dev eth0")
        self.node.ip_cmd(f"addr add {victim.node.ip}/16 dev eth0")
        self.node.ip_cmd("route replace 224.0.0.0/4 dev eth0")
        filter_at(self.node, hosts.no_call_backs)
        hosts.h3.serve(kind, at=self.node, called=victim.name, **options)
        # A neighbour that moved is found anew.
        hosts.h1.node.ip_cmd("neigh flush dev eth0")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._hosts.h3.stop_serving()
        self._hosts.net.remove("thief")


def named(host, other):
    """A host's last audit record names another one."""
    last = host.records()[-1]
    assert other.name in str(last) or other.node.ip in str(last), last


def refused(hosts, note, other, *extra, actions=("status", "off")):
    """x runs at another host that can't be asked: no answer of h1 is "off", and its records say who is silent."""
    tally = Tally(note)
    for action in actions:
        answer = hosts.ask(action, "x", *extra)
        tally.add(answer, answer.lie_afterwards())
        assert answer.rc == FAILED or answer.lie(), answer.result
    tally.none(hosts.logs())
    named(hosts.h1, other)


@pytest.fixture
def apart(hosts):
    """x runs at h2, and h1 keeps its definition."""
    hosts.h1.has("x", start=False)
    hosts.h2.has("x")
    return hosts


# -- alone, by configuration -------------------------------------------------------------------------------


def test_none_is_asked_when_there_are_none(apart):
    """`peers = "none"` is the administrator's word. Nothing is sent, and nobody is waited for."""
    with Tap(apart.guest) as tap:
        apart.h1.serve(virtd={"peers": "none"})
        # Untrue, by that word.
        assert apart.ask("status", "x", judged=False).rc == OFF
        assert apart.ask("off", "x", judged=False).rc == OK
        # h2 says hello when it starts.
        apart.h2.serve()
        apart.h1.daemon.wait_log('peers = "none" is set here: that host is not asked')
    assert not [it for it in tap.datagrams if it[0] == apart.h1.node.ip], tap.datagrams
    assert apart.where("x") == ["h2"]


def test_a_host_that_was_heard_is_named_when_none_is_set(apart):
    """Its messages go to h1 alone, which reads none of them any more."""
    configured(apart, "multicast")
    apart.acquaint(apart.h1, apart.h2)
    file = pathlib.Path(apart.h1._config)
    file.write_text(file.read_text().replace(f'peers = "{apart.h2.node.ip}"', 'peers = "none"'))
    apart.h1.serve_again()
    apart.h1.daemon.wait_log("says that there is no other host, but this one was heard")
    told = apart.h1.run("--check").stdout
    assert re.search(rf"failed +peers h2 .*{apart.h2.node.ip}.*was heard", told), told
    assert apart.h1.run("--forget", "h2").returncode == 0
    until(lambda: not apart.h1.remembers(apart.h2), PATIENCE, "h2 is forgotten")
    assert "but this one was heard" not in apart.h1.run("--check").stdout


# -- configured --------------------------------------------------------------------------------------------


def configured(hosts, listener):
    """h1 and h2 know of each other by configuration. Gives the agent's arguments that ask h1."""
    hosts.h1.serve(listener=listener, virtd={"peers": hosts.h2.node.ip, "peer_key_file": hosts.key})
    hosts.h2.serve(listener=listener, virtd={"peers": hosts.h1.node.ip, "peer_key_file": hosts.key})
    return ["-T", hosts.h1.node.ip] if listener == "tcp" else []


@pytest.mark.parametrize("listener", ["tcp", "multicast"])
def test_configured_peers_are_asked(apart, note, listener):
    extra = configured(apart, listener)
    if not extra:
        apart.h2.does_not_call_back()
    tally = Tally(note)
    for action in ("status", "off"):
        answer = apart.ask(action, "x", *extra)
        tally.add(answer, answer.lie_afterwards())
    tally.none(apart.logs())
    apart.h2.hypervisor.virsh("destroy", "x", check=False)
    assert apart.ask("status", "x", *extra).rc == OFF, apart.logs()
    assert apart.ask("off", "x", *extra).rc == OK, apart.logs()


@pytest.mark.parametrize("listener", ["tcp", "multicast"])
def test_a_configured_peer_that_is_silent(apart, note, listener):
    extra = configured(apart, listener)
    apart.h2.stop_serving()
    refused(apart, note, apart.h2, *extra)


def test_configured_peers_win_over_those_that_were_found(apart):
    """h3 is heard and is not among them."""
    apart.h3.serve()
    configured(apart, "multicast")
    apart.h2.hypervisor.virsh("destroy", "x")
    apart.h3.stop_serving()
    assert apart.ask("status", "x").rc == OFF, apart.logs()


# -- found -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["in", "out"])
def test_a_firewall_at_another_host(apart, note, way):
    """It was heard before."""
    apart.serve("h1", "h2")
    port = "udp dport 1229"
    # With "out" it hears the client, and would answer.
    apart.h2.filter(apart.no_call_backs, f"{way} {port} drop")
    refused(apart, note, apart.h2)
    apart.h2.unfilter()
    until(lambda: apart.ask("status", "x").rc == OK, PATIENCE, f"x is on\n{apart.logs()}")


def test_a_host_that_is_gone_for_good_is_forgotten(apart, note):
    apart.serve("h1", "h2")
    apart.h2.hypervisor.virsh("destroy", "x")
    apart.h2.stop_serving()
    tally = Tally(note)
    answer = apart.ask("off", "x")
    tally.add(answer)
    assert answer.rc == FAILED
    named(apart.h1, apart.h2)
    assert "--forget" in apart.h1.daemon.log
    # What was remembered is remembered after a restart.
    apart.h1.serve_again()
    assert apart.ask("off", "x").rc == FAILED
    forgotten = apart.h1.run("--forget", "h2")
    assert forgotten.returncode == 0, forgotten
    until(lambda: apart.ask("off", "x").rc == OK, PATIENCE, f"h2 is forgotten\n{apart.logs()}")
    apart.h1.serve_again()
    assert apart.ask("status", "x").rc == OFF, apart.logs()


def test_forgetting_a_host_that_nobody_knows(apart):
    apart.serve("h1", "h2")
    refused_to = apart.h1.run("--forget", "nobody")
    assert refused_to.returncode == 1 and "nobody" in refused_to.stderr, refused_to
    assert apart.h1.remembers(apart.h2)


def test_who_is_known_is_told(apart):
    """By the log, by `--status` and by `--check`, and that `peers` is not set."""
    metrics = apart.h1.directory / f"metrics-{next(apart.numbers)}"
    apart.h1.serve(virtd={"metrics": f"unix:{metrics}"})
    apart.h2.serve()
    apart.acquaint(apart.h1, apart.h2)
    apart.h1.daemon.wait_log(rf"h2 \({apart.h2.node.ip}\)")
    told = apart.h1.run("--status")
    assert "h2" in told.stdout and apart.h2.node.ip in told.stdout, told
    told = apart.h1.run("--check")
    assert f"h2 ({apart.h2.node.ip})" in told.stdout and "`peers`" in told.stdout, told.stdout

    def of_h2():
        return next(it for it in apart.h1.run("--status").stdout.splitlines() if it.startswith("other host h2"))

    assert of_h2().endswith(" ago"), of_h2()
    apart.h2.stop_serving(signal.SIGKILL)
    assert apart.ask("status", "x").rc == FAILED, apart.logs()
    assert of_h2().endswith(" ago, DID NOT ANSWER when asked last"), of_h2()
    apart.h2.serve_again()
    until(lambda: apart.ask("status", "x").rc == OK, PATIENCE, "h2 answers")
    # That h1 asked h2 meanwhile is no matter of who answered first.
    apart.h2.does_not_call_back()
    assert apart.ask("status", "x").rc == OK, apart.logs()
    assert of_h2().endswith(" ago"), of_h2()


def test_check_of_what_moved_to_a_host_that_is_silent(hosts):
    """It runs there. Whoever does what `--check` says must not start it a second time."""
    here, there = hosts.h1, hosts.h2
    hosts.serve("h1", "h2")
    here.has("x")
    said = here.migrate("x", there, "--persistent").communicate(timeout=PATIENCE)[0]
    assert hosts.where("x") == ["h2"], said
    there.stop_serving(signal.SIGKILL)
    told = here.run("--check").stdout
    assert re.search(rf"^failed +peers h2 \({re.escape(there.node.ip)}\): does not answer", told, re.M), told
    told = re.search(r"^warning +domain x .*\n +-> .*", told, re.M)[0]
    assert f"may run at a host that does not answer, or can't tell: h2 ({there.node.ip}). Of the hosts that answered" in told
    assert "-> repair that host first" in told and "virsh" not in told and "No host" not in told, told
    # Nobody saw it end there, and this host can't tell either.
    there.hypervisor.virsh("destroy", "x")
    there.serve_again()
    hosts.acquaint(here, there)
    here.hypervisor.kill()
    told = re.search(r"^warning +domain x .*\n +-> .*", here.run("--check").stdout, re.M)[0]
    assert "can't tell: this host (see its line `libvirt`)" in told and "virsh" not in told, told


def test_a_host_that_is_not_asked_and_has_a_domain_of_this_one_is_a_fault(apart, tmp_path):
    """It names the others in `peers`, with a key of the hosts; this one was forgotten."""
    key = programs.write_key(tmp_path / "hosts.key", b"a key that no guest has")
    apart.h2.serve(virtd={"peers": apart.h1.node.ip, "peer_key_file": key})
    apart.h1.serve()
    told = apart.h1.run("--check")
    assert told.returncode != 0, told.stdout
    assert "called off here without a question to that host: x" in told.stdout, told.stdout
    assert "(not asked)" in told.stdout and "each is called off only when" not in told.stdout, told.stdout


# -- somebody who plays a host -----------------------------------------------------------------------------


def test_a_guest_with_the_key_speaks_for_nobody(apart, note):
    """It runs a daemon that has nothing. The host that has the domain is silent."""
    apart.serve("h1", "h2", "h3")
    apart.h3.does_not_call_back()
    apart.h2.stop_serving()
    refused(apart, note, apart.h2)


@pytest.mark.parametrize("kind", ["ours", "reference"])
def test_who_takes_over_a_host_s_address_and_name_does_not_speak_for_it(apart, note, kind):
    apart.serve("h1", "h2")
    with Thief(apart, apart.h2, kind):
        refused(apart, note, apart.h2)
        apart.h1.serve_again()
        refused(apart, note, apart.h2)


@pytest.mark.parametrize("end", ["ended", "killed"])
@pytest.mark.parametrize("listener", ["tcp", "multicast"])
def test_who_takes_over_a_configured_peer_s_address_does_not_speak_for_it(apart, note, listener, end):
    """Also if the daemon has known the host for a moment only, and is started anew."""
    extra = configured(apart, listener)
    if not extra:
        apart.h2.does_not_call_back()
    assert apart.ask("status", "x", *extra).rc != OFF
    apart.h1.stop_serving({"ended": signal.SIGTERM, "killed": signal.SIGKILL}[end])
    apart.h1.serve_again()
    with Thief(apart, apart.h2, virtd={"peers": apart.h1.node.ip, "peer_key_file": apart.key}):
        refused(apart, note, apart.h2, *extra)
        apart.h1.serve_again()
        refused(apart, note, apart.h2, *extra)
