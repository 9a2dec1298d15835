# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU that outlives SIGKILL, because its storage hangs: libvirt gives up and says "shut off", and the process may still write."""

import os
import pathlib
import re
import signal
import threading

import pytest

from lab.hanging import HangingDisk
from lab.hypervisor import until

from .hosts import FAILED, OFF, OK, PATIENCE, Hosts
from .test_restarts import own_pid


@pytest.fixture
def disk(tmp_path):
    """The disk, which the hypervisors that are made after it see."""
    with HangingDisk(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def pair(disk, tmp_path):
    """Two hosts that know of each other. At h1 the guest of x writes to the disk."""
    with Hosts(tmp_path, ("h1", "h2")) as hosts:
        hosts.h1.has("x", disk=disk.path)
        hosts.h2.has("x", start=False)
        hosts.h1.serve(at=hosts.h1.hypervisor.beside(hosts.h1.node))
        hosts.h2.serve()
        hosts.acquaint(hosts.h1, hosts.h2)
        until(lambda: disk.written > 5, PATIENCE, "the guest writes")
        yield hosts
        disk.release()


def states(pid):
    """The states of a process's threads, each once."""
    found = set()
    for stat in pathlib.Path(f"/proc/{pid}/task").glob("*/stat"):
        text = stat.read_text()
        found.add(text[text.rindex(")") + 2])
    return found


def killed_in_a_write(disk, here):
    """QEMU is killed, and stays for one write. Returns its pid."""
    (pid,) = here.processes("x")
    disk.hang()
    until(lambda: disk.held, PATIENCE, "a write hangs")
    os.kill(pid, signal.SIGKILL)
    until(lambda: states(pid) == {"D", "Z"}, PATIENCE, "all but the thread in the write has ended")
    assert pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() == b""
    return pid


def shut_off_by_libvirt(here):
    """libvirt says "shut off", here because it is started anew: to give up on the process takes it half a minute."""
    here.hypervisor.kill()
    here.hypervisor.path("/run/libvirt/qemu/x.xml").unlink()
    here.hypervisor.start()
    assert here.state("x") == "shut off"


@pytest.mark.parametrize("anew", [False, True], ids=["libvirtd", "both"])
def test_off_waits_for_a_qemu_that_cannot_end(pair, disk, anew):
    here = pair.h1
    pid = killed_in_a_write(disk, here)
    own = own_pid(pid)
    if anew:
        here.stop_serving()
    shut_off_by_libvirt(here)
    if anew:
        here.serve_again()
        pair.acquaint(here, pair.h2)
    else:
        until(lambda: here.daemon.log.count("connected to libvirt") == 2, PATIENCE, "it is connected again")
    for action in ("status", "off", "reboot", "on"):
        assert pair.ask(action, "x", timeout=10).rc == FAILED, (action, pair.logs())
        assert states(pid) == {"D", "Z"}
        # With several hosts one answer is enough, and a record may come after it.
        until(lambda action=action: any(it["action"] == action and f"process {own} of that host was killed and can't end" in it["reason"]
                                        for host in pair.all for it in host.records()), PATIENCE, f"the reason of {action}")
    checked = here.run("--check")
    (line,) = [it for it in checked.stdout.splitlines() if it.startswith("failed   domain x (")]
    assert checked.returncode == 1 and f"process {own} of this host" in line, checked.stdout
    assert "only power-off of this host is sure" in checked.stdout, checked.stdout
    # Other hosts were told so too.
    assert not re.search("answered another host .* sight=(Off|Ended|Absent|Moved)", here.daemon.log), here.daemon.log
    written = disk.written
    # The storage comes back while an off waits.
    waiting = threading.Timer(3, disk.release)
    waiting.start()
    answer = pair.ask("off", "x")
    assert answer.rc == OK and not pathlib.Path(f"/proc/{pid}").exists(), pair.logs()
    assert disk.written > written, "the write came after the first off"
    assert pair.ask("status", "x").rc == OFF, pair.logs()
