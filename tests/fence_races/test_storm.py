# SPDX-License-Identifier: GPL-2.0-or-later
"""One client fences many domains at once."""

import concurrent.futures
import os
import subprocess
import time

from lab import testdriver, wire

from lab.rig import OK

STORM = 64
#: Domains of the real hypervisor: a start of QEMU takes a quarter of a second and more.
REAL = 64 if int(os.environ.get("ROUNDS", "3")) >= 200 else 16


def ask_all(site, names, timeout):
    """One client, one request for each domain, all in the air at once; outcomes and seconds in all."""
    key, guest = wire.read_key(site.key), site.guest()

    def ask(at):
        client = wire.FakeClient(guest, key)
        return client.multicast(wire.OFF, names[at], timeout=timeout, port=2000 + at)

    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        outcomes = list(pool.map(ask, range(len(names))))
    return outcomes, time.monotonic() - start


def virsh_all(uri, names):
    """The same by as many `virsh destroy` at once; seconds in all."""
    start = time.monotonic()
    running = [subprocess.Popen(["virsh", "-q", "-c", uri, "destroy", name], stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for name in names]
    assert not any(it.wait() for it in running)
    return time.monotonic() - start


def test_a_client_that_asks_for_all_at_once(site, start_host, tmp_path, note):
    names = [f"d{i}" for i in range(STORM)]
    uri = testdriver.write(tmp_path / "domains.xml", names)
    start_host(uri=uri)
    outcomes, seconds = ask_all(site, names, timeout=40)
    beside = virsh_all(uri, names)
    good = sum(it.code == OK for it in outcomes)
    note(f"{good} of {STORM} fenced in {seconds:.2f} s; {STORM} times virsh destroy: {beside:.2f} s; "
         f"ratio {seconds / beside:.2f}")
    assert good == STORM, outcomes
    assert seconds < 20


def test_agents_that_start_at_once(site, start_host, agents, tmp_path, note):
    """One process each. The reference's agents can share a node only over TCP: by multicast all want port 1229."""
    names = [f"d{i}" for i in range(STORM)]
    uri = testdriver.write(tmp_path / "domains.xml", names)
    over_tcp = agents == "reference"
    host = start_host(uri=uri, listener="tcp" if over_tcp else "multicast")
    where = ["-T", host.node.ip] if over_tcp else []
    start = time.monotonic()
    running = [site.agent(agents, *where, "-o", "off", "-H", name, wait=False,
                          name="fence_virt" if over_tcp else "fence_xvm") for name in names]
    results = [it.finish(60) for it in running]
    seconds = time.monotonic() - start
    good = sum(it.rc == OK for it in results)
    note(f"{good} of {STORM} agents succeed, all in {seconds:.2f} s")
    assert good == STORM, [it for it in results if it.rc != OK][:3]
    assert seconds < 25


def test_real_domains(site, start_host, note):
    names = [f"storm{i}" for i in range(REAL)]
    start_host()

    def all_up():
        domains = [site.hypervisor.domain(name) for name in names]
        return [it.process() for it in domains]

    processes = all_up()
    outcomes, seconds = ask_all(site, names, timeout=40)
    good = sum(it.code == OK for it in outcomes)
    ended = sum(it.ended() for it in processes)
    all_up()
    beside = virsh_all(site.hypervisor.uri, names)
    note(f"{good} of {REAL} told success, {ended} ended, in {seconds:.2f} s; {REAL} times virsh destroy: "
         f"{beside:.2f} s; ratio {seconds / beside:.2f}")
    assert good == ended == REAL, outcomes
    assert seconds < 30
