# SPDX-License-Identifier: GPL-2.0-or-later
"""Other hosts that corosync does not know: what --check, --status and --forget say of them. The other one runs the C daemon."""

import contextlib

import pytest

from lab import net, programs, testdriver

from conftest import VIRTD
from test_check import failed, of

METRICS = "metrics"


@pytest.fixture
def c_host(stage, tmp_path, setup):
    """A C daemon on the network that has vm1 and vm3 as off, and vm2 as running; and its node."""
    node = stage.net.node("chost")
    off = testdriver.SHUTOFF
    uri = testdriver.write(tmp_path / "c.xml", [testdriver.Domain("vm1", off), "vm2", testdriver.Domain("vm3", off)])
    config = programs.write_config(tmp_path / "c.conf", backend_options={"uri": uri},
                                   listener_options={"key_file": setup.key, "family": "ipv4", "interface": "eth0"})
    daemon = programs.Daemon(node, config, program=programs.program("reference", "fence_virtd"), ready="udp")
    yield node, daemon
    with contextlib.suppress(Exception):
        daemon.stop()
    stage.net.remove("chost")


@pytest.fixture
def daemon(stage, setup, c_host):
    """Ours on the host, which has found the C host."""
    setup.write(listener="multicast", options=f'metrics = "unix:{setup.directory}/{METRICS}"; state_dir = "{setup.state}";',
                peers=None)
    setup.state.mkdir()
    daemon = programs.Daemon(stage.host, setup.file, program=VIRTD, ready="udp")
    net.wait_until(lambda: knows(setup, c_host))
    yield daemon
    daemon.stop()


def knows(setup, c_host):
    path = setup.state / "hosts"
    return path.exists() and c_host[0].ip in path.read_text().split()


def test_who_answers_and_what_is_at_two_places(setup, c_host):
    setup.write(listener="multicast", peers=None)
    rc, found = setup.check()
    ip = c_host[0].ip
    assert "lists 3 domains, 1 of them on" in of(found, "peers", ip)["text"], found
    it = found["peers", ""]
    assert it["result"] == "warning" and f'peers = "{ip}"' in it["next"]
    it = found["domain", "vm1, vm3"]
    assert it["result"] == "ok" and f"this host ({setup.uri})" in it["text"] and ip in it["text"] and not it["next"]
    assert of(found, "domain", "vm2")["result"] == "failed" and "2 places at once" in of(found, "domain", "vm2")["text"]
    assert rc == 1 and failed(found) == {"domain"}


def test_named_and_alone(setup, stage, c_host):
    setup.write(listener="multicast", peers=c_host[0].ip)
    _, found = setup.check()
    assert of(found, "peers", c_host[0].ip)["result"] == "ok" and ("peers", "") not in found
    it = of(found, "peers", "C daemon")
    assert it["result"] == "warning" and c_host[0].ip in it["text"] and 'answers "off" for every domain' in it["text"]
    assert "only when all of them say so" in of(found, "domain", "vm1")["text"]
    setup.write(listener="multicast", peers=stage.guest.ip)
    rc, found = setup.check()
    # The others would take it for another host than the daemon.
    it = of(found, "peers", "this host")
    assert rc == 1 and it["result"] == "warning" and "no key pair yet" in it["text"]
    it = found["peers", ""]
    assert it["result"] == "failed" and "does not name" in it["text"] and c_host[0].ip in it["text"]
    assert "that host is not asked: name it in `peers` on every host, or take its key away" in it["next"]
    it = of(found, "domain", "vm1")
    assert f"{c_host[0].ip} (not asked)" in it["text"] and "all of these say so" not in it["next"]
    c_host[1].stop()
    setup.write(listener="multicast", peers=None)
    rc, found = setup.check()
    assert rc == 0 and "alone" in found["peers", ""]["text"] and not [it for it in found if it[0] == "domain"]


@pytest.fixture
def host_pair(setup):
    """The key pair of a daemon that ran here."""
    setup.state.mkdir(mode=0o700)
    (setup.state / "host.key").write_text("17" * 32 + "\n")


def test_a_named_host_that_answers_the_daemon_and_one_that_can_not(setup, stage, host_pair, tmp_path):
    """Without a multicast listener: only the messages of hosts reach it, as with the daemon."""
    node = stage.net.node("other")
    try:
        key = programs.write_key(tmp_path / "hosts.key", b"a key that no guest has")
        config = programs.write_config(tmp_path / "other.conf", f"""
            fence_virtd {{ listener = "tcp"; backend = "libvirt"; peer_key_file = "{key}"; }}
            listeners {{ tcp {{ key_file = "{setup.key}"; address = "0.0.0.0"; }} }}
            backends {{ libvirt {{ uri = "{setup.uri}"; }} }}""", peers=stage.host.ip)
        daemon = programs.Daemon(node, config, program=VIRTD, ready="tcp")
        before = files(setup.state)

        def check(options=""):
            setup.write(listener="tcp", peers=node.ip, options=options)
            rc, found = setup.check()
            return rc, of(found, "peers", node.ip)

        rc, it = check(f'peer_key_file = "{key}";')
        assert rc == 0 and it["result"] == "ok" and "answers the daemon's questions" in it["text"]
        # The key of the listener alone: the other one drops the messages.
        rc, it = check()
        assert rc == 1 and it["result"] == "failed" and "nothing came back" in it["text"]
        assert "same key for hosts" in it["next"] and "1229" in it["next"]
        rc, it = check(f'peer_key_file = "{key}"; peer_port = "1999";')
        assert rc == 1 and "nothing takes messages of hosts there" in it["text"] and "1999" in it["next"]
        daemon.stop()
        rc, it = check(f'peer_key_file = "{key}";')
        # A system refuses one datagram a second: after the check before it may be silent.
        assert rc == 1 and it["result"] == "failed" and "does not answer" in it["text"] and "fence_virtd" in it["next"]
        assert files(setup.state) == before
    finally:
        stage.net.remove("other")


def files(directory):
    return {it.name: it.read_bytes() for it in directory.iterdir()}


def test_domains_of_two_uris(setup):
    other = testdriver.write(setup.directory / "other.xml", [testdriver.Domain("vm1", testdriver.SHUTOFF), "own"])
    setup.write(libvirt=f'uri1 = "{other}";')
    rc, found = setup.check()
    it = of(found, "domain", "vm1")
    assert rc == 0 and it["result"] == "ok" and other in it["text"] and f"this host ({setup.uri})" in it["text"]
    assert len([it for it in found if it[0] == "domain"]) == 1


def test_nobody_is_looked_for(setup):
    """By the word of the administrator, and for want of a group."""
    setup.write(listener="tcp")
    rc, found = setup.check()
    it = found["peers", ""]
    assert rc == 0 and it["result"] == "ok" and 'peers = "none" is set' in it["text"]
    setup.write(listener="tcp", peers=None)
    rc, found = setup.check()
    it = found["peers", ""]
    assert rc == 0 and it["result"] == "warning" and "other hosts are not looked for" in it["text"]
    assert "name them in `peers`" in it["next"]
    setup.state.mkdir()
    setup.write(listener="tcp", options=f'state_dir = "{setup.state}";', peers=None)
    daemon = programs.Daemon(setup.stage.host, setup.file, program=VIRTD, ready="tcp")
    try:
        daemon.wait_log("WARN.*no multicast listener: other hosts are not looked for; name them in `peers`")
    finally:
        daemon.stop()


def test_a_silent_host_is_named_until_it_is_forgotten(setup, daemon, c_host):
    ip = c_host[0].ip
    status = setup.run("--status", "-f", setup.file)
    assert f"other host {ip} (C daemon): last heard " in status.out, status
    c_host[1].stop()
    rc, found = setup.check()
    it = of(found, "peers", ip)
    assert rc == 1 and it["result"] == "failed" and "does not answer; last heard" in it["text"]
    assert "omains may run there" in it["next"] and f"fence_virtd --forget {ip}" in it["next"]
    # Only who is known can be forgotten.
    result = setup.run("--forget", "10.9.9.9", "-f", setup.file)
    assert result.rc == 1 and result.out == "" and f"there are: {ip}" in result.err
    assert setup.run("--forget").rc == 1
    assert knows(setup, c_host)
    result = setup.run("--forget", ip, "-f", setup.file)
    assert result.rc == 0 and result.out.startswith(f"forgotten: {ip}\n") and result.err == ""
    net.wait_until(lambda: not knows(setup, c_host))
    daemon.wait_log("gone for good")
    rc, found = setup.check()
    assert rc == 0 and "alone" in found["peers", ""]["text"]


def test_a_host_that_is_there_is_found_again(setup, daemon, c_host):
    """Although an administrator forgot it."""
    since = len(daemon.lines)
    assert setup.run("--forget", "all", "-f", setup.file).rc == 0
    daemon.wait_log(f"gone for good.*forgotten={c_host[0].ip}", since=since)
    # It may answer before the file without it was written.
    daemon.wait_log("another host was heard", timeout=90, since=since)
    net.wait_until(lambda: knows(setup, c_host))
