#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks for secrets in what programs print.

    secrets = Secrets()
    secrets.add_key(key)                  # every 8 bytes of it in a row count
    secrets.heard(payload)                # bytes off the wire: the hashes that belong to them are secrets too
    secrets.find(output)                  # [Leak(what, form, where)]

Looked for raw, in hex (both cases, with and without separators), base64 (both alphabets, any alignment), as lists of
decimal numbers and behind backslash escapes. Eight bytes of a secret are enough to be found.

    leaks.py [--key FILE]... OUTPUT...    exit code 1 and a line for each leak; `--prove` shows that it can fail

This module must never print a secret: a Leak has the place and the form only.
"""

import argparse
import base64
import dataclasses
import os
import pathlib
import re
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from lab import wire  # noqa: E402

WINDOW = 8
#: So much off the wire is looked at in one test; a flood must not take the test's own time.
MAX_HEARD = 3000

_AUTHS = (wire.SHA1, wire.SHA256, wire.SHA512)
_LENGTHS = {wire.SHA1: 20, wire.SHA256: 32, wire.SHA512: 64, wire.HMAC_SHA256: 32, wire.HMAC_SHA512: 64}


@dataclasses.dataclass(frozen=True)
class Leak:
    """Where a secret was found: `what` it is, in which `form`, at which byte of which output."""

    what: str
    form: str
    where: int


class Secrets:
    """Keys, and hashes made with them."""

    def __init__(self):
        self._keys, self._windows, self._heard, self._lock = [], {}, set(), threading.Lock()

    def add_key(self, key):
        """A key (the part of a file that counts). Returns it."""
        key = key[:wire.KEY_MAX]
        if key not in self._keys:
            self._keys.append(key)
            self._add(key, "key", text=True)
        return key

    def begin(self):
        """A new test: what an earlier one heard counts no more. (A flood in it would leave this one deaf.)"""
        with self._lock:
            self._heard.clear()
        self._windows = {}
        for key in self._keys:
            self._add(key, "key", text=True)

    def add_hash(self, value, what="hash"):
        """A hash that nobody who reads a log may learn."""
        self._add(value, what)

    def heard(self, payload):
        """A datagram or a segment of a stream: what it asks to be hashed, and what it may be the hash of."""
        with self._lock:
            if len(self._heard) >= MAX_HEARD or payload in self._heard:
                return
            self._heard.add(payload)
        rest = payload
        if len(payload) >= wire.REQUEST_LEN and payload[0] <= wire.LIST and payload[1] in (0, *_LENGTHS):
            self._packet(payload[:wire.REQUEST_LEN])
            rest = payload[wire.REQUEST_LEN:]
        chunks = {rest[i:i + 64] for i in range(0, min(len(rest), 256), 64)} | {rest[-64:]}
        for chunk in chunks:
            if len(chunk) == 64:
                self._add(chunk, "bytes of a challenge")
                for key in self._keys:
                    for auth in _AUTHS:
                        self._add(wire.digest(auth, key, chunk)[:_LENGTHS[auth]], "answer to a challenge")

    def find(self, output):
        """Every Leak in the bytes, one for each place."""
        found = []
        for form, start, data in _forms(output):
            for i in range(len(data) - WINDOW + 1):
                what = self._windows.get(data[i:i + WINDOW])
                if what:
                    found.append(Leak(what, form, start))
                    break
        return found

    def _packet(self, packet):
        unsigned = packet[:112] + bytes(64)
        for key in self._keys:
            for kind in _AUTHS:
                self._add(wire.digest(kind, key, unsigned)[:_LENGTHS[kind]], "packet hash")
            for kind in (wire.HMAC_SHA256, wire.HMAC_SHA512):
                self._add(wire.keyed_digest(kind, key, b"fence_virt request\0" + unsigned)[:_LENGTHS[kind]], "packet hash")

    def _add(self, secret, what, text=False):
        for i in range(len(secret) - WINDOW + 1):
            window = bytes(secret[i:i + WINDOW])
            # Padding and text (a name that a peer sent in place of a challenge) are no secrets.
            if window.count(0) < 3 and (text or not window.isascii()):
                self._windows.setdefault(window, what)


_HEX = re.compile(rb"[0-9a-fA-F]{16,}")
_SPACED_HEX = re.compile(rb"(?:0x)?[0-9a-fA-F]{1,2}(?:[ ,:.\-]{1,2}(?:0x)?[0-9a-fA-F]{1,2}){7,}")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_\-]{11,}")
_DECIMAL = re.compile(rb"\d{1,3}(?:[ ,]{1,2}\d{1,3}){7,}")
_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|u\{([0-9a-fA-F]{1,2})\}|u00([0-9a-fA-F]{2})|([0-3][0-7]{2})|([nrt0\\\"']))")
_LETTERS = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"0": b"\0"}


def _forms(output):
    """(form, place, bytes) of everything in the output that could stand for bytes."""
    yield "raw", 0, output
    if b"\\" in output:
        yield "escaped", 0, _ESCAPE.sub(_unescape, output)
    if any(byte > 0x7F for byte in output):
        # Bytes that became characters: each of the first 256 as UTF-8.
        yield "characters", 0, output.decode("utf-8", "ignore").encode("latin-1", "ignore")
    for m in _HEX.finditer(output):
        for skip in (0, 1):
            text = m[0][skip:]
            yield "hex", m.start(), bytes.fromhex(text[:len(text) // 2 * 2].decode())
    for m in _SPACED_HEX.finditer(output):
        yield "hex with separators", m.start(), bytes(int(it, 16) for it in re.findall(rb"(?:0x)?([0-9a-fA-F]{1,2})", m[0]))
    for m in _DECIMAL.finditer(output):
        yield "decimal", m.start(), bytes(min(int(it), 255) for it in re.findall(rb"\d+", m[0]))
    for m in _BASE64.finditer(output):
        text = m[0].replace(b"-", b"+").replace(b"_", b"/")
        for skip in range(4):
            part = text[skip:]
            if len(part) % 4 == 1:
                part = part[:-1]
            yield "base64", m.start(), base64.b64decode(part + b"=" * (-len(part) % 4))


def _unescape(m):
    for group in (1, 2, 3):
        if m[group]:
            return bytes([int(m[group], 16)])
    if m[4]:
        return bytes([int(m[4], 8)])
    return _LETTERS.get(m[5], m[5])


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description="looks for keys in output")
    parser.add_argument("--key", action="append", type=pathlib.Path, default=[], help="a file that is a key")
    parser.add_argument("--prove", action="store_true", help="plant each key in the output: must be found")
    parser.add_argument("output", nargs="+", type=pathlib.Path)
    options = parser.parse_args()
    secrets = Secrets()
    for path in options.key:
        secrets.add_key(wire.read_key(path))
    if options.prove:
        for path in options.key:
            for plant in (wire.read_key(path)[:16].hex().encode(), repr(list(wire.read_key(path)[:16])).encode()):
                if not secrets.find(b"x = " + plant + b"\n"):
                    return f"{path.name}: planted, and not found"
    leaks = [(path, leak) for path in options.output for leak in secrets.find(path.read_bytes())]
    for path, leak in leaks:
        print(f"{path}: {leak.what} in {leak.form} at byte {leak.where}")
    return 1 if leaks else 0


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
