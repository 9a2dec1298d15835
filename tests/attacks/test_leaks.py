# SPDX-License-Identifier: GPL-2.0-or-later
"""No secret is ever printed, and the search that says so can fail."""

import base64
import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import threading

import pytest

from lab import net, wire

from .leaks import MAX_HEARD, Secrets
from .scene import OURS, REFERENCE, SIDE

KEY = bytes((i * 197 + 91) % 256 for i in range(512))
SECRET = wire.digest(wire.SHA256, KEY, b"a challenge")[:32]

#: How a careless program prints bytes.
CARELESS = {
    "raw": lambda it: it,
    "hex": lambda it: it.hex().encode(),
    "upper-hex": lambda it: it.hex().upper().encode(),
    "hex-after-a-digit": lambda it: b"key=1" + it.hex().encode(),
    "hex-with-colons": lambda it: it.hex(":").encode(),
    "hexdump": lambda it: it.hex(" ", 1).encode(),
    "c-array": lambda it: b", ".join(b"0x%02x" % byte for byte in it),
    "rust-debug": lambda it: repr(list(it)).encode(),
    "rust-escape": lambda it: b"".join(b"\\x%02x" % byte for byte in it),
    "python-repr": lambda it: repr(it).encode(),
    "octal-escape": lambda it: b"".join(b"\\%03o" % byte for byte in it),
    "json": lambda it: b"".join(b"\\u00%02x" % byte for byte in it),
    "characters": lambda it: it.decode("latin-1").encode(),
    "base64": base64.b64encode,
    "urlsafe-base64": base64.urlsafe_b64encode,
    "base64-after-text": lambda it: b"ab" + base64.b64encode(b"x" + it),
    "replaced-by-our-reader": lambda it: it.decode("utf-8", "backslashreplace").encode(),
}


@pytest.fixture(scope="module")
def secrets():
    it = Secrets()
    it.add_key(KEY)
    it.add_hash(SECRET)
    return it


@pytest.mark.parametrize("how", CARELESS)
@pytest.mark.parametrize("part", [KEY[:16], KEY[200:216], KEY[-12:], SECRET, SECRET[3:15]],
                         ids=["key", "middle-of-key", "end-of-key", "hash", "part-of-hash"])
def test_a_planted_leak_is_found(secrets, how, part):
    line = b"2026-11-21T09:59:07Z  WARN dropped: expected " + CARELESS[how](part) + b" reason=\"hash-mismatch\"\n"
    assert secrets.find(b"an honest line\n" * 50 + line + b"another\n" * 50)


def test_what_is_no_leak_is_not(secrets):
    text = (b"2026-11-21T09:59:07.552214Z  WARN audit: off vm1 uuid=\"a8282f87-25c0-72d0-f974-2ae778942970\" key=\"82cb\" "
            b"10.77.0.5:1229 connected_ms=0.6\n" + os.urandom(64).hex().encode() + b"\n")
    assert not secrets.find(text * 20)


def test_hashes_that_go_over_the_wire_are_known():
    """What was asked for on the wire is what may not be printed, right or wrong."""
    it = Secrets()
    it.add_key(KEY)
    packet = wire.Request(wire.OFF, "vm1").build(b"another key")
    c1 = os.urandom(64)
    it.heard(packet + c1)
    for expected in (wire.digest(wire.SHA256, KEY, packet[:112] + bytes(64)), wire.digest(wire.SHA256, KEY, c1)):
        assert it.find(b"EXP = " + expected.hex().encode())
    sealed = wire.Request(wire.OFF, "vm1", hash_type=wire.HMAC_SHA256).build(b"another key")
    it.heard(sealed)
    mac = wire.keyed_digest(wire.HMAC_SHA256, KEY, b"fence_virt request\0" + sealed[:112] + bytes(64))
    assert it.find(mac[:32].hex().encode())


def test_a_flood_in_one_test_leaves_the_next_not_deaf():
    """Otherwise what is printed in it would be searched for the keys alone, and nothing would be found."""
    it = Secrets()
    it.add_key(KEY)
    for number in range(MAX_HEARD):
        it.heard(number.to_bytes(64, "big"))
    packet = wire.Request(wire.OFF, "vm1").build(b"another key")
    expected = wire.digest(wire.SHA256, KEY, packet[:112] + bytes(64)).hex().encode()
    it.heard(packet)
    assert not it.find(expected)
    it.begin()
    it.heard(packet)
    assert it.find(expected) and it.find(KEY[:16])


def test_the_command_finds_a_leak_in_a_file(tmp_path):
    """As tests/fuzz/run uses it."""
    key, clean, leaky = tmp_path / "key", tmp_path / "clean", tmp_path / "leaky"
    key.write_bytes(b"the key of the fuzzer")
    clean.write_text("fuzz request: 200000 executions\n")
    leaky.write_text("thread panicked: Key([116, 104, 101, 32, 107, 101, 121, 32, 111, 102])\n")
    program = pathlib.Path(__file__).with_name("leaks.py")
    run = lambda *paths: subprocess.run(    # noqa: E731
        [sys.executable, program, "--prove", "--key", key, *paths], capture_output=True, text=True, check=False)
    assert run(clean).returncode == 0
    found = run(clean, leaky)
    assert found.returncode == 1 and "leaky: key" in found.stdout and "the key of" not in found.stdout


def everything_that_goes_wrong(scene, host, listener):
    """Requests that are right and wrong in every way that makes a program want to say what it had expected."""
    agents = [("fence_xvm", [])] if listener == "multicast" else [("fence_virt", ["-T", host.node.ip])]
    wrong = scene.directory / "another-key"
    if not wrong.exists():
        scene.write_key("another-key", 512)
    for name, args in agents:
        quick = [*args, "-t", "2", *(["-r", "30"] if name == "fence_xvm" else [])]
        for more in (["-o", "status", "-H", "vm1"], ["-o", "list"], ["-o", "off", "-H", "nobody"],
                     ["-o", "status", "-H", "vm1", "-C", "sha512"], ["-o", "status", "-H", "vm1", "-c", "sha1"],
                     *([["-o", "status", "-H", "vm1", "-c", "hmac-sha256"]] if SIDE == OURS else [])):
            scene.agent(scene.owner, *quick, *more, name=name)
        scene.agent(scene.owner, *quick, "-o", "status", "-H", "vm1", name=name, key_file=wrong)
    client = host.client()
    packet = client.packet(wire.OFF, "vm1", address=scene.eve.ip if listener == "multicast" else None)
    changed = bytes([packet[0] ^ 3, *packet[1:]])
    if listener == "multicast":
        wire.multicast_send(scene.eve, changed)
    else:
        scene.connect(scene.eve, host.node.ip).send(changed)
        stream = scene.connect(scene.eve, host.node.ip)
        stream.send(packet + os.urandom(64))
        stream.recv(128)
        stream.send(os.urandom(64))
        with pytest.raises(wire.Closed):
            stream.recv(1)
        stream.close()
    assert host.state("vm1") == "on"


@pytest.mark.ours
@pytest.mark.parametrize("listener, debug", [("tcp", 0), ("tcp", 4), ("tcp", 99), ("multicast", 99)])
def test_no_secret_at_any_debug_level(scene, listener, debug):
    """Right and wrong requests, daemon and agents at their highest debug levels. (The search is at the end of each
    test, this one too.)"""
    host = scene.host(listener, debug=debug)
    everything_that_goes_wrong(scene, host, listener)
    assert host.daemon.lines


@pytest.mark.reference
@pytest.mark.leaks
def test_the_c_daemon_prints_the_hash_that_it_expected(scene, outputs):
    """For a packet that was changed: so whoever reads its log signs packets without the key. The same search finds it."""
    host = scene.host("tcp")

    def is_printed():
        found = [leak for text in outputs.of(REFERENCE) for leak in scene.secrets.find(text)]
        return any(leak.form == "hex" and leak.what == "packet hash" for leak in found)

    # On a busy machine it misses packets. Its last lines may still be on their way.
    for _ in range(4):
        everything_that_goes_wrong(scene, host, "tcp")
        with contextlib.suppress(TimeoutError):
            net.wait_until(is_printed, 15)
            return
    raise AssertionError("it printed no hash")


class Journal:
    """A journal's socket: what it is sent, as it is."""

    def __init__(self, path):
        self.data, self._closed = [], False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(0.1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self):
        """All that came."""
        self._closed = True
        self._thread.join(5)
        self._socket.close()
        return b"\n".join(self.data)

    def _run(self):
        while True:
            try:
                self.data.append(self._socket.recv(1 << 20))
            except TimeoutError:
                if self._closed:
                    return


@pytest.mark.ours
def test_the_journal_gets_no_secret_either(scene, tmp_path):
    """Under systemd the log goes to the journal, with fields of its own."""
    directory = pathlib.Path("/run/systemd/journal")
    if (directory / "socket").exists():
        pytest.skip("this machine has a journal of its own, whose socket must stay what it is")
    directory.mkdir(parents=True, exist_ok=True)
    journal = Journal(directory / "socket")
    try:
        host = scene.host("tcp", debug=99, env={"JOURNAL_STREAM": "1:1"})
        everything_that_goes_wrong(scene, host, "tcp")
    finally:
        written = journal.close()
        (directory / "socket").unlink()
    assert b"PRIORITY\n" in written and b"hash-mismatch" in written
    assert not scene.secrets.find(written)
