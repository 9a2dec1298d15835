# SPDX-License-Identifier: GPL-2.0-or-later
"""The committed vectors are what they claim: decoded fields, hashes and challenges agree with the bytes."""

import pathlib

import pytest

import sealed
from lab import wire

HERE = pathlib.Path(__file__).resolve().parent


def records(name):
    lines = [x for x in (HERE / name).read_text().splitlines() if not x.startswith("#")]
    return [dict(f.split("=", 1) for f in line.split(" ")) for line in lines]


@pytest.mark.parametrize("name,count", [("requests.txt", 182), ("handshakes.txt", 91), ("host_lists.txt", 12),
                                        ("serial.txt", 37), ("sealed.txt", 22), ("cpg.txt", 37)])
def test_every_case_is_there_once(name, count):
    cases = [r["case"] for r in records(name)]
    assert len(cases) == len(set(cases)) == count


def test_requests():
    for r in records("requests.txt"):
        packet, key = bytes.fromhex(r["packet"]), wire.read_key(HERE / r["key"])
        request = wire.Request.parse(packet)
        assert wire.Request.verify(packet, key), r["case"]
        assert not wire.Request.verify(packet, b"another key") or r["hash"] == "0", r["case"]
        assert request.build(key) == packet, r["case"]
        assert (request.action, request.hash_type, request.seqno) == (int(r["action"]), int(r["hash"]), int(r["seqno"]))
        assert (request.domain.hex(), request.address or "-", request.port) == (r["domain"], r["address"], int(r["port"]))


def test_a_long_key_counts_up_to_4096_bytes():
    long = [r for r in records("requests.txt") if r["key"] == "key-long.bin"]
    assert len(long) == 3
    for r in long:
        assert wire.Request.verify(bytes.fromhex(r["packet"]), (HERE / "key.bin").read_bytes())


def test_handshakes():
    for r in records("handshakes.txt"):
        key, auth = wire.read_key(HERE / r["key"]), int(r["auth"])
        if auth:
            for asked, answered in (("c1", "host_answer"), ("c2", "client_answer")):
                assert wire.digest(auth, key, bytes.fromhex(r[asked])).hex() == r[answered], r["case"]
        assert len(r["response"]) == 2, r["case"]


def test_host_lists():
    for r in records("host_lists.txt"):
        response, count = bytes.fromhex(r["response"]), int(r["count"])
        assert response[0] == wire.LIST_FOLLOWS and response[-1] == int(r["code"]), r["case"]
        entries = [response[i:i + wire.ENTRY_LEN] for i in range(1, len(response) - 1, wire.ENTRY_LEN)]
        assert len(entries) == count + 1 and entries.pop() == bytes(wire.ENTRY_LEN), r["case"]
        for i, raw in enumerate(entries):
            want = wire.HostEntry(bytes.fromhex(r[f"name{i}"]), r[f"uuid{i}"].encode(), int(r[f"state{i}"]))
            assert wire.HostEntry.parse(raw) == want, r["case"]
            # All but the last byte of each text and the pad byte, which the reference leaves to chance.
            assert raw[:63] + raw[64:127] + raw[128:129] == \
                want.build()[:63] + want.build()[64:127] + want.build()[128:129], r["case"]


def test_sealed():
    assert sealed.text() == (HERE / "sealed.txt").read_text(), "not what sealed.py makes"
    for r in records("sealed.txt"):
        packet, key = bytes.fromhex(r["packet"]), wire.read_key(HERE / r["key"])
        assert wire.Request.verify(packet, key) and not wire.Request.verify(packet, b"another key"), r["case"]
        request = wire.Request.parse(packet)
        request.packet_hash = None
        assert request.build(key) == packet, r["case"]


def test_serial_frames():
    for r in records("serial.txt"):
        frame = wire.SerialRequest(int(r["action"]), bytes.fromhex(r["domain"]), int(r["flags"]), int(r["seqno"]))
        assert frame.build().hex() == r["frame"], r["case"]
        answer = bytes.fromhex(r["answer"])
        assert wire.SERIAL_MAGIC in answer, r["case"]
        if r["captured"] == "daemon":
            assert answer[4] == int(r["code"])
            body = 0 if int(r["code"]) != wire.LIST_FOLLOWS else wire.ENTRY_LEN * (int(r["entries"]) + 1) + 5
            assert len(answer) == 5 + body


def test_messages_between_hosts():
    for r in records("cpg.txt"):
        message = bytes.fromhex(r["message"])
        assert len(message) == wire.CPG_LEN, r["case"]
        got = wire.CpgMessage.parse(message)
        assert wire.CpgMessage.parse(got.build()) == got, r["case"]
        if r["kind"] == "domain":
            assert (got.kind, got.sequence, got.to) == (2, 0, 0xffffffff), r["case"]
            assert (got.name.hex(), got.uuid.decode(), got.owner, got.state) == \
                (r["name"], r["uuid"], int(r["owner"]), int(r["state"])), r["case"]
            assert r["owner"] == r["node"], r["case"]
        else:
            assert got.kind == {"request": 0, "reply": 1}[r["kind"]], r["case"]
            assert [got.sequence, got.to, got.action, got.client, got.response] == \
                [int(r[field]) for field in ("sequence", "to", "action", "client", "response")], r["case"]
            assert got.name.hex() == r["target"], r["case"]
