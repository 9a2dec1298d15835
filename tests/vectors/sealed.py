# SPDX-License-Identifier: GPL-2.0-or-later
"""Known answers of the sealed extension, with Python's own hmac and struct and nothing else of this repository.

    /usr/bin/python3 tests/vectors/sealed.py > tests/vectors/sealed.txt

There is no reference program for it, so the witness is docs/protocol.md, written down a second time. All that is
random on the wire comes from the case's name here: the output never changes.
"""

import hashlib
import hmac
import pathlib
import struct
import sys

HERE = pathlib.Path(__file__).resolve().parent
HASHES = {"hmac-sha256": (0x12, "sha256"), "hmac-sha512": (0x13, "sha512")}
KEYS = ("key.bin", "key-short.bin", "key-long.bin", "key-newline.bin", "key-zeros.bin")
ON, OFF, STATUS, LIST = 3, 1, 4, 6
UUID = b"6c6e0a5c-2b3a-4b0e-9a57-0d4a3f6b1c2d"


def mac(hash_name, key, *parts):
    """HMAC over the parts, zero-padded to 64 bytes."""
    return hmac.new(key, b"".join(parts), HASHES[hash_name][1]).digest().ljust(64, b"\0")


def drawn(case, what, length):
    """Bytes that look random, the same each time."""
    return hashlib.shake_128(f"{case}/{what}".encode()).digest(length)


def packet(hash_name, key, case, action, domain, uuid, address, port):
    """The 176 bytes of a sealed request."""
    raw, family = address
    head = struct.pack("<BBBB64s28sH6sII", action, HASHES[hash_name][0], len(raw), int(uuid), domain, raw, port,
                       drawn(case, "nonce", 6), int.from_bytes(drawn(case, "sequence", 4), "little"), family)
    assert len(head) == 112
    return head + mac(hash_name, key, b"fence_virt request\0", head, bytes(64))


def host_list(entries, code):
    """253, entries of 130 bytes, the zero entry, the response."""
    body = b"".join(struct.pack("64s64sBB", name, uuid, state, 0) for name, uuid, state in entries)
    return b"\xfd" + body + bytes(130) + bytes([code])


TCP, IPV4 = (b"", 0), (bytes([192, 168, 122, 11]), 2)
IPV6 = (bytes.fromhex("fd000000000000000000000000000011"), 10)
ROWS = [(b"vm1", UUID, 1), (b"vm-2", UUID[::-1], 5), ("ä€".encode(), UUID, 1)]
#: name, action, domain, whether it is a UUID, address, port, response
EXCHANGES = [
    ("status-on", STATUS, b"vm1", False, IPV4, 1229, b"\0"),
    ("status-off", STATUS, UUID, True, IPV6, 1230, b"\2"),
    ("off-failed", OFF, b"vm1", False, TCP, 0, b"\1"),
    ("on-denied", ON, b"x" * 63, False, TCP, 0, b"\3"),
    ("list-empty", LIST, b"", False, IPV4, 1229, host_list([], 0)),
    ("list-three", LIST, b"", False, TCP, 0, host_list(ROWS, 0)),
    ("list-failed", LIST, b"", False, TCP, 0, host_list(ROWS[:1], 1)),
]


def records():
    """One line for each case."""
    cases = [(hash_name, "key.bin", exchange) for hash_name in HASHES for exchange in EXCHANGES]
    cases += [(hash_name, key, EXCHANGES[0]) for hash_name in HASHES for key in KEYS[1:]]
    for hash_name, key_name, (name, action, domain, uuid, address, port, response) in cases:
        case = f"{hash_name}-{key_name.removesuffix('.bin')}-{name}"
        key = (HERE / key_name).read_bytes()[:4096]
        request = packet(hash_name, key, case, action, domain, uuid, address, port)
        r, c1, c2 = request[112:], drawn(case, "c1", 64), drawn(case, "c2", 64)
        fields = {
            "case": case, "key": key_name, "hash": HASHES[hash_name][0], "action": action, "domain": domain.hex(),
            "uuid": int(uuid), "packet": request.hex(), "c1": c1.hex(),
            "host_answer": mac(hash_name, key, b"fence_virt host\0", r, c1).hex(), "c2": c2.hex(),
            "client_answer": mac(hash_name, key, b"fence_virt client\0", r, c1, c2).hex(), "response": response.hex(),
            "seal": mac(hash_name, key, b"fence_virt response\0", r, c1, c2, response).hex(),
        }
        yield " ".join(f"{k}={v}" for k, v in fields.items())


def text():
    """The whole file."""
    return "# Known answers of the sealed extension, made by sealed.py. See README.md.\n" + "".join(
        line + "\n" for line in records())


if __name__ == "__main__":
    sys.stdout.write(text())
