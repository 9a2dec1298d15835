#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures the golden vectors from the reference programs (packages fence-virt, fence-virtd). Run as root:

    /usr/bin/python3 tests/vectors/capture.py [DIRECTORY]

Everything happens in network namespaces of its own. Nonces and sequence numbers differ from run to run, the
records and their order don't. README.md describes the format; test_vectors.py checks the files.
"""

import os
import pathlib
import shutil
import socket
import sys
import threading
import time
import tty

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
os.environ["SIDE"] = "reference"
for _name in ("FENCE_VIRTD", "FENCE_XVM", "FENCE_VIRT"):
    os.environ.pop(_name, None)

from cpg.hosts import GROUP, Hosts  # noqa: E402
from lab import net, programs, testdriver, wire  # noqa: E402
from lab.cpg_member import Member  # noqa: E402
from lab.net import Net  # noqa: E402
from lab.testdriver import CRASHED, PAUSED, SHUTOFF, Domain  # noqa: E402

AF = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
FAMILY = {"ipv4": wire.IPV4, "ipv6": wire.IPV6}
UUID = "6f2b5bd5-9e33-4c4a-9b0e-2f5d2f7f6c01"

# The nonce-like key material of the vectors; fixed, so that the committed key files never change.
_BASE = bytes((i * 131 + i // 256 * 7 + 17) % 256 for i in range(4096))
KEYS = {
    "key.bin": _BASE,
    "key-short.bin": b"twenty bytes of key!",
    # What stands behind byte 4096 must not count: the same packets verify with key.bin.
    "key-long.bin": _BASE + b"bytes that nobody may hash" * 40,
    # A key made with `echo secret > file`: the newline is part of the key.
    "key-newline.bin": b"a key from echo\n",
    # Zero bytes inside: the key is bytes, not a string.
    "key-zeros.bin": b"ab\0\0cd\0",
}


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    out.mkdir(parents=True, exist_ok=True)
    for name, data in KEYS.items():
        (out / name).write_bytes(data)
    scratch = programs.scratch()
    try:
        keys = {name: programs.write_key(scratch / name, data) for name, data in KEYS.items()}
        with Net() as net:
            lab = Lab(net.node("host"), net.node("guest"), net.node("proxy"), scratch, keys)
            _write(out / "requests.txt", [*multicast_requests(lab), *tcp_requests(lab), *key_requests(lab)])
            _write(out / "handshakes.txt", [*agent_handshakes(lab), *daemon_handshakes(lab), *proxied(lab)])
            _write(out / "host_lists.txt", host_lists(lab))
            _write(out / "serial.txt", [*serial_agent(lab), *serial_daemon(lab)])
        _write(out / "cpg.txt", cpg_messages(scratch))
    finally:
        shutil.rmtree(scratch)


class Lab:
    """What every capture needs."""

    def __init__(self, host, guest, proxy, scratch, keys):
        self.host, self.guest, self.proxy, self.scratch, self.keys = host, guest, proxy, scratch, keys
        self.key = wire.read_key(keys["key.bin"])

    def daemon(self, name, domains, listener="multicast", key="key.bin", ready="udp", **options):
        uri = testdriver.write(self.scratch / f"{name}.xml", domains)
        if listener == "serial":
            options = {"uri": uri, **options}
        config = programs.write_config(
            self.scratch / f"{name}.conf", listener=listener, backend_options={"uri": uri},
            listener_options={"key_file": self.keys[key], **options})
        return programs.Daemon(self.host, config, ready=ready)


# ---- between hosts ---------------------------------------------------------------------------------------------

#: How many domains the three hosts have.
DOMAINS = 9


def cpg_messages(scratch):
    """What a member that only listens hears of three hosts for each thing asked, each message once."""
    (scratch / "hosts").mkdir()
    with Hosts(scratch / "hosts") as hosts:
        hosts.domains(h1=["vm1"], h2=["vm2", "n" * 63, "m" * 64, "l" * 70], h3=["vm3", "b\u00fcro"])
        hosts.h3.has("vm4", start=False)
        hosts.h3.has("vm5", paused=True)
        hosts.serve(h1="reference", h2="reference", h3="reference")
        with Member(hosts.h1, GROUP) as member:
            # Whoever joins makes all tell their domains.
            net.wait_until(lambda: len(_told(member.events)) == DOMAINS, 30)
            shown = set()
            for asked, action, target in (
                    ("h1", "status", "vm1"), ("h1", "status", "vm3"), ("h2", "status", "vm4"), ("h1", "status", "vm5"),
                    ("h1", "off", "vm3"), ("h2", "off", "vm3"), ("h2", "on", "vm3"), ("h2", "reboot", "vm3"),
                    ("h1", "status", "n" * 63), ("h1", "off", "b\u00fcro"), ("h3", "status", "nobody"),
                    ("h3", "off", "nobody"), ("h3", "on", "nobody")):
                before = len(member.events)
                result = hosts.ask(asked, action, target, side="reference")
                # Some tell of their domains after the reply.
                net.wait_until(lambda: len(_told(member.events[before:])) == DOMAINS, 30)
                news = {event["message"]: event["node"] for event in member.events[before:]}
                for message in sorted(news.keys() - shown, key=lambda m: (m[0], news[m], m[16:80])):
                    shown.add(message)
                    yield _cpg(f"{action}-{target.encode('ascii', 'replace').decode()}-from-{asked}", news[message],
                               message, result.rc)


def _told(events):
    """The domains of which the events tell."""
    return {event["message"][16:80] for event in events if event.get("message", b"")[:1] == b"\2"}


def _cpg(case, node, message, rc):
    fields = wire.CpgMessage.parse(message)
    name = {0: "request", 1: "reply", 2: "domain"}[fields.kind]
    shown = {"case": f"{case}-{name}", "node": node}
    if name == "domain":
        shown["case"] += f"-{fields.name.hex()}"
        shown |= {"kind": name, "message": message.hex(), "name": fields.name.hex(), "uuid": fields.uuid.decode(),
                  "owner": fields.owner, "state": fields.state}
    else:
        shown |= {"kind": name, "message": message.hex(), "sequence": fields.sequence, "to": fields.to,
                  "action": fields.action, "target": fields.name.hex(), "client": fields.client,
                  "response": fields.response}
        if name == "reply":
            assert fields.response == rc, f"{case}: the agent exits with {rc}"
    return list(shown.items())


# ---- requests --------------------------------------------------------------------------------------------------

def multicast_requests(lab):
    for family in AF:
        for hash_name in wire.HASHES:
            with wire.FakeHost(lab.host, lab.key, auth=wire.SHA256, family=FAMILY[family], response=_answer) as host:
                for action in wire.ACTIONS:
                    for target, uuid in (("vm1", False), (UUID, True)):
                        packet = _agent_packet(lab, host, ["-i", family, "-c", hash_name, *_target(target, uuid)], action)
                        yield _request(f"multicast-{action}-{hash_name}-{family}-{'uuid' if uuid else 'name'}",
                                       "multicast", packet, "key.bin", lab.key)
    with wire.FakeHost(lab.host, lab.key, response=_answer) as host:
        packet = _agent_packet(lab, host, ["-H", "a" * 63], "status")
        yield _request("multicast-status-name-of-63", "multicast", packet, "key.bin", lab.key)
    with wire.FakeHost(lab.host, lab.key, response=_answer, port=4321) as host:
        packet = _agent_packet(lab, host, ["-H", "vm1", "-p", "4321"], "status")
        yield _request("multicast-status-port-4321", "multicast", packet, "key.bin", lab.key)


def tcp_requests(lab):
    for family in AF:
        for hash_name in wire.HASHES:
            with wire.FakeHost(lab.host, lab.key, transport="tcp", family=FAMILY[family], response=_answer) as host:
                for action in wire.ACTIONS:
                    args = ["-T", lab.host.address(AF[family]), "-c", hash_name, "-n", "vm1"]
                    packet = _agent_packet(lab, host, args, action, program=programs.FENCE_VIRT)
                    yield _request(f"tcp-{action}-{hash_name}-{family}", "tcp", packet, "key.bin", lab.key)


def key_requests(lab):
    for name in ("key-short.bin", "key-long.bin", "key-newline.bin", "key-zeros.bin"):
        key = wire.read_key(lab.keys[name])
        for hash_name in ("sha1", "sha256", "sha512"):
            with wire.FakeHost(lab.host, key, response=_answer) as host:
                packet = _agent_packet(lab, host, ["-H", "vm1", "-c", hash_name], "off", key=name)
                assert host.proofs == [True], f"{name}: the agent's proof"
                yield _request(f"multicast-{name.removesuffix('.bin')}-{hash_name}", "multicast", packet, name, key)


def _agent_packet(lab, host, args, action, key="key.bin", program=None):
    before = len(host.packets)
    result = programs.run_agent(lab.guest, *args, "-o", action, "-k", lab.keys[key], "-t", "5", program=program)
    assert result.rc == 0, f"{action} {args}: {result}"
    assert len(host.packets) == before + 1, "one packet per request"
    return host.packets[before][0]


def _answer(request):
    return wire.build_host_list([]) if request.action == wire.LIST else bytes([wire.SUCCESS])


def _target(target, uuid):
    return ["-u", "-H", target] if uuid else ["-H", target]


def _request(case, transport, packet, key_name, key):
    r = wire.Request.parse(packet)
    assert wire.Request.verify(packet, key), f"{case}: hash"
    return [
        ("case", case), ("transport", transport), ("key", key_name), ("packet", packet.hex()),
        ("action", r.action), ("hash", r.hash_type), ("address_len", r.address_len), ("flags", r.flags),
        ("uuid", r.flags & wire.FLAG_UUID), ("domain", r.domain.hex()), ("address", r.address or "-"),
        ("port", r.port), ("random", r.random.hex()), ("seqno", r.seqno), ("family", r.family),
        ("packet_hash", r.packet_hash.hex()),
    ]


# ---- handshakes ------------------------------------------------------------------------------------------------

def agent_handshakes(lab):
    """The reference agent against a host made by hand: all auth types, on multicast and TCP."""
    for transport in ("multicast", "tcp"):
        for auth_name, auth in wire.HASHES.items():
            for key_name in ("key.bin", "key-short.bin"):
                key = wire.read_key(lab.keys[key_name])
                for code in (wire.SUCCESS, wire.FAILURE, wire.RESPONSE_OFF, wire.DENIED):
                    args = ["-H", "vm1"] if transport == "multicast" else ["-T", lab.host.ip, "-n", "vm1"]
                    program = programs.FENCE_XVM if transport == "multicast" else programs.FENCE_VIRT
                    with wire.FakeHost(lab.host, key, auth=auth, transport=transport, response=bytes([code])) as host:
                        result = programs.run_agent(lab.guest, *args, "-o", "status", "-C", auth_name, "-t", "5",
                                                    "-k", lab.keys[key_name], program=program)
                        assert result.rc == code, result
                        assert host.proofs == ([True] if auth else []), host.proofs
                        pieces = [data for _, data in host.streams[0].transcript]
                        packet = host.packets[0][0]
                    yield _handshake(f"agent-{transport}-{auth_name}-{key_name.removesuffix('.bin')}-{code}",
                                     "agent", transport, key_name, auth, packet,
                                     pieces if transport == "multicast" else pieces[1:])


def daemon_handshakes(lab):
    """The reference daemon against a client made by hand: all auth types, every response it can give."""
    for auth_name, auth in wire.HASHES.items():
        domains = ["vm1", Domain("vm2", state=SHUTOFF), "denied"]
        config = {"auth": auth_name, "hash": auth_name, "interface": "eth0"}
        uri = testdriver.write(lab.scratch / "handshake.xml", domains)
        file = programs.write_config(
            lab.scratch / "handshake.conf", listener_options={"key_file": lab.keys["key.bin"], **config},
            backend_options={"uri": uri},
            groups=[{"ip": lab.guest.ip, "uuid": ["vm1", "vm2", domains[1].uuid, testdriver.uuid_of("vm1")]}])
        with programs.Daemon(lab.host, file):
            client = wire.FakeClient(lab.guest, lab.key, auth=auth, hash_type=auth)
            for action, domain, code in (
                    (wire.STATUS, b"vm1", wire.SUCCESS), (wire.STATUS, b"vm2", wire.RESPONSE_OFF),
                    (wire.STATUS, b"denied", wire.DENIED), (wire.NULL, b"vm1", wire.FAILURE),
                    (wire.OFF, b"vm1", wire.SUCCESS)):
                packet = client.packet(action, domain)
                got = client.multicast(action, domain, packet=packet)
                assert (got.kind, got.code) == ("code", code), got
                yield _handshake(f"daemon-multicast-{auth_name}-{action}-{code}", "daemon", "multicast", "key.bin",
                                 auth, packet, [data for _, data in got.transcript])


def proxied(lab):
    """The reference agent and the reference daemon, with a recorder between them on TCP."""
    domains = ["vm1", Domain("vm2", state=SHUTOFF)]
    with lab.daemon("proxied", domains, listener="tcp", ready="tcp", address="0.0.0.0"), Recorder(lab) as recorder:
        for action, domain, rc in (("status", "vm1", 0), ("status", "vm2", 2), ("null", "vm1", 1),
                                   ("reboot", "vm1", 0), ("off", "vm1", 0), ("on", "vm2", 0), ("monitor", "vm1", 0)):
            result = programs.run_agent(lab.guest, "-T", lab.proxy.ip, "-o", action, "-n", domain, "-t", "10",
                                        "-k", lab.keys["key.bin"], program=programs.FENCE_VIRT)
            assert result.rc == rc, (action, result)
            up, down = recorder.finished()
            assert len(up) == 176 + 128 and len(down) == 129, (len(up), len(down))
            pieces = [up[176:240], down[:64], down[64:128], up[240:], down[128:]]
            yield _handshake(f"both-tcp-sha256-{action}-{rc}", "both", "tcp", "key.bin", wire.SHA256, up[:176], pieces)


class Recorder:
    """A TCP relay in a node of its own that keeps the bytes of each direction."""

    def __init__(self, lab):
        self._lab, self._done = lab, []
        self._arrived = threading.Condition()
        self._listener = lab.proxy.socket()
        self._listener.bind(("", wire.PORT))
        self._listener.listen(4)
        threading.Thread(target=self._serve, daemon=True).start()

    def finished(self):
        """(client's bytes, host's bytes) of the next connection that has ended on both sides."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: self._done, 10):
                raise TimeoutError("no finished connection")
            return self._done.pop(0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            host = self._lab.proxy.socket()
            host.connect((self._lab.host.ip, wire.PORT))
            seen = ([], [])
            pumps = [threading.Thread(target=self._pump, args=a)
                     for a in ((client, host, seen[0]), (host, client, seen[1]))]
            for p in pumps:
                p.start()
            for p in pumps:
                p.join()
            with self._arrived:
                self._done.append((b"".join(seen[0]), b"".join(seen[1])))
                self._arrived.notify_all()

    @staticmethod
    def _pump(source, sink, seen):
        try:
            while data := source.recv(4096):
                seen.append(data)
                sink.sendall(data)
        except OSError:
            pass
        for s in (source, sink):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def _handshake(case, captured, transport, key_name, auth, packet, pieces):
    record = [("case", case), ("captured", captured), ("transport", transport), ("key", key_name), ("auth", auth),
              ("packet", packet.hex())]
    if auth != wire.HASH_NONE:
        c1, answer, c2, proof = pieces[:4]
        key = wire.read_key(HERE / key_name) if (HERE / key_name).exists() else KEYS[key_name][:wire.KEY_MAX]
        assert answer == wire.digest(auth, key, c1), f"{case}: host's answer"
        assert proof == wire.digest(auth, key, c2), f"{case}: client's proof"
        record += [("c1", c1.hex()), ("host_answer", answer.hex()), ("c2", c2.hex()), ("client_answer", proof.hex())]
        pieces = pieces[4:]
    return record + [("response", b"".join(pieces).hex())]


# ---- host lists ------------------------------------------------------------------------------------------------

def host_lists(lab):
    sets = {
        "empty": [],
        "one": ["vm1"],
        "three": ["vm1", Domain("vm2", state=SHUTOFF), Domain("vm3", state=PAUSED)],
        "crashed": [Domain("vm1", state=CRASHED)],
        "name-of-62": ["n" * 62],
        "names": ["a b", "dörte", "x&y"],
    }
    for transport in ("multicast", "tcp"):
        for name, domains in sets.items():
            options = {"address": "0.0.0.0"} if transport == "tcp" else {"interface": "eth0"}
            ready = "tcp" if transport == "tcp" else "udp"
            with lab.daemon(f"list-{transport}-{name}", domains, listener=transport, ready=ready, **options):
                client = wire.FakeClient(lab.guest, lab.key)
                got = (client.multicast(wire.LIST) if transport == "multicast" else client.tcp(lab.host.ip, wire.LIST))
                assert got.kind == "list" and len(got.entries) == len(domains), (name, got)
                # The five pieces before the response: (request on TCP,) challenge both ways.
                response = b"".join(data for way, data in got.transcript if way == "<")[128:]
                yield _list_record(f"{transport}-{name}", transport, response, got)


def _list_record(case, transport, response, got):
    record = [("case", case), ("transport", transport), ("count", len(got.entries)), ("code", got.code),
              ("response", response.hex())]
    for i, e in enumerate(got.entries):
        record += [(f"name{i}", e.name.hex()), (f"uuid{i}", e.uuid.decode()), (f"state{i}", e.state)]
    return record


# ---- serial ----------------------------------------------------------------------------------------------------

def serial_agent(lab):
    """The reference agent on a pseudo terminal: what it sends, and what it makes of answers."""
    for action, number in wire.ACTIONS.items():
        for target, code in (("vm1", wire.SUCCESS), ("vm1", wire.FAILURE), (UUID, wire.SUCCESS)):
            if number == wire.LIST:
                entry = wire.HostEntry("vm1", UUID, testdriver.RUNNING)
                answer = (wire.serial_response(wire.LIST_FOLLOWS) + entry.build() + bytes(wire.ENTRY_LEN)
                          + wire.serial_response(code))
            else:
                answer = wire.serial_response(code)
            # Noise before the magic, one stray first byte of it included.
            answer = b"\x00login: a" + answer
            frame, result = _on_pty(lab, action, target, answer)
            r = wire.SerialRequest.parse(frame)
            yield [("case", f"agent-{action}-{'uuid' if target == UUID else 'name'}-{code}"), ("captured", "agent"),
                   ("frame", frame.hex()), ("action", r.action), ("flags", r.flags), ("domain", r.domain.hex()),
                   ("seqno", r.seqno), ("answer", answer.hex()), ("rc", result.rc), ("stdout", result.out.encode().hex())]


def _on_pty(lab, action, target, answer):
    master, slave = os.openpty()
    try:
        tty.setraw(slave)
        agent = programs.Agent(lab.guest, "-D", os.ttyname(slave), "-o", action, "-n", target, "-t", "5",
                               program=programs.FENCE_VIRT)
        frame = b""
        while len(frame) < wire.SERIAL_REQUEST_LEN:
            frame += os.read(master, wire.SERIAL_REQUEST_LEN - len(frame))
        os.write(master, answer)
        return frame, agent.finish(20)
    finally:
        os.close(slave)
        os.close(master)


def serial_daemon(lab):
    """The reference daemon on the UNIX socket of a guest's serial port, and of a VM channel."""
    for mode in ("serial", "vmchannel"):
        path = str(lab.scratch / f"{mode}.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(4)
        listener.settimeout(20)
        device = testdriver.serial_device(path) if mode == "serial" else testdriver.channel_device(path)
        domains = [Domain("vm1", devices=device), Domain("vm2", state=SHUTOFF), "vm3"]
        with lab.daemon(mode, domains, listener="serial", ready=None, mode=mode):
            stream = wire.Stream(listener.accept()[0])
            cases = [(wire.STATUS, "vm1"), (wire.STATUS, "vm2"), (wire.NULL, "vm1"), (wire.MONITOR, ""),
                     (wire.LIST, ""), (wire.OFF, "vm3"), (wire.ON, "vm3"), (wire.OFF, "vm2")]
            for seqno, (action, domain) in enumerate(cases, 1):
                frame = wire.SerialRequest(action, domain, 0, seqno).build()
                stream.send(frame)
                answer = stream.recv(wire.SERIAL_RESPONSE_LEN)
                code, entries = answer[4], 0
                if code == wire.LIST_FOLLOWS:
                    while True:
                        entry = stream.recv(wire.ENTRY_LEN)
                        answer += entry
                        if entry == bytes(wire.ENTRY_LEN):
                            break
                        entries += 1
                    answer += stream.recv(wire.SERIAL_RESPONSE_LEN)
                yield [("case", f"daemon-{mode}-{seqno}"), ("captured", "daemon"), ("frame", frame.hex()),
                       ("action", action), ("flags", 0), ("domain", domain.encode().hex()), ("seqno", seqno),
                       ("answer", answer.hex()), ("code", code), ("entries", entries)]
            stream.close()
        listener.close()


def _write(path, records):
    lines = [" ".join(f"{k}={v}" for k, v in r) for r in records]
    version = _version()
    path.write_text(f"# Captured by capture.py from {version}. Format: README.md.\n" + "\n".join(lines) + "\n")
    print(f"{path.name}: {len(lines)} records")


def _version():
    import subprocess
    if programs.REFERENCE == "today":
        return f"fence-virt and fence-virtd {(programs.REFERENCES['today'] / 'version').read_text().strip()}"
    done = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Version}, ", "fence-virt", "fence-virtd"],
                          capture_output=True, text=True)
    return done.stdout.strip(", ") or "the reference programs"


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s")
