# SPDX-License-Identifier: GPL-2.0-or-later
"""Eve is on the path between the owner and the host, and has no key.

Classic can't close these: neither the response nor the request is bound to the challenge, and the client is part of the
protocol. So classic is asserted to fall at ours too; sealed is not.
"""

import pytest

from lab import testdriver, wire

from .relay import Relay
from .scene import OURS, SIDE

#: The agents' options for each protocol.
CLASSIC, SEALED = [], ["-c", "hmac-sha256"]
WAYS = [pytest.param(CLASSIC, id="classic"),
        pytest.param(SEALED, id="sealed", marks=[pytest.mark.ours, pytest.mark.sealed])]

#: Groups that don't let the owner, or Eve in its place, do anything.
NOBODY = [{"ip": "10.77.9.9", "uuid": testdriver.uuid_of("vm1")}]


def asks(scene, *args):
    """The owner's agent, which takes Eve's address for the host's."""
    return scene.agent(scene.owner, "-T", scene.eve.ip, *args, "-t", "10", name="fence_virt")


def test_a_relay_is_a_wire(scene):
    """The control: what is passed on unchanged is the honest exchange."""
    host = scene.host("tcp")
    with Relay(scene.eve, host.node.ip):
        assert asks(scene, "-o", "status", "-H", "vm1").rc == 0
        assert asks(scene, "-o", "off", "-H", "vm1").rc == 0
        assert asks(scene, "-o", "status", "-H", "vm1").rc == 2


@pytest.mark.parametrize("how", WAYS)
def test_a_forged_response(scene, how):
    """The host refuses, and the owner is told "success": the cluster would mount the disk. The worst of all, and one
    byte."""
    host = scene.host("tcp", groups=NOBODY)
    # Sealed, 64 bytes of seal follow the response byte, and no byte of Eve's fits them.
    with Relay(scene.eve, host.node.ip, response=lambda said: bytes([wire.SUCCESS]) + said[1:]):
        got = asks(scene, "-o", "off", "-H", "vm1", *how)
    assert (got.rc == 0) == (how is CLASSIC), got


@pytest.mark.parametrize("how", WAYS)
def test_a_forged_response_without_its_seal(scene, how):
    """The same, cut to what a classic host would say: a sealed agent does not fall back."""
    host = scene.host("tcp", groups=NOBODY)
    with Relay(scene.eve, host.node.ip, response=lambda _: bytes([wire.SUCCESS])):
        got = asks(scene, "-o", "off", "-H", "vm1", *how)
    assert (got.rc == 0) == (how is CLASSIC), got


@pytest.mark.parametrize("how", WAYS)
def test_another_request_in_place_of_the_owners(scene, how):
    """The owner asks for the status of vm2; Eve sends a captured `off vm1` instead, and the owner proves it. Both are
    of one kind (classic with classic, sealed with sealed)."""
    host = scene.host("tcp")
    kind = wire.HMAC_SHA256 if how is SEALED else wire.SHA256
    off = scene.captured(wire.OFF, "vm1", hash_type=kind)
    with Relay(scene.eve, host.node.ip, request=lambda _: off):
        got = asks(scene, "-o", "status", "-H", "vm2", *how)
    if how is CLASSIC:
        assert got.rc == 0 and host.state("vm1") == "off", (got, "shot; the owner was told that vm2 is on")
    else:
        assert got.rc not in (0, 2, None) and host.state("vm1") == "on", got


@pytest.mark.ours
@pytest.mark.sealed
def test_a_downgrade_of_a_sealed_request(scene):
    """Eve answers a sealed agent with what a captured classic request gets her: the agent does not take it, and
    nothing runs, since the agent's proof is not classic."""
    host = scene.host("tcp")
    off = scene.captured(wire.OFF, "vm1")
    with Relay(scene.eve, host.node.ip, request=lambda _: off):
        got = asks(scene, "-o", "status", "-H", "vm2", *SEALED)
    assert got.rc not in (0, 2, None) and host.state("vm1") == "on", got


@pytest.mark.ours
@pytest.mark.sealed
def test_a_list_with_another_domain_in_it(scene):
    """Sealed covers every byte of a list."""
    host = scene.host("tcp")
    change = lambda said: said.replace(b"vm1\0", b"vmX\0", 1)    # noqa: E731
    with Relay(scene.eve, host.node.ip, response=change):
        classic, sealed = asks(scene, "-o", "list"), asks(scene, "-o", "list", *SEALED)
    assert classic.rc == 0 and "vmX" in classic.out, classic
    assert sealed.rc == 1 and sealed.out == "", sealed
    assert SIDE == OURS
