# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts whose domains are QEMU processes, for what libvirt's test driver can't show: ends seen at the kernel, and migration."""

import subprocess

from lab import judged, rig
from lab.hypervisor import Hypervisor, until

#: Seconds for a process to end.
PATIENCE = 60


class Site(rig.Site):
    """One host's hypervisor and what `rig.Machine` needs beside it."""

    def __init__(self, hosts, host, reaper):
        self.at, self.host, self.reaper = host, host.place, reaper
        self.net, self.key, self.scratch = hosts.net, hosts.key, hosts.directory
        self.hypervisor = Hypervisor(host.place.ns).start()

    def migrate(self, name, to, *extra, keeps=False):
        """A live migration in the background: a Popen that ends with it. `keeps`: the definition stays here."""
        moves = [] if keeps else ["--persistent", "--undefinesource"]
        return subprocess.Popen(
            ["virsh", "-q", "-c", self.hypervisor.uri, "migrate", "--live", "--unsafe", *moves, name, to.hypervisor.uri,
             "--migrateuri", f"tcp://{to.host.ip}:49200", *extra],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def state(self, name):
        """libvirt's word for a domain's state; None when it knows none of that name."""
        asked = self.hypervisor.virsh("domstate", name, check=False)
        return asked.stdout.strip() if asked.returncode == 0 else None

    def close(self):
        """Ends the hypervisor."""
        self.hypervisor.stop()


def gone(sites, domain, what, logs):
    """Success was told of an off: no site has the domain running, and none has a process of it in the end. At the target of a
    migration one may be there for a moment more, which waits for the memory that will not come."""
    def has_ended():
        running = [site.host.name for site in sites if site.state(domain.name) == "running"]
        if running:
            raise judged.UntrueAnswer(f"{what}: off, and it runs at {running}\n{logs()}")
        return not any(domain.uuid in site.hypervisor.processes() for site in sites)
    until(has_ended, PATIENCE, f"{what}: its processes have ended")


def serve(hosts, sites, **options):
    """Daemons of ours at all hosts, at the sites' with QEMU."""
    uris = {site.at: site.hypervisor.uri for site in sites}
    for host in hosts.all:
        host.serve("ours", wait=False, uri=uris.get(host), **options)
    for host in hosts.all:
        host.wait_joined()
