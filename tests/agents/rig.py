# SPDX-License-Identifier: GPL-2.0-or-later
"""What the cases stand on: devices in words, a host with our daemon on them, a guest that asks, and an onlooker.

    bmc = device("bmc", "fence_redfish", "node1", options={"ip": …, "password_file": site.secret("hunter2")})
    host = start_host([bmc])                      # a Host: its daemon, log and audit file
    result = site.ask("-o", "off", "-H", "node1") # our fence_xvm on a guest: a programs.Result
    runs = host.runs("off")                       # what was run for the last request of that action, by the audit file

Every secret that the site has written is looked for in the daemon's log and in the audit file when a host ends, and an
`Onlooker` looks for it in the command lines and environments of all processes meanwhile.

Must never judge what an endpoint did: that is for the cases, which ask the endpoint itself.
"""

import functools
import os
import pathlib
import re
import subprocess
import threading
import time

from lab import net, programs
from lab.hypervisor import Hypervisor
from lab import rig

OK, FAILED, OFF, DENIED = 0, 1, 2, 3


class Site(rig.Site):
    """A host, guests and endpoints on one bridge; one for the whole session. `hypervisor` is there for who asks for it."""

    def __init__(self, scratch):
        self.scratch = pathlib.Path(scratch)
        self.net = net.Net()
        self.host = self.net.node("host")
        self.key = programs.write_key(self.scratch / "key")
        self.secrets = []

    @functools.cached_property
    def hypervisor(self):
        """A libvirtd of its own with QEMU domains, on a node `hv`."""
        return Hypervisor(self.place("hv").ns).start()

    def place(self, name):
        """The node of that name, made when it is first asked for."""
        return self.net.nodes.get(name) or self.node(name)

    def ask(self, *args, **kw):
        """Our fence_xvm on a guest, over multicast unless told otherwise: a Result, or with `wait=False` the Agent that
        runs. `node`: another guest than usual."""
        return self.agent("ours", *args, **kw)

    def secret(self, text):
        """A file with this first line that only its owner can read; returns its path. From now on the text must not be
        seen anywhere."""
        if text not in self.secrets:
            self.secrets.append(text)
        return programs.write_key(self.scratch / f"secret{self.secrets.index(text)}", text.encode() + b"\n")

    def close(self):
        """Ends everything."""
        if "hypervisor" in self.__dict__:
            self.hypervisor.stop()
        self.net.close()


@functools.cache
def venv():
    """The directory of the Python environment with what comes from PyPI (requirements.txt), made if it isn't there."""
    here = programs.REPOSITORY
    done = subprocess.run([here / "scripts/install-venv", "tests/agents/requirements.txt"], stdout=subprocess.PIPE, text=True,
                          check=True)
    return pathlib.Path(done.stdout.strip())


def untouched(domain, qemu):
    """The domain runs on in the same QEMU process."""
    return domain.pid() == qemu.pid and not qemu.ended()


def short(runs):
    """What was run, in words: "bmc off: exit 0"."""
    return [f"{run['device']} {run['action']}: {run['ended']}" for run in runs]


def device(name, agent, plugs="*", *, options=None, domains=(), **keys):
    """Text of a device block. `plugs` None: none but those of `domains`, which are dicts with `name`, and of `plug`, `uuid` and
    `source` what there is. `keys`: plug_option, order, timeout, status_timeout, retries, max_running."""
    body = _lines(agent=agent, plugs=plugs, **keys)
    body += [f"options {{ {' '.join(_lines(**(options or {})))} }}"]
    body += [f'domain = "{it["name"]}" {{ {" ".join(_lines(**{**it, "name": None}))} }}' for it in domains]
    return "\n".join([f'device = "{name}" {{', *(f"    {line}" for line in body), "}"])


def write_config(path, site, devices, *, listener="multicast", backend="agent", libvirt=None, agent=None, virtd=None,
                 extra=""):
    """Writes a fence_virt.conf with these device blocks (`device`). `backend`: "libvirt, agent" with `libvirt` as the URI.
    `agent`: further keys of the agent backend, `virtd`: of fence_virtd; `extra`: more blocks."""
    where = {"multicast": {"interface": "eth0"}, "tcp": {"address": site.host.ip}}[listener]
    blocks = "\n".join(devices)
    libvirt = f'libvirt {{ uri = "{libvirt}"; }}' if libvirt else ""
    return programs.write_config(path, f"""fence_virtd {{
    {" ".join(_lines(listener=listener, backend=backend, **(virtd or {})))}
}}
listeners {{ {listener} {{ {" ".join(_lines(key_file=site.key, **where))} }} }}
backends {{
{libvirt}
agent {{
{" ".join(_lines(**(agent or {})))}
{blocks}
}}
}}
{extra}
""")


class Host(rig.Host):
    """Our daemon on the site's host, with these devices and an audit file. `options` are those of `write_config`;
    `over`: {place: path}, what daemon and agents see in other places (as /etc/ssh)."""

    def __init__(self, site, directory, devices, *, over=None, **options):
        self.site, self.node, self.side = site, site.host, "ours"
        directory.mkdir(exist_ok=True)
        self.audit_file = directory / "audit"
        virtd = {"audit_log": self.audit_file, **(options.pop("virtd", None) or {})}
        self.config = write_config(directory / "fence_virt.conf", site, devices, virtd=virtd, **options)
        ready = {"multicast": "udp", "tcp": "tcp"}[options.get("listener", "multicast")]
        self.daemon = programs.Daemon(self.node, self.config, program=programs.shelved("ours", directory, over), ready=ready,
                                      debug=3)
        self.daemon.wait_serving()

    def record(self, action, count=1):
        """The audit record of the last request of that action, of which `count` were asked, as soon as it is there."""
        return self.wait_records(count, which=lambda it: it["action"] == action)[-1]

    def runs(self, action, count=1):
        """What was run for that request: dicts with device, agent, action, ended ("exit 0"), exit, ms, output."""
        return self.record(action, count).get("runs", [])

    def stop(self):
        """Ends the daemon, which must have been alive, end well, and have kept the secrets."""
        super().stop()
        audit = self.audit_file.read_text() if self.audit_file.exists() else ""
        for number, secret in enumerate(self.site.secrets):
            assert secret not in self.daemon.log, f"secret {number} is in the log"
            assert secret not in audit, f"secret {number} is in the audit file"


class Onlooker:
    """Looks at the command lines and environments of all processes for as long as the block lasts.

        with Onlooker(site) as onlooker: …
        assert onlooker.saw("fence_redfish") and not onlooker.leaks
    """

    def __init__(self, site):
        self._secrets = [secret.encode() for secret in site.secrets]
        self._seen, self._over = set(), threading.Event()
        self.leaks = set()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join(60)

    def saw(self, program):
        """Whether a process with this text in its command line was seen: else the onlooker proves nothing."""
        return any(program.encode() in line for line in self._seen)

    def _look(self):
        while not self._over.is_set():
            for entry in os.listdir("/proc"):
                if entry.isdigit() and int(entry) != os.getpid():
                    self._look_at(pathlib.Path("/proc") / entry)
            time.sleep(0.02)

    def _look_at(self, process):
        try:
            line, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            return      # it has just ended
        self._seen.add(line)
        for number, secret in enumerate(self._secrets):
            for what, text in (("command line", line), ("environment", environment)):
                if secret in text:
                    name = re.sub(rb"\0.*", b"", line, flags=re.DOTALL).decode(errors="backslashreplace")
                    self.leaks.add(f"secret {number} is in the {what} of {name}")


def _lines(**values):
    """`key = "value";` for each that is not None."""
    return [f'{key} = "{value}";' for key, value in values.items() if value is not None]
