# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys, hashes and auth types that fit and that don't, agent and daemon together."""

import pytest

from compliance.support import VIRTD, differs, told
from lab import programs, testdriver, wire

HASHES = list(wire.HASHES)
PORT = 1240


@pytest.fixture(scope="module", params=["sha1", "sha256", "sha512"])
def auth(request, lab, uri):
    """A daemon whose hash and auth are both this."""
    config = lab.config(uri, listener_options={"hash": request.param, "auth": request.param, "port": PORT})
    with programs.Daemon(lab.host, config, port=PORT):
        yield request.param


def ask(lab, *args, **kw):
    return lab.xvm("-p", PORT, "-o", "status", "-H", "on1", *args, **kw)


def test_fits(lab, auth):
    assert ask(lab, "-c", auth, "-C", auth).rc == 0


def test_stronger_hashes_are_welcome(lab, auth):
    for stronger in HASHES[HASHES.index(auth):]:
        assert ask(lab, "-c", stronger, "-C", auth).rc == 0


def test_weaker_hashes_are_not(lab, auth):
    weaker = HASHES[HASHES.index(auth) - 1]
    r = ask(lab, "-c", weaker, "-C", auth, t=2)
    assert r.rc == 1 and told(r)


def test_another_auth(lab, auth):
    """Auth is not negotiated: another type on the agent's side is a failure."""
    other = "sha512" if auth != "sha512" else "sha256"
    r = ask(lab, "-c", "sha512", "-C", other, t=2)
    assert r.rc == 1 and told(r)


def test_wrong_key(lab, auth):
    r = ask(lab, "-c", auth, "-C", auth, key=lab.wrong_key_file, t=2)
    assert r.rc == 1 and told(r)


def test_a_key_that_is_longer_than_what_counts(lab, auth):
    long = programs.write_key(lab.file(".key"), lab.key + b"tail")
    assert ask(lab, "-c", auth, "-C", auth, key=long).rc == 0


def test_no_hash_no_auth(lab, uri):
    config = lab.config(uri, listener_options={"hash": "none", "auth": "none", "port": 1241})
    with programs.Daemon(lab.host, config, port=1241):
        assert lab.xvm("-p", 1241, "-c", "none", "-C", "none", "-o", "status", "-H", "off1").rc == 2


def test_wrong_key_over_tcp(lab, tcp):
    r = lab.virt("-o", "off", "-n", "on1", key=lab.wrong_key_file, t=3)
    assert r.rc == 1 and told(r)
    assert lab.virt("-o", "status", "-n", "on1", t=15).rc == 0


@differs("reference.md: `tcp` and `vsock`: the `auth` key sets the hash instead / sets auth", about=VIRTD,
         reference=wire.SHA256, ours=wire.SHA1)
def test_auth_of_the_tcp_listener(lab, uri, expected):
    config = lab.config(uri, "tcp", listener_options={"auth": "sha1", "port": 1242})
    with programs.Daemon(lab.host, config, port=1242, ready="tcp"):
        client = wire.FakeClient(lab.guest, lab.key, auth=expected, port=1242)
        assert client.tcp(lab.host.ip, wire.STATUS, "on1").code == wire.SUCCESS


@pytest.mark.parametrize("content", [b"with a newline at its end\n", b"ab\0\0cd\0 zeros inside \0", b"x" * 5000],
                         ids=["newline", "zeros", "long"])
def test_odd_keys(lab, content):
    """The file's bytes are the key, up to 4096: agent and daemon must agree on that."""
    key = programs.write_key(lab.file(".key"), content)
    uri = testdriver.write(lab.file(".xml"), ["on1"])
    with programs.Daemon(lab.host, lab.config(uri, listener_options={"key_file": key, "port": 1243}), port=1243):
        assert lab.xvm("-p", 1243, "-o", "status", "-H", "on1", key=key).rc == 0
        client = wire.FakeClient(lab.guest, content, port=1243)
        assert client.multicast(wire.STATUS, "on1").code == wire.SUCCESS
