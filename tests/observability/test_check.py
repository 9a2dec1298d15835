# SPDX-License-Identifier: GPL-2.0-or-later
"""fence_virtd --check: each check passes where all is well, and fails for its own reason."""

import contextlib
import os
import pathlib
import re
import socket
import stat
import subprocess
import uuid

import pytest

from lab import programs, testdriver

from conftest import VIRTD


def only(found, check):
    """The one finding of a check."""
    [it] = [it for (name, _), it in found.items() if name == check]
    return it


def of(found, check, subject):
    """The finding whose subject has that in it."""
    [it] = [it for (name, about), it in found.items() if name == check and str(subject) in about]
    return it


def failed(found):
    return {check for (check, _), it in found.items() if it["result"] == "failed"}


def snapshot(directory):
    """Everything below a directory, as it is on the disk."""
    return {str(it): (it.lstat().st_mode, it.lstat().st_mtime_ns, it.lstat().st_size)
            for it in sorted(pathlib.Path(directory).rglob("*"))}


def test_all_is_well(setup):
    setup.write()
    before = snapshot(setup.directory)
    rc, found = setup.check()
    assert rc == 0 and not failed(found), found
    assert only(found, "configuration")["text"].startswith("listeners: multicast, tcp; backend: libvirt")
    assert only(found, "user")["result"] == "ok"
    assert "4096 bytes, mode 0600, fingerprint " in of(found, "key", setup.key)["text"]
    assert setup.stage.host.ip in of(found, "interface", "eth0")["text"]
    assert of(found, "interface", "tcp")["result"] == "ok"
    assert of(found, "port", "udp")["text"] == of(found, "port", "tcp")["text"] == "free"
    assert "3 domains, 2 of them running" in only(found, "libvirt")["text"]
    assert only(found, "state_dir")["result"] == "ok"
    assert "system calls limited" in only(found, "sandbox")["text"]
    # Nothing was made, the state directory neither.
    assert snapshot(setup.directory) == before


def test_json_and_lines_say_the_same(setup):
    setup.write(interface="no-such-if")
    rc, found = setup.check()
    assert rc == 1
    for it in found.values():
        assert set(it) == {"check", "subject", "result", "text", "next"}
        assert it["result"] in ("ok", "warning", "failed")
        assert (it["next"] is None) == (it["result"] == "ok")
        assert all(isinstance(it[name], str) for name in ("check", "subject", "text"))
    result = setup.run("--check", "-f", setup.file)
    assert result.rc == 1 and result.err == ""
    lines = result.out.splitlines()
    first = [line.split(None, 2)[:2] for line in lines if not line.startswith(" ")]
    assert [it[0] for it in first] == [it["result"] for it in found.values()]
    assert [it[1].rstrip(":") for it in first] == [it["check"] for it in found.values()]
    at = next(i for i, line in enumerate(lines) if line.startswith("failed   interface no-such-if: does not exist"))
    assert lines[at + 1].startswith("         -> ") and "ip link" in lines[at + 1]


def test_sends_nothing(setup, stage):
    """Not a datagram, not a connection: the only thing that may leave is what a hypervisor's URI asks for."""
    setup.write()
    with stage.guest.entered():
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
    tap.bind(("eth0", 0))
    tap.setblocking(False)
    mac = stage.host.ip_cmd("-o link show eth0").split("link/ether ")[1].split()[0]
    setup.check()
    sent = []
    with contextlib.suppress(BlockingIOError):
        while True:
            sent.append(tap.recv(2048))
    tap.close()
    ours = [it for it in sent if it[6:12] == bytes.fromhex(mac.replace(":", ""))]
    # ARP, neighbour discovery and the like of the kernel are nobody's doing; ports 1229 would be.
    assert not [it for it in ours if (1229).to_bytes(2, "big") in it[34:42]], ours


def test_configuration(setup):
    rc, found = setup.check()
    assert rc == 1 and failed(found) == {"configuration"}
    assert "can't be read" in only(found, "configuration")["text"]
    setup.write(tcp='port = "0";', options='no_such_key = "1";')
    rc, found = setup.check()
    by = {it["result"]: it for (check, _), it in found.items() if check == "configuration"}
    assert rc == 1 and set(by) == {"warning", "failed"}
    assert by["failed"]["subject"].startswith(f"{setup.file}:") and "port" in by["failed"]["text"]
    assert by["failed"]["subject"].count(":") == 2
    text = setup.run("--check", "-f", setup.file).out
    assert "^" in text and 'port = "0"' in text


def test_an_audit_file_on_a_full_disk(setup, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        audit = disk / "audit.log"
        audit.touch()
        setup.write(options=f'audit_log = "{audit}";')
        assert only(setup.check()[1], "audit_log")["result"] == "ok"
        with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        rc, found = setup.check()
        it = only(found, "audit_log")
        assert rc == 1 and it["result"] == "failed" and it["text"] == "is on a full disk: records are in the daemon's log alone", it
        assert "df -h" in it["next"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_only_a_regular_file_is_read_as_configuration(setup):
    """Neither the check nor the daemon waits for a writer, or reads for ever."""
    fifo, link = setup.directory / "fifo", setup.directory / "zero"
    os.mkfifo(fifo)
    link.symlink_to("/dev/zero")
    for path, kind in [(fifo, "a named pipe (FIFO)"), (link, "a device"), (setup.directory, "a directory")]:
        says = f"it is {kind}; only a regular file is read"
        checked = setup.run("--check", "-f", path)
        assert checked.rc == 1 and f"failed   configuration {path}: can't be read: {says}" in checked.out, checked
        for args in [["-F"], ["--status"], ["--forget", "all"]]:
            it = setup.run(*args, "-f", path)
            assert it.rc == 1 and says in it.err, it
    setup.write()
    with open(setup.file, "a") as file:
        file.truncate(1 << 40)
    checked = setup.run("--check", "-f", setup.file)
    assert checked.rc == 1 and "file has more than 1048576 bytes" in checked.out, checked


def test_who_can_change_the_configuration(setup):
    setup.write()
    setup.file.chmod(0o666)
    result = setup.run("--check", "-f", setup.file)
    assert result.rc == 1
    assert f"failed   configuration {setup.file}: every user of this machine can write it (mode 0666)" in result.out, result
    assert f"chmod o-w {setup.file}\n" in result.out
    setup.file.chmod(0o600)
    os.chown(setup.file, 65534, -1)
    os.chown(setup.key, 65534, -1)
    result = setup.run("--check", "-f", setup.file)
    assert result.rc == 0 and f"warning  configuration {setup.file}: it belongs to the user nobody" in result.out, result
    assert re.search(f"warning  key {setup.key}: listener .*: the file belongs to the user nobody", result.out), result


def test_an_audit_file_that_keeps_nothing(setup):
    fifo = setup.directory / "audit"
    os.mkfifo(fifo)
    setup.write(options=f'audit_log = "{fifo}";')
    rc, found = setup.check()
    it = only(found, "audit_log")
    assert rc == 0 and it["result"] == "warning" and it["text"].startswith("is a named pipe (FIFO)"), it


def test_key_files(setup):
    setup.write()
    setup.key.chmod(0o644)
    rc, found = setup.check()
    assert rc == 1 and failed(found) == {"key"}
    it = of(found, "key", setup.key)
    assert "every user" in it["text"] and it["next"] == f"chmod 600 {setup.key}"
    setup.key.unlink()
    rc, found = setup.check()
    it = of(found, "key", setup.key)
    assert rc == 1 and "does not exist" in it["text"] and "--keygen" in it["next"]
    programs.write_key(setup.key, b"x")
    rc, found = setup.check()
    assert rc == 1 and "has 1 byte" in of(found, "key", setup.key)["text"]


def test_keys_of_groups(setup):
    own = programs.write_key(setup.directory / "own", b"the key of a group, long enough")
    group = 'group {{ name = "red"; uuid = "vm1"; key_file = "{}"; }}'
    setup.write(groups=f"groups {{ {group.format(own)} }}")
    rc, found = setup.check()
    assert rc == 0 and "group red" in of(found, "key", own)["text"]
    own.chmod(0o666)
    rc, found = setup.check()
    assert rc == 1 and "group red" in of(found, "key", own)["text"] and of(found, "key", own)["result"] == "failed"
    own.unlink()
    programs.write_key(own, setup.key.read_bytes())
    rc, found = setup.check()
    assert rc == 0 and any("stands for several" in it["text"] for it in found.values())
    # No key reaches the output.
    assert b"the key of a group" not in setup.run("--check", "-f", setup.file).out.encode()


def test_islands(setup):
    """Which groups' requests can wait for which."""
    keys = {name: programs.write_key(setup.directory / name, f"the key of {name}, long enough".encode()) for name in ("red", "blue")}
    group = lambda name, *members, more="": (f'group {{ name = "{name}"; key_file = "{keys[name]}"; {more} '
                                             + "".join(f'uuid = "{it}"; ' for it in members) + "}")
    said = lambda found: {about: it["text"] for (check, about), it in found.items() if check == "islands"}
    setup.write()
    assert said(setup.check()[1])[""].startswith("one: without groups")
    setup.write(groups=f"groups {{ {group('red', 'vm1', 'vm2')} {group('blue', 'vm3', 'vm4')} }}")
    rc, found = setup.check()
    assert rc == 0 and said(found) == {"": "2: what hangs, or asks without end, in one holds up no other",
                                       "group red": "waits for no other group", "group blue": "waits for no other group"}
    # One names it by its name, the other by its UUID.
    by_uuid = group("blue", *map(testdriver.uuid_of, ("vm1", "vm3")))
    setup.write(groups=f"groups {{ {group('red', 'vm1', 'vm2')} {by_uuid} }}")
    assert said(setup.check()[1])["group red"] == "can wait for 1 other group: group blue"
    by_address = group("red", "vm1", "vm2", more='ip = "10.0.0.1";')
    setup.write(groups=f"groups {{ {by_address} {group('blue', 'vm3', 'vm4')} }}")
    lines = setup.run("--check", "-f", setup.file).out.splitlines()
    assert [it for it in lines if " islands" in it] == [
        "ok       islands: one: the requests of all groups can wait for each other",
        "ok       islands group red: any domain may be the source of its requests: its sources are addresses (`ip`)",
        "ok       islands group blue: can wait for group red, of which any domain may be the source"]


def test_no_proof_is_a_warning(setup):
    setup.write(tcp='hash = "none"; auth = "none";')
    rc, found = setup.check()
    it = of(found, "key", "listener tcp")
    assert rc == 0 and it["result"] == "warning" and "no proof" in it["text"]


def test_interfaces(setup, stage):
    node = stage.net.node("spoilt", index=11)
    try:
        setup.write(interface="eth0", listener="multicast")
        rc, found = setup.check(node=node)
        assert rc == 0 and only(found, "interface")["result"] == "ok"
        node.ip_cmd("link set eth0 multicast off")
        rc, found = setup.check(node=node)
        assert rc == 1 and only(found, "interface")["text"] == "does no multicast"
        node.ip_cmd("link set eth0 multicast on")
        node.ip_cmd("addr flush dev eth0")
        rc, found = setup.check(node=node)
        assert only(found, "interface")["result"] == "warning" and "ipv4" in only(found, "interface")["text"]
        node.ip_cmd("link set eth0 down")
        rc, found = setup.check(node=node)
        assert rc == 1 and only(found, "interface")["text"] == "is down"
        assert only(found, "interface")["next"] == "ip link set eth0 up"
        setup.write(listener="tcp", address=stage.host.ip)
        rc, found = setup.check(node=node)
        assert rc == 1 and "no address of this host" in only(found, "interface")["text"]
        setup.write(listener="multicast", interface="lo")
        node.ip_cmd("link set lo multicast on")
        rc, found = setup.check(node=node)
        assert rc == 0 and only(found, "interface")["text"] == "reaches this host alone"
        setup.write(listener="tcp", address="127.0.0.1")
        rc, found = setup.check(node=node)
        assert rc == 0 and "this host alone" in only(found, "interface")["text"]
    finally:
        stage.net.remove("spoilt")


def test_ports(setup, stage):
    setup.write(listener="tcp")
    with programs.Daemon(stage.host, setup.file, program=VIRTD, ready="tcp", wait=60) as daemon:
        rc, found = setup.check()
        assert rc == 0
        assert of(found, "port", "tcp")["text"] == f"held by a running fence_virtd (pid {daemon.pid})"
        assert daemon.alive()
    taken = stage.host.socket()
    taken.bind(("0.0.0.0", 1229))
    taken.listen()
    rc, found = setup.check()
    taken.close()
    it = of(found, "port", "tcp")
    assert rc == 1 and f"(pid {os.getpid()})" in it["text"] and it["result"] == "failed", it
    # A UDP socket that shares its port with nobody.
    setup.write(listener="multicast")
    taken = stage.host.socket(kind=socket.SOCK_DGRAM)
    taken.bind(("", 1229))
    rc, found = setup.check()
    taken.close()
    it = of(found, "port", "udp")
    assert rc == 1 and f"(pid {os.getpid()})" in it["text"], it
    assert setup.check()[0] == 0


def test_libvirt(setup):
    setup.write(libvirt='uri1 = "qemu+unix:///system?socket=/nonexistent/socket";')
    rc, found = setup.check()
    assert rc == 1 and of(found, "libvirt", "test:")["result"] == "ok"
    it = of(found, "libvirt", "nonexistent")
    assert it["result"] == "failed" and "virsh" in it["next"]
    uri = testdriver.write(setup.directory / "none.xml", [])
    setup.write(libvirt=f'uri = "{uri}";')
    rc, found = setup.check()
    assert rc == 0 and "0 domains" in only(found, "libvirt")["text"]
    assert only(found, "libvirt")["result"] == "warning"
    # Of two domains with one name that are on, a request by it means none.
    uri = testdriver.write(setup.directory / "more.xml", [testdriver.Domain("vm1", uuid=str(uuid.uuid4()))])
    setup.write(libvirt=f'uri1 = "{uri}";')
    rc, found = setup.check()
    it = of(found, "domain", "vm1")
    assert rc == 1 and "a fence by this name is refused as ambiguous" in it["text"] and "rename one" in it["next"], it


def test_a_libvirt_that_hangs(setup):
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(str(setup.directory / "libvirt"))
    silent.listen()
    setup.write(libvirt=f'uri = "qemu+unix:///system?socket={setup.directory}/libvirt";')
    rc, found = setup.check()
    silent.close()
    assert rc == 1 and only(found, "libvirt")["text"] == "no answer within 10 s"
    assert only(found, "libvirt")["next"].startswith("systemctl restart libvirtd")


def test_serial_sockets(setup):
    setup.write(listener="serial")
    rc, found = setup.check()
    assert rc == 0 and "no running domain has a socket" in only(found, "serial")["text"]
    path = setup.directory / "line"
    device = testdriver.serial_device(path)
    testdriver.write(setup.directory / "domains.xml", [testdriver.Domain("vm1", devices=device)])
    rc, found = setup.check()
    assert rc == 0 and f"not there: {path} of vm1" in only(found, "serial")["text"]
    line = socket.socket(socket.AF_UNIX)
    line.bind(str(path))
    rc, found = setup.check()
    line.close()
    assert rc == 0 and only(found, "serial")["text"].startswith("1 sockets")


def test_files(setup):
    setup.write(options='audit_log = "/nonexistent/audit"; state_dir = "none";')
    rc, found = setup.check()
    assert rc == 1 and failed(found) == {"audit_log"}
    assert only(found, "audit_log")["text"] == "its directory does not exist"
    assert only(found, "state_dir")["result"] == "warning"
    setup.write(options=f'audit_log = "{setup.directory}/audit"; state_dir = "{setup.directory}/kept";')
    (setup.directory / "kept").mkdir(mode=0o777)
    (setup.directory / "kept").chmod(stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO)
    rc, found = setup.check()
    assert rc == 0 and only(found, "audit_log")["result"] == "ok"
    assert only(found, "state_dir")["next"].startswith("chmod go-w")


def test_a_user_without_rights(setup, stage):
    """What this user can't do is said of this user."""
    setup.write(options=f'audit_log = "{setup.directory}/audit";')
    for it in [setup.directory, *setup.directory.parents]:
        if str(it).startswith("/tmp/"):
            it.chmod(it.stat().st_mode | 0o055)
    setup.file.chmod(0o644)
    result = programs.run_agent(stage.host, "--reuid=65534", "--clear-groups", VIRTD, "--check", "-f", setup.file,
                                program="setpriv", env={"STATE_DIRECTORY": str(setup.state)})
    assert result.rc == 1
    assert "warning  user" in result.out and "failed   audit_log" in result.out
    assert f"failed   key {setup.key}" in result.out and "Permission denied" in result.out
    setup.file.chmod(0o600)
    result = programs.run_agent(stage.host, "--reuid=65534", "--clear-groups", VIRTD, "--check", "-f", setup.file,
                                program="setpriv", env={"STATE_DIRECTORY": str(setup.state)})
    assert result.rc == 1 and "-> run this as root" in result.out and "fence_virtd -c" not in result.out


def test_sandbox_off(setup):
    setup.write(options='sandbox = "no";')
    rc, found = setup.check()
    assert rc == 0 and only(found, "sandbox")["result"] == "warning"


def test_a_bridge_without_a_querier(setup, stage):
    node = stage.net.node("bridged", index=12)
    try:
        node.ip_cmd("link add br9 type bridge mcast_snooping 1")
        node.ip_cmd("link set br9 up")
        node.ip_cmd("addr add 10.99.0.1/24 dev br9")
        setup.write(listener="multicast", interface="br9")
        # /sys shows the network namespace of whoever mounted it.
        inside = ["unshare", "--mount", "--propagation=private", "sh", "-c",
                  'mount -t sysfs none /sys && exec "$@"', "sh", VIRTD, "--check", "-f", setup.file]
        result = node.run(inside)
        assert result.returncode == 0 and "warning  snooping br9:" in result.stdout, result
        assert "mcast_querier 1" in result.stdout
        node.ip_cmd("link set br9 type bridge mcast_querier 1")
        assert "ok       snooping br9:" in node.run(inside).stdout
        node.ip_cmd("link set br9 type bridge mcast_snooping 0")
        assert "ok       snooping br9: the bridge floods" in node.run(inside).stdout
    finally:
        stage.net.remove("bridged")


def rules(node, text):
    """Loads a rule set in a node; false where this kernel has none."""
    return node.run(["nft", "-f", "-"], input=text).returncode == 0


def test_firewall(setup, stage):
    node = stage.net.node("walled", index=13)
    try:
        setup.write(listener="multicast")
        if not rules(node, "flush ruleset"):
            pytest.skip("no nftables in this kernel")
        rc, found = setup.check(node=node)
        assert only(found, "firewall")["result"] == "ok"
        chain = "table inet t {\n chain c {\n type filter hook %s priority 0; policy drop;\n %s\n }\n }\n"
        assert rules(node, chain % ("input", "tcp dport 22 accept"))
        rc, found = setup.check(node=node)
        assert rc == 0 and only(found, "firewall")["result"] == "warning"
        assert "1229" in only(found, "firewall")["text"]
        assert rules(node, "flush ruleset\n" + chain % ("input", "udp dport 1229 accept"))
        it = only(setup.check(node=node)[1], "firewall")
        assert it["result"] == "ok" and "udp port 1229 in" in it["text"], it
        assert rules(node, "flush ruleset\n" + chain % ("input", "tcp dport 1229 accept"))
        it = only(setup.check(node=node)[1], "firewall")
        assert it["result"] == "warning" and "none names udp port 1229" in it["text"], it
        accept = chain.replace("policy drop", "policy accept")
        assert rules(node, "flush ruleset\n" + accept % ("input", "udp dport 1229 drop"))
        it = only(setup.check(node=node)[1], "firewall")
        assert it["result"] == "warning" and "a rule drops udp port 1229 in: udp dport 1229 drop" in it["text"], it
        assert rules(node, "flush ruleset\n" + accept % ("input", "udp dport 5353 drop"))
        it = only(setup.check(node=node)[1], "firewall")
        assert it["result"] == "ok" and "tcp port 1229" not in it["text"], it
        assert rules(node, "flush ruleset\n" + chain % ("output", "oif lo accept"))
        assert "call-backs" in only(setup.check(node=node)[1], "firewall")["text"]
    finally:
        stage.net.remove("walled")


def test_command_line(setup):
    for args in (["--check", "x"], ["--check", "-F"], ["--check", "--jsonx"]):
        result = setup.run(*args)
        assert result.rc == 1 and result.out == "", result
    setup.write()
    with open("/dev/full", "w") as full:
        assert setup.stage.host.run([VIRTD, "--check", "-f", setup.file], capture_output=False, stdout=full).returncode


def test_metrics(setup):
    setup.write(options=f'metrics = "unix:{setup.directory}/metrics";')
    rc, found = setup.check()
    assert rc == 0 and only(found, "metrics")["result"] == "ok"
    setup.write(options='metrics = "unix:/nonexistent/metrics";')
    rc, found = setup.check()
    assert rc == 0 and only(found, "metrics")["result"] == "warning"
    taken = setup.stage.host.socket()
    taken.bind(("127.0.0.1", 9229))
    taken.listen()
    setup.write(options='metrics = "127.0.0.1:9229";')
    rc, found = setup.check()
    taken.close()
    it = of(found, "port", "127.0.0.1:9229")
    assert rc == 1 and f"(pid {os.getpid()})" in it["text"]
