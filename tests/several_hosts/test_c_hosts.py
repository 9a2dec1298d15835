# SPDX-License-Identifier: GPL-2.0-or-later
"""One host of ours beside C daemons: what is said of a domain that is off at ours, whatever a C host says of it.

The guest asks ours by TCP, so that no C host answers in its place.

Run: /usr/bin/python3 -m pytest tests/several_hosts        (root; the test driver of libvirt, package fence-virtd)
"""

import itertools
import signal

import pytest

from lab import net, programs, testdriver

OURS = str(programs.OURS_DIR / "fence_virtd")
AGENT = str(programs.OURS_DIR / "fence_virt")
XVM = str(programs.OURS_DIR / "fence_xvm")
OFF, ON = testdriver.SHUTOFF, testdriver.RUNNING
IS_ON, FAILED, IS_OFF = 0, 1, 2
_numbers = itertools.count()


class Site:
    """A host of ours that has "x" as off, a guest, and C hosts that a case adds."""

    def __init__(self, directory):
        self.directory = directory
        self.net = net.Net()
        self.guest, self.ours = self.net.node("guest"), self.net.node("ours")
        self.key = programs.write_key(directory / "key")
        self.audit = directory / "audit"
        self.daemons = []

    def c_host(self, *domains, groups=None, second=None):
        """A C daemon with these domains; `second`: those of a second URI. Its node, with the daemon."""
        number = next(_numbers)
        node = self.net.node(f"c{number}")
        files = [testdriver.write(self.directory / f"c{number}-{at}.xml", list(it))
                 for at, it in enumerate([domains, second]) if it is not None]
        config = programs.write_config(
            self.directory / f"c{number}.conf", groups=groups,
            backend_options=dict(zip(("uri", "uri1"), files)),
            listener_options={"key_file": self.key, "family": "ipv4", "interface": "eth0"})
        self.daemons.append(programs.Daemon(node, config, program=programs.program("reference", "fence_virtd"), ready="udp"))
        return node, self.daemons[-1]

    def serve(self, *known):
        """Starts ours, which finds these hosts."""
        state = self.directory / "state"
        state.mkdir()
        uri = testdriver.write(self.directory / "ours.xml", [testdriver.Domain("x", OFF)])
        config = programs.write_config(self.directory / "ours.conf", f"""
            fence_virtd {{ listener = "multicast, tcp"; backend = "libvirt"; state_dir = "{state}"; audit_log = "{self.audit}"; }}
            listeners {{
                multicast {{ key_file = "{self.key}"; interface = "eth0"; }}
                tcp {{ key_file = "{self.key}"; address = "{self.ours.ip}"; }}
            }}
            backends {{ libvirt {{ uri = "{uri}"; }} }}""", peers=None)
        self.daemons.append(programs.Daemon(self.ours, config, program=OURS, ready="udp"))
        hosts = state / "hosts"
        net.wait_until(lambda: hosts.exists() and all(node.ip in hosts.read_text().split() for node, _ in known))

    def status(self):
        """What the guest is told of "x" by ours: exit code, and the reason in the audit record."""
        before = len(programs.audit_records(self.audit))
        result = programs.run_agent(self.guest, "-o", "status", "-H", "x", "-T", self.ours.ip, "-k", self.key, "-t", "25",
                                    program=AGENT, timeout=30)
        net.wait_until(lambda: len(programs.audit_records(self.audit)) > before)
        return result.rc, str(programs.audit_records(self.audit)[-1])

    def close(self):
        for daemon in self.daemons:
            daemon.stop(signal.SIGKILL)
        self.net.close()


@pytest.fixture
def site(tmp_path):
    it = Site(tmp_path)
    yield it
    it.close()


@pytest.mark.parametrize("there, code", [([testdriver.Domain("x", OFF), "y"], IS_OFF), (["y"], IS_OFF), ([], IS_OFF),
                                         (["x", "y"], IS_ON), ([testdriver.Domain("x", testdriver.PAUSED)], IS_ON)],
                         ids=["off", "absent", "empty", "on", "paused"])
def test_what_a_c_host_lists(site, there, code):
    known = site.c_host(*there)
    site.serve(known)
    rc, record = site.status()
    assert rc == code, record


def test_all_c_hosts_count(site):
    known = [site.c_host("y"), site.c_host("x"), site.c_host(testdriver.Domain("x", OFF))]
    site.serve(*known)
    assert site.status()[0] == IS_ON
    known[1][1].stop(signal.SIGKILL)
    rc, record = site.status()
    assert rc == FAILED and f"fence_virtd --forget {known[1][0].ip}" in record


@pytest.mark.parametrize("action", ["off", "reboot"])
@pytest.mark.parametrize("there", [["y"], []], ids=["others", "none"])
def test_a_c_host_that_fails_first(site, action, there):
    """It knows no "x", and says at once that the request failed. Ours, which has it, asks that host first."""
    known = site.c_host(*there)
    site.serve(known)
    for _ in range(3):
        result = programs.run_agent(site.guest, "-o", action, "-H", "x", "-k", site.key, "-t", "25", program=XVM, timeout=30)
        assert result.rc == 0, (result, programs.audit_records(site.audit))


def test_groups_of_a_c_host_hide_a_domain(site):
    """Its list leaves out what this host may not see: then it shows nothing."""
    known = site.c_host("x", groups=[{"name": "others", "ip": "10.99.0.1", "uuid": testdriver.uuid_of("x")}])
    site.serve(known)
    rc, record = site.status()
    assert rc == FAILED and "may not tell this host of the domain" in record


def test_the_uris_of_a_c_host_are_mixed_up(site):
    """The list of the second URI overwrites the first one's: what is left out of it may be on."""
    known = site.c_host(testdriver.Domain("x", OFF), second=["a", "b"])
    site.serve(known)
    for _ in range(3):
        rc, record = site.status()
        assert rc == FAILED and known[0].ip in record


def test_a_c_host_that_stands_still(site):
    known = site.c_host(testdriver.Domain("x", OFF))
    site.serve(known)
    assert site.status()[0] == IS_OFF
    known[1].process.send_signal(signal.SIGSTOP)
    rc, record = site.status()
    known[1].process.send_signal(signal.SIGCONT)
    assert rc == FAILED and "does a C daemon still run there" in record
    net.wait_until(lambda: site.status()[0] == IS_OFF)


def test_a_c_host_that_is_slow_when_ours_starts(site):
    """It stands still while all are looked for the first time, and calls back late. Then it counts."""
    known = site.c_host("x")
    known[1].process.send_signal(signal.SIGSTOP)
    site.serve()
    hosts = site.directory / "state/hosts"
    assert site.status()[0] == IS_OFF, "nobody knows that it is there"
    known[1].process.send_signal(signal.SIGCONT)
    net.wait_until(lambda: known[0].ip in hosts.read_text().split(), 10)
    assert site.status()[0] == IS_ON


def test_another_key_is_no_host(site):
    """Whoever does not hold the key is not known, and nobody waits for it."""
    site.key, other = programs.write_key(site.directory / "other", b"another key"), site.key
    site.c_host("x")
    site.key = other
    site.serve()
    assert site.status()[0] == IS_OFF
    hosts = site.directory / "state/hosts"
    assert not hosts.exists() or "host " not in hosts.read_text().partition("\n")[2]
