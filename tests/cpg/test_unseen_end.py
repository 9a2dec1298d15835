# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine ends while libvirt at its host, just started, takes it up again: libvirt sends no event, and the other hosts have the machine on.
Whoever is asked finds it off, and hosts don't ask each other without a pause."""

import os
import signal
import threading

import pytest

from lab import process
from lab.hypervisor import until

from .sites import serve

#: Questions of other hosts to the owner that are enough for one request, many times over. Without pauses it was 160 in each second.
QUESTIONS = 20


def ends_unseen(hosts, site, name):
    """h2's machine has ended, and h2 has read it before as running."""
    domain = site.hypervisor.domain(name)
    for asked in ("h1", "h2", "h3"):
        hosts.wait_status(asked, name, 0)
    qemu = domain.process()
    process.freeze(qemu.pid)
    connections = hosts.h2.daemon.log.count("connected to libvirt")
    site.hypervisor.kill()
    # It waits for the QEMU that stands still.
    anew = threading.Thread(target=site.hypervisor.start)
    anew.start()
    try:
        until(lambda: hosts.h2.daemon.log.count("connected to libvirt") > connections, 30, f"h2 has libvirt again\n{hosts.logs()}")
    finally:
        os.kill(qemu.pid, signal.SIGKILL)
        anew.join()
    until(lambda: site.state(name) == "shut off", 30, f"{name} is off")
    return domain


@pytest.mark.parametrize(("asked", "action", "code"), [("h1", "status", 2), ("h2", "status", 2), ("h1", "off", 0), ("h3", "on", 0)])
def test_an_end_of_which_libvirt_tells_nobody(hosts, sites, asked, action, code):
    serve(hosts, sites)
    domain = ends_unseen(hosts, sites[1], "unseen")
    try:
        before = len(hosts.h2.records())
        result = hosts.ask(asked, action, "unseen", timeout=10)
        assert result.rc == code, f"{result}\n{hosts.logs()}"
        questions = [it for it in hosts.h2.records()[before:] if it["transport"] == "cpg"]
        assert len(questions) <= QUESTIONS, f"{len(questions)} questions to h2"
        hosts.wait_status("h3", "unseen", 0 if action == "on" else 2)
    finally:
        domain.remove()
