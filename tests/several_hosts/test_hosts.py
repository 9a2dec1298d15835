# SPDX-License-Identifier: GPL-2.0-or-later
"""Several hosts on one multicast network, each with its own domains: two of ours and a C daemon.

Run: /usr/bin/python3 -m pytest tests/several_hosts        (root; the test driver of libvirt, packages fence-virtd)
"""

import itertools

import pytest

from lab import net, programs, testdriver

AGENT = str(programs.OURS_DIR / "fence_xvm")
#: Sides of the hosts: ours, the C daemon of this machine, and that of Debian sid.
SIDES = {"ours1": "ours", "ours2": "ours", "installed": "installed", "today": "today"}
C_HOSTS = ("installed", "today")
#: What every host knows; only ours1 runs it, the others have kept it as off.
MOVED = "moved"


class Hosts:
    """Hosts that run, and a guest."""

    def __init__(self, directory, kinds):
        self.net = net.Net()
        self.guest = self.net.node("guest")
        self.key = programs.write_key(directory / "key")
        self.domains = {}
        self.daemons = [self._start(directory, name) for name in kinds]

    def _start(self, directory, name):
        own = [testdriver.Domain(f"{name}-vm{n}") for n in (2, 1)]
        own.append(testdriver.Domain(f"{name}-off", testdriver.SHUTOFF))
        self.domains[name] = [d.name for d in own]
        state = testdriver.RUNNING if name == "ours1" else testdriver.SHUTOFF
        uri = testdriver.write(directory / f"{name}.xml", [*own, testdriver.Domain(MOVED, state)])
        config = programs.write_config(
            directory / f"{name}.conf", backend_options={"uri": uri},
            listener_options={"key_file": self.key, "family": "ipv4", "interface": "eth0"},
            daemon_options={"module_path": programs.modules(name)} if name in C_HOSTS else None)
        return programs.Daemon(self.net.node(name), config, program=programs.program(SIDES[name], "fence_virtd"), ready="udp")

    def ask(self, *args):
        """Runs our agent at the guest."""
        return programs.run_agent(self.guest, *args, "-k", self.key, program=AGENT, timeout=30)

    def close(self):
        for daemon in self.daemons:
            daemon.stop()
        self.net.close()


@pytest.fixture(scope="module", params=[("ours1", "ours2"), *(("ours1", "ours2", it) for it in C_HOSTS)], ids="-".join)
def hosts(request, tmp_path_factory):
    it = Hosts(tmp_path_factory.mktemp("hosts"), request.param)
    yield it
    it.close()


def test_the_list_is_that_of_all_hosts(hosts):
    expected = {d: "off" if d.endswith("-off") else "on" for d in itertools.chain(*hosts.domains.values())}
    expected[MOVED] = "on"
    for action in ("list", "list-status", "list"):
        r = hosts.ask("-o", action, "-q", "10")
        assert (r.rc, r.err) == (0, "")
        rows = [line.split() for line in r.out.splitlines()]
        assert {name: state for name, _, state in rows} == expected
        assert len(rows) == len(expected), "each domain once"
        assert all(uuid == testdriver.uuid_of(name) for name, uuid, _ in rows)


def test_each_host_s_domains_are_fenced(hosts):
    """The owner does it, whoever calls back first."""
    for name in [d for d in itertools.chain(*hosts.domains.values()) if not d.endswith("-off")]:
        for action, code in (("status", 0), ("off", 0), ("status", 2), ("on", 0), ("reboot", 0), ("status", 0)):
            if set(C_HOSTS) & set(hosts.domains) and action == "status" and not name.startswith(C_HOSTS):
                continue        # a C host says "off" of a domain that it has never heard of
            r = hosts.ask("-o", action, "-n", name)
            assert r.rc == code, (action, name, r)


def test_nobody_s_domain(hosts):
    r = hosts.ask("-o", "on", "-n", "nobody", "-t", "10")
    assert r.rc == 1, r


def test_monitor(hosts):
    assert hosts.ask("-o", "monitor").rc == 0


def test_a_host_that_is_gone_is_not_waited_for(hosts):
    """Last: it ends a host."""
    hosts.daemons.pop(1).stop()
    gone = hosts.domains.pop("ours2")
    r = hosts.ask("-o", "list")
    assert r.rc == 0 and not any(d in r.out for d in gone)
    assert all(d in r.out for d in itertools.chain(*hosts.domains.values()))
