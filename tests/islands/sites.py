# SPDX-License-Identifier: GPL-2.0-or-later
"""A host with two clusters, red and blue, each with a group and a key of its own."""

import contextlib
import functools
import os

from lab import net, programs, testdriver
from lab.hypervisor import Hypervisor

RED, BLUE = ("red1", "red2"), ("blue1", "blue2", "blue3")


class Site:
    """A host with both listeners, and a guest of each cluster. The host cannot tell which domain a guest is. `red`, `blue`: the members
    of each group; `green`: those of a third one, if there are any; `keys`: further groups with a key of 4 KiB each; `uris`: further
    hypervisors; `devices`: blocks of the agent backend beside them."""

    def __init__(self, directory, uri=None, program=None, red=RED, blue=BLUE, green=(), keys=0, uris=(), devices=(), env=None):
        self.program, self.env = program or programs.OURS_DIR / "fence_virtd", env
        self.net, self.audit = net.Net(), directory / "audit"
        self.host, self.red, self.blue = (self.net.node(name) for name in ("host", "red", "blue"))
        self.keys = {name: programs.write_key(directory / name, os.urandom(512)) for name in ("all", "red", "blue", "green")}
        uri = uri or testdriver.write(directory / "domains.xml", [*red, *blue])
        groups = "".join(f'group {{ name = "{name}"; key_file = "{self.keys[name]}"; {members} }}' for name, members in (
            (name, "".join(f'uuid = "{it}"; ' for it in members))
            for name, members in (("red", red), ("blue", blue), ("green", green)) if members))
        for number in range(keys):
            file = programs.write_key(directory / f"other{number}", os.urandom(4096))
            groups += f'group {{ name = "g{number}"; uuid = "other"; key_file = "{file}"; }}'
        further = " ".join(f'uri{number} = "{it}";' for number, it in enumerate(uris, 1))
        backend, agent = ("libvirt, agent", f"agent {{ {' '.join(devices)} }}") if devices else ("libvirt", "")
        self.config = programs.write_config(directory / "fence_virt.conf", f"""
            fence_virtd {{ listener = "multicast, tcp"; backend = "{backend}"; audit_log = "{self.audit}"; }}
            listeners {{
                multicast {{ key_file = "{self.keys['all']}"; family = "ipv4"; interface = "eth0"; }}
                tcp {{ key_file = "{self.keys['all']}"; address = "{self.host.ip}"; }}
            }}
            backends {{ libvirt {{ uri = "{uri}"; {further} }} {agent} }}
            groups {{ {groups} }}""")
        self.start()
        self.daemon.wait_serving()

    def start(self, ready="tcp"):
        """Starts the daemon, anew where one was here before."""
        # libvirt takes seconds for thousands of domains.
        self.daemon = programs.Daemon(self.host, self.config, "-w", ready=ready, program=self.program, env=self.env)

    def restart(self):
        """Ends the daemon and starts the next one."""
        self.daemon.end()
        self.start()

    def agent(self, guest, way, target, key, action="off"):
        """An off (or another action) by a guest, in the background."""
        name, where = ("fence_xvm", ()) if way == "multicast" else ("fence_virt", ("-T", self.host.ip))
        return programs.Agent(guest, *where, "-o", action, "-H", target, "-k", self.keys[key], "-t", 30,
                              program=programs.OURS_DIR / name)

    def fence(self, way, target, key="blue", action="off"):
        """An off (or another action) by blue's guest, and its end."""
        return self.agent(self.blue, way, target, key, action).finish()

    def records(self):
        """The audit records so far."""
        return programs.audit_records(self.audit)

    def waited(self, target):
        """Milliseconds for which the last request for a domain waited for its turn; the record follows the answer."""
        records = net.wait_until(lambda: [it for it in self.records() if it["target"] == target])
        return records[-1]["turn_ms"] - records[-1]["resolved_ms"]

    def close(self):
        """Ends everything."""
        self.daemon.stop()
        self.net.close()


class Lab:
    """Directories for Sites, and a libvirtd with QEMU domains, which is started when it is first needed. `many`: the domains of red's where
    lists are asked for."""

    def __init__(self, directory, many=1000):
        self._directory, self._made, self.many = directory, 0, many
        self._open = contextlib.ExitStack()

    @functools.cached_property
    def hypervisor(self):
        """The Hypervisor."""
        return self._open.enter_context(Hypervisor(None))

    def machines(self, names):
        """Running machines, by name."""
        return {name: self.hypervisor.domain(name) for name in names}

    def directory(self):
        """A new directory."""
        self._made += 1
        it = self._directory / f"site{self._made}"
        it.mkdir()
        return it

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._open.close()
