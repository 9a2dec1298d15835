# SPDX-License-Identifier: GPL-2.0-or-later
"""Two clusters on one daemon, red and blue, each with a group and a key of its own: blue's fences do not wait for red's trouble.

Run: SIDE=ours /usr/bin/python3 -m pytest tests/islands        (root; libvirt's test driver, and a libvirtd with QEMU)
"""

import json
import os

import pytest

from lab import net, programs, testdriver
from lab.hypervisor import Hypervisor

RED, BLUE = ("red1", "red2"), ("blue1", "blue2", "blue3")


class Site:
    """A host with both listeners, and a guest of each cluster. The host cannot tell which domain a guest is. `red`: the members
    of red's group."""

    def __init__(self, directory, uri=None, program=None, red=RED, env=None):
        self.program, self.env = program or programs.OURS_DIR / "fence_virtd", env
        self.net, self.audit = net.Net(), directory / "audit"
        self.host, self.red, self.blue = (self.net.node(name) for name in ("host", "red", "blue"))
        self.keys = {name: programs.write_key(directory / name, os.urandom(512)) for name in ("all", "red", "blue")}
        uri = uri or testdriver.write(directory / "domains.xml", [*red, *BLUE])
        groups = "".join(f'group {{ name = "{name}"; key_file = "{self.keys[name]}"; {members} }}' for name, members in (
            (name, "".join(f'uuid = "{it}"; ' for it in members)) for name, members in (("red", red), ("blue", BLUE))))
        self.config = programs.write_config(directory / "fence_virt.conf", f"""
            fence_virtd {{ listener = "multicast, tcp"; backend = "libvirt"; audit_log = "{self.audit}"; }}
            listeners {{
                multicast {{ key_file = "{self.keys['all']}"; family = "ipv4"; interface = "eth0"; }}
                tcp {{ key_file = "{self.keys['all']}"; address = "{self.host.ip}"; }}
            }}
            backends {{ libvirt {{ uri = "{uri}"; }} }}
            groups {{ {groups} }}""")
        self.start()

    def start(self, ready="tcp"):
        """Starts the daemon, anew where one was here before."""
        self.daemon = programs.Daemon(self.host, self.config, ready=ready, program=self.program, env=self.env)

    def restart(self):
        """Ends the daemon and starts the next one."""
        self.daemon.end()
        self.start()

    def agent(self, guest, way, target, key):
        """An off by a guest, in the background."""
        name, where = ("fence_xvm", ()) if way == "multicast" else ("fence_virt", ("-T", self.host.ip))
        return programs.Agent(guest, *where, "-o", "off", "-H", target, "-k", self.keys[key], "-t", 30,
                              program=programs.OURS_DIR / name)

    def fence(self, way, target, key="blue"):
        """An off by blue's guest, and its end."""
        return self.agent(self.blue, way, target, key).finish()

    def waited(self, target):
        """Milliseconds for which the last request for a domain waited for its turn; the record follows the answer."""
        records = net.wait_until(lambda: [
            it for it in map(json.loads, self.audit.read_text().splitlines()) if it["target"] == target])
        return records[-1]["turn_ms"] - records[-1]["resolved_ms"]

    def close(self):
        """Ends everything."""
        self.daemon.stop()
        self.net.close()


@pytest.fixture
def site(tmp_path):
    """A Site on libvirt's test driver."""
    it = Site(tmp_path)
    yield it
    it.close()


@pytest.fixture(scope="session")
def hypervisor():
    """A libvirtd with QEMU domains."""
    with Hypervisor(None) as it:
        yield it


@pytest.fixture
def machines(tmp_path, hypervisor):
    """A Site with real machines, and the domains by name."""
    domains = {name: hypervisor.domain(name) for name in (*RED, *BLUE)}
    it = Site(tmp_path, hypervisor.uri)
    yield it, domains
    it.close()
