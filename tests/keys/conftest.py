# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys: key files that must be refused, new ones, rotation, a key for each group, and the memory of packets on disk.

Run: SIDE=ours /usr/bin/python3 -m pytest tests/keys        (root; the test driver of libvirt)
"""

import pytest

from lab import net, programs, testdriver

OURS_VIRTD = str(programs.OURS_DIR / "fence_virtd")
OURS_XVM = str(programs.OURS_DIR / "fence_xvm")
OURS_VIRT = str(programs.OURS_DIR / "fence_virt")


class Stage(net.Stage):
    """A host, guests on its bridge, keys by name."""

    def key(self, name):
        """The key file of that name; each has another key."""
        path = self.directory / f"{name}.key"
        if not path.exists():
            programs.write_key(path, f"the key of {name}, and enough bytes of it".encode())
        return path

    def multicast(self, key, *args, guest=1, t=10):
        """Our fence_xvm; its exit code."""
        return programs.run_agent(self.guest(guest), "-k", self.key(key), "-t", t, "-r", 5, *args, program=OURS_XVM)

    def tcp(self, key, *args, guest=1, t=10):
        """Our fence_virt over TCP; its exit code."""
        return programs.run_agent(self.guest(guest), "-T", self.host.ip, "-k", self.key(key), "-t", t, *args,
                                  program=OURS_VIRT)


@pytest.fixture
def without_default_key(tmp_path):
    """Our fence_virtd on a machine that has no /etc/cluster/fence_xvm.key, whatever this one has."""
    return programs.unshared(tmp_path / "fence_virtd", OURS_VIRTD,
                             "if [ -d /etc/cluster ]; then mount -t tmpfs none /etc/cluster; fi")


@pytest.fixture(scope="session")
def stage(tmp_path_factory):
    """The Stage."""
    stage = Stage(tmp_path_factory.mktemp("keys"))
    yield stage
    stage.close()


@pytest.fixture
def daemon(stage, tmp_path):
    """daemon(option, …, keys=("name", …), groups="…", …): our fence_virtd on multicast and TCP, as a Daemon.

    `.audited(field=value, …)` waits for records like that, which are written after the answer, and returns them.
    A further one of the same test replaces the one before it, which must have been ended."""
    running = []

    def start(*args, keys=("host",), groups="", domains=("vm1",), ready="tcp", listener="multicast, tcp", options="",
              env=None, program=OURS_VIRTD, uri=None, **kw):
        uri = uri or testdriver.write(tmp_path / "domains.xml", domains)
        files = "".join(f'key_file = "{stage.key(it)}"; ' for it in keys)
        audit = tmp_path / "audit"
        config = programs.write_config(tmp_path / "fence_virt.conf", f"""
            fence_virtd {{ listener = "{listener}"; backend = "libvirt"; audit_log = "{audit}"; {options} }}
            listeners {{ multicast {{ {files} interface = "eth0"; negative_delay = "0.1"; }}
                         tcp {{ {files} address = "0.0.0.0"; }} }}
            backends {{ libvirt {{ uri = "{uri}"; }} }}
            {groups}""")
        it = programs.Daemon(stage.host, config, *args, program=program, ready=ready, wait=60, env=env, **kw)
        it.audited = lambda **wanted: net.wait_until(lambda: [
            record for record in programs.audit_records(audit) if wanted.items() <= record.items()])
        running.append(it)
        return it

    yield start
    for it in running:
        if it.alive():
            code = it.stop()
            assert code == 0, f"fence_virtd ended with {code}:\n{it.log}"
