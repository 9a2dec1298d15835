# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirtd dies in the middle of a power-off of a QEMU that is slow to die, and fence_virtd lives on: QEMU still has the order.

The client is told of a failure. Until the order can take effect no more, what conflicts with it waits, and nothing else does.
"""

import threading
import time

import pytest

from lab import net, rig

pytestmark = pytest.mark.ours

#: Seconds from libvirtd's death to the next one, as systemd does it; and from then to the end of QEMU.
AWAY, SLOW = 5, 8


def test_an_order_of_a_libvirtd_that_died_is_waited_for(site, start_host, machines, note):
    first, second = machines("bare")
    host = start_host()
    other = site.hypervisor.domain("other")
    with rig.slow_to_die(second.domain) as wait_killed:
        # Its client gives up before libvirtd is back; one that waits is served by the next libvirtd.
        shot = first.shoot("ours", second, "-o", "off", "-t", "5")
        wait_killed()
        back = second.shoot("ours", first, "-o", "off", "-t", "40")
        time.sleep(0.5)
        site.hypervisor.kill()
        time.sleep(AWAY)
        # It may wait for the QEMU that stands still.
        anew = threading.Thread(target=site.hypervisor.start)
        anew.start()
        time.sleep(SLOW)
        assert not first.qemu.ended(), f"both go down: {host.records()}\n{host.daemon.log[-4000:]}"
    assert second.qemu.ended(30)
    anew.join()
    results = shot.finish(60), back.finish(60)
    record = host.wait_records(1, which=lambda it: it["target"] == second.name)[0]
    note(f"{results}; {record['result']}: {record['reason']}")
    # The order of the one that is down is dropped, and who asks for something else is heard.
    net.wait_until(lambda: "the order to libvirt can take effect no more" in host.daemon.log, 30)
    assert site.agent("ours", "-o", "off", "-H", "other", "-t", "20").rc == rig.OK and other.state() == "shut off"
    assert not first.qemu.ended(), f"both are down: {host.records()}\n{host.daemon.log[-4000:]}"
