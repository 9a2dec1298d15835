# SPDX-License-Identifier: GPL-2.0-or-later
"""Our agent over a serial line, with our daemon and with the reference's at the host's end.

A terminal plays the guest's line; a bridge carries it to the UNIX socket that the domain's XML names, as QEMU does."""

import os
import pathlib
import time

import pytest

from conftest import OURS
from lab import programs, testdriver, wire
from lab.testdriver import Domain, serial_device
from test_serial import qemu, terminal    # noqa: F401

ROWS = [["vm1", "on"], ["vm2", "off"]]


@pytest.fixture(params=["ours", "reference"])
def device(request, stage, qemu, tmp_path):    # noqa: F811
    """The terminal of vm1, whose line the daemon serves."""
    line = qemu("vm1")
    domains = [Domain("vm1", devices=serial_device(line.path)), Domain("vm2", testdriver.SHUTOFF)]
    uri = testdriver.write(tmp_path / "domains.xml", domains)
    options = {"uri": uri, "mode": "serial"}
    if request.param == "reference":
        options["key_file"] = stage.key     # It does not start without one.
    config = programs.write_config(tmp_path / "fence_virt.conf", listener="serial", backend_options={"uri": uri},
                                   listener_options=options)
    program = OURS if request.param == "ours" else str(programs.REFERENCE_DIR / "fence_virtd")
    daemon = programs.Daemon(stage.host, config, program=program, ready=None)
    try:
        line.accept(20)
        with terminal(line) as path:
            forget(path)
            yield path
    finally:
        daemon.stop()


@pytest.fixture
def agent(stage, device, tmp_path):
    """agent(*args): our fence_virt on the line, as a Result."""
    name = tmp_path / "fence_virt"
    name.symlink_to(programs.OURS_DIR / "fence_xvm")

    def run(*args):
        return programs.run_agent(stage.guest(1), "-D", device, "-t", "20", *args, program=str(name))

    return run


def record(device):
    """Where the agent notes whether a request was left without an answer."""
    return pathlib.Path(f"/run/fence_virt/line-{os.major(os.stat(device).st_rdev)}-{os.path.basename(device)}.lock")


def forget(device):
    """The number of the terminal may have been another test's."""
    record(device).unlink(missing_ok=True)


def test_every_action(agent):
    assert agent("-o", "status", "-n", "vm1").rc == 0
    off = agent("-o", "status", "-n", "vm2")
    assert (off.rc, off.out) == (2, "Status: OFF\n")
    assert agent("-o", "on", "-n", "vm2").rc == 0
    assert agent("-o", "reboot", "-n", "vm2").rc == 0
    assert agent("-o", "off", "-n", "vm2").rc == 0
    assert agent("-o", "monitor").rc == 0
    assert agent("-o", "null").rc == 1
    listing = agent("-o", "list")
    assert listing.rc == 0
    assert [row.split()[::2] for row in listing.out.splitlines()] == ROWS


@pytest.mark.parametrize("abandoned", [(wire.STATUS, "vm1"), (wire.LIST, ""), (wire.OFF, "vm2")],
                         ids=lambda it: str(it[0]))
def test_the_answer_to_an_abandoned_request_is_nobody_s(agent, device, abandoned):
    """An agent wrote its request and was killed; the next one is there before the answer is."""
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for number in range(5):
        assert agent("-o", "status", "-n", "vm2").rc == 2       # The line is raw, its record is there.
        with open(device, "wb", buffering=0) as killed:
            record(device).write_text(f"busy {boot} {int(time.clock_gettime(time.CLOCK_BOOTTIME)) + 30}\n")
            killed.write(wire.SerialRequest(*abandoned, seqno=number).build())
            answer = agent("-o", "status", "-n", "vm2")
        assert (answer.rc, answer.out) == (2, "Status: OFF\n"), answer
        assert record(device).read_text().startswith("free")
