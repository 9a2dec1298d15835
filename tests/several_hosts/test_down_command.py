# SPDX-License-Identifier: GPL-2.0-or-later
"""A host of ours that names another one which is silent, and the program that proves that one down (`peer_down_command`).

Run: SIDE=ours /usr/bin/python3 -m pytest tests/several_hosts/test_down_command.py        (root; the test driver of libvirt)
"""

import signal

import pytest

from lab import net, programs, testdriver

OURS = str(programs.OURS_DIR / "fence_virtd")
AGENT = str(programs.OURS_DIR / "fence_virt")
OK, FAILED, OFF = 0, 1, 2


class Site:
    """A host that has "x" as off, a guest, and a host without any daemon that the first one names."""

    def __init__(self, directory):
        self.directory = directory
        self.net = net.Net()
        self.guest, self.host, self.silent = (self.net.node(it) for it in ("guest", "host", "silent"))
        self.key = programs.write_key(directory / "key")
        self.audit = directory / "audit"
        self.uri = testdriver.write(directory / "x.xml", [testdriver.Domain("x", testdriver.SHUTOFF)])
        self.daemon = None

    def command(self, name, body):
        """A program with this body."""
        path = self.directory / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    def write(self, command=None):
        more = f'peer_down_command = "{command}";' if command else ""
        return programs.write_config(self.directory / "host.conf", f"""
            fence_virtd {{ listener = "tcp"; backend = "libvirt"; audit_log = "{self.audit}"; {more} }}
            listeners {{ tcp {{ key_file = "{self.key}"; address = "{self.host.ip}"; }} }}
            backends {{ libvirt {{ uri = "{self.uri}"; }} }}""", peers=self.silent.ip)

    def serve(self, command=None):
        self.stop()
        self.daemon = programs.Daemon(self.host, self.write(command), program=OURS, ready="tcp")

    def reload(self, command=None):
        self.write(command)
        before = len(self.daemon.lines)
        self.daemon.send_signal(signal.SIGHUP)
        self.daemon.wait_log("new configuration is in force", since=before)

    def ask(self, action):
        """What the guest is told of "x": exit code, and the reason in the audit record."""
        before = len(programs.audit_records(self.audit)) if self.audit.exists() else 0
        result = programs.run_agent(self.guest, "-o", action, "-H", "x", "-T", self.host.ip, "-k", self.key, "-t", "25",
                                    program=AGENT, timeout=60)
        net.wait_until(lambda: len(programs.audit_records(self.audit)) > before)
        return result.rc, programs.audit_records(self.audit)[-1]["reason"] or ""

    def list(self):
        """What the guest is shown of "x" in a list."""
        result = programs.run_agent(self.guest, "-o", "list", "-T", self.host.ip, "-k", self.key, "-t", "25", program=AGENT,
                                    timeout=60)
        assert result.rc == 0, result
        return [line.split()[-1] for line in result.out.splitlines() if line.split()[0] == "x"]

    def stop(self):
        if self.daemon:
            self.daemon.stop()

    def close(self):
        self.stop()
        self.net.close()


@pytest.fixture
def site(tmp_path):
    it = Site(tmp_path)
    yield it
    it.close()


def test_a_silent_host_that_is_proved_down_and_the_record_that_says_so(site):
    proves = site.command("proves", 'echo "$*" >> "${0%/*}/asked"; echo "outlet 7 of $1 is off"')
    refuses = site.command("refuses", "echo no such outlet >&2; exit 3")
    site.serve(refuses)
    for action in ("status", "off"):
        rc, reason = site.ask(action)
        assert rc == FAILED and site.silent.ip in reason and "no such outlet" in reason, reason
    # Another command, by a reload: the daemon was started with one, so its sandbox lets it start programs.
    site.reload(proves)
    word = f"host {site.silent.ip}:1229 is down: {proves} says so: outlet 7 of {site.silent.ip} is off"
    assert site.ask("status") == (OFF, word)
    rc, reason = site.ask("off")
    assert rc == OK and reason == f"was off already ({word})", reason
    assert set((site.directory / "asked").read_text().splitlines()) == {f"{site.silent.ip} {site.silent.ip}"}
    assert "silent, and down" in site.daemon.log


def test_a_command_that_comes_with_a_reload_needs_a_restart(site):
    """The sandbox of a daemon without programs lets it start none, and can't be widened."""
    proves = site.command("proves", "exit 0")
    site.serve()
    site.reload(proves)
    assert "peer_down_command" in site.daemon.log and "restart fence_virtd to use it" in site.daemon.log, site.daemon.log
    rc, reason = site.ask("status")
    assert rc == FAILED and site.silent.ip in reason and "can't be started" not in reason, reason
    # A list is no evidence: it has what this host knows, and no word for "can't tell" (several-hosts.md).
    assert site.list() == ["off"]
    site.serve(proves)
    rc, reason = site.ask("status")
    assert rc == OFF and f"{proves} says so" in reason, reason
