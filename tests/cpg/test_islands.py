# SPDX-License-Identifier: GPL-2.0-or-later
"""Clusters with groups and keys of their own, at hosts of one corosync cluster: nothing of one waits for the other, at any host."""

from lab import programs
from lab.hypervisor import hanging_off, until

from .sites import gone, serve

#: Seconds for anything to happen.
PATIENCE = 60
#: Seconds within which nothing waits for an off that hangs: that would be at least as long as its request lasts.
SOON = 15


def test_another_clusters_off_that_hangs(hosts, sites):
    """libvirtd of h1 stands still inside an off of red's, which is under way. Nobody knows who asks for what; but for the keys each could be the
    other's machine. What red itself asks for elsewhere waits."""
    keys = {name: programs.write_key(hosts.directory / f"key-of-{name}", name.encode() * 64) for name in ("red", "blue")}
    members = {"red": ("red1", "red2"), "blue": ("blue1", "blue2")}
    groups = [{"name": name, "uuid": list(members[name]), "key_file": keys[name]} for name in keys]
    serve(hosts, sites, groups=groups)

    def by(name):
        return {"extra": ("-k", keys[name]), "guest": name == "blue"}
    red = sites[0].hypervisor.domain("red1")
    others = [sites[1].hypervisor.domain(name) for name in ("red2", *members["blue"])]
    try:
        for host in ("h2", "h3"):
            for it in (red, *others):
                hosts.wait_status(host, it.name, 0, **by(it.name.rstrip("12")))
        with hanging_off(sites[0].hypervisor, red, lambda: hosts.agent("h1", "off", "red1", **by("red"))) as off:
            second = hosts.agent("h3", "off", "red2", **by("red"))
            until(lambda: "target=red2" in hosts.h3.daemon.log, PATIENCE, hosts.logs())
            for host, it in zip(("h2", "h3"), others[1:], strict=True):
                result = hosts.ask(host, "off", it.name, **by("blue"))
                assert result.rc == 0 and result.seconds < SOON, f"{host}: {result}\n{hosts.logs()}"
                gone(sites[1:], it, host, hosts.logs)
            assert off.process.poll() is None and second.process.poll() is None, hosts.logs()
            assert others[0].pid(), "it may be the machine that goes down next"
            second.process.kill()
            assert off.finish(PATIENCE).rc == 1 and second.finish(PATIENCE).rc != 0
    finally:
        for it in (red, *others):
            it.remove()
