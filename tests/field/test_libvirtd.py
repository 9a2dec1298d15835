# SPDX-License-Identifier: GPL-2.0-or-later
"""A libvirtd that was away for a while and is back."""

import time

import pytest

from lab import net, programs
from lab.hypervisor import Hypervisor

pytestmark = pytest.mark.skipif(programs.SIDE != "ours", reason="about our daemon")

#: Time after which pauses between two tries of the daemon have become long.
AWAY = 8


def test_a_fence_after_its_return_is_not_answered_from_before(tmp_path):
    """The request asks libvirt itself: what an earlier try to connect found is no answer."""
    with net.Net() as lab:
        host, guest = lab.node("host"), lab.node("guest")
        key = programs.write_key(tmp_path / "key")
        with Hypervisor(host.ns) as hypervisor:
            machine = hypervisor.domain("vm1")
            config = programs.write_config(tmp_path / "fence_virt.conf", f"""
                fence_virtd {{ listener = "multicast"; backend = "libvirt"; }}
                listeners {{ multicast {{ key_file = "{key}"; interface = "eth0"; }} }}
                backends {{ libvirt {{ uri = "{hypervisor.uri}"; }} }}""")
            with programs.Daemon(host, config) as daemon:
                daemon.wait_serving()
                process = machine.process()
                hypervisor.kill()
                daemon.wait_log("lost libvirt")
                early = programs.run_agent(guest, "-k", key, "-o", "status", "-H", "vm1", "-t", 20)
                assert early.rc == 1 and early.seconds < 10, "a hypervisor that is gone delays nobody"
                time.sleep(AWAY)
                hypervisor.start()
                late = programs.run_agent(guest, "-k", key, "-o", "off", "-H", "vm1", "-t", 20)
                assert late.rc == 0 and process.ended(), (late, daemon.log)
