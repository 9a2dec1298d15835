# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon tells of itself and of its host: --check, metrics, --status.

Run: SIDE=ours /usr/bin/python3 -m pytest tests/observability        (root; the test driver of libvirt)
"""

import json
import pathlib

import pytest

from lab import net, programs, testdriver

VIRTD = str(programs.OURS_DIR / "fence_virtd")
XVM = str(programs.OURS_DIR / "fence_xvm")
VIRT = str(programs.OURS_DIR / "fence_virt")


class Stage:
    """A host with a guest on its bridge."""

    def __init__(self):
        self.net = net.Net()
        self.host = self.net.node("host")
        self.guest = self.net.node("guest")


@pytest.fixture(scope="session")
def stage():
    """The Stage."""
    stage = Stage()
    yield stage
    stage.net.close()


class Setup:
    """A configuration that is in order, one part of which a test may spoil."""

    def __init__(self, stage, directory):
        self.stage, self.directory = stage, pathlib.Path(directory)
        self.key = programs.write_key(self.directory / "key")
        self.uri = testdriver.write(self.directory / "domains.xml", ["vm1", "vm2", testdriver.Domain("vm3", state=5)])
        self.file = self.directory / "fence_virt.conf"
        self.state = self.directory / "state"

    def write(self, listener="multicast, tcp", multicast="", tcp="", options="", libvirt="", groups="",
              interface="eth0", address="0.0.0.0", peers="none"):
        """Writes the file; what is given comes last, and so counts. `peers`: as of `programs.write_config`."""
        return programs.write_config(self.file, f"""
            fence_virtd {{ listener = "{listener}"; backend = "libvirt"; {options} }}
            listeners {{
                multicast {{ key_file = "{self.key}"; interface = "{interface}"; negative_delay = "0.1"; {multicast} }}
                tcp {{ key_file = "{self.key}"; address = "{address}"; {tcp} }}
                serial {{ uri = "{self.uri}"; }}
            }}
            backends {{ libvirt {{ uri = "{self.uri}"; {libvirt} }} }}
            {groups}""", peers=peers)

    def check(self, *args, **kw):
        """fence_virtd --check on the host: its exit code, and {(check, subject): finding}."""
        result = self.run("--check", "-f", self.file, "--json", *args, **kw)
        assert result.err == "", result
        return result.rc, {(it["check"], it["subject"]): it for it in json.loads(result.out)}

    def run(self, *args, node=None, timeout=60):
        """fence_virtd on the host, to its end."""
        return programs.run_agent(node or self.stage.host, *args, program=VIRTD, timeout=timeout,
                                  env={"STATE_DIRECTORY": str(self.state)})


@pytest.fixture
def setup(stage, tmp_path):
    """The Setup, in a directory of its own."""
    return Setup(stage, tmp_path)
