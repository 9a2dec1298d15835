# SPDX-License-Identifier: GPL-2.0-or-later
"""Every way in to the daemon: TCP, vsock, serial lines and channels, multicast, several at once.

Run: /usr/bin/python3 -m pytest tests/transports        (root; the test driver of libvirt)

The daemon is ours, the peers are the reference's agents and peers made by hand. Domains are those of libvirt's test
driver, whose XML may name any socket: so a UNIX server of the test plays QEMU and the guest behind it.
"""

import pytest

from lab import net, programs, testdriver

OURS = str(programs.OURS_DIR / "fence_virtd")
REFERENCE_VIRT = str(programs.REFERENCE_DIR / "fence_virt")

#: Milliseconds within which a client is served whatever others do. As a rule it takes a few, but the machine may have
#: more to do; who waited for one of the others would wait for 5 s and more.
SERVED_AT_ONCE = 4000


class Stage(net.Stage):
    """A host, guests on its bridge, a key."""

    def __init__(self, directory):
        super().__init__(directory)
        self.key = programs.write_key(self.directory / "key")


@pytest.fixture(scope="session")
def stage(tmp_path_factory):
    """The Stage."""
    stage = Stage(tmp_path_factory.mktemp("transports"))
    yield stage
    stage.close()


@pytest.fixture
def daemon(stage, tmp_path):
    """daemon(text, domains=…, ready=…, args=(), node=…): our fence_virtd with these listeners, as a Daemon.

    `text`: the blocks of `listeners`; `listener`: their names. The backend is the test driver with `domains`."""
    running = []

    def start(listener, text, domains=("vm1", testdriver.Domain("vm2", testdriver.SHUTOFF)), groups="", ready="tcp",
              args=(), uri=None, **kw):
        uri = uri or testdriver.write(tmp_path / "domains.xml", domains)
        text = text.replace("@key@", f'key_file = "{stage.key}";').replace("@uri@", f'uri = "{uri}";')
        config = programs.write_config(tmp_path / "fence_virt.conf", f"""
            fence_virtd {{ listener = "{listener}"; backend = "libvirt"; }}
            listeners {{ {text} }}
            backends {{ libvirt {{ uri = "{uri}"; }} }}
            {groups}""")
        it = programs.Daemon(stage.host, config, *args, program=OURS, ready=ready, **kw)
        running.append(it)
        return it

    yield start
    for it in running:
        code = it.stop()
        assert code == 0, f"fence_virtd ended with {code}:\n{it.log}"
