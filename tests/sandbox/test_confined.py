# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon and the agent inside their own limits: all threads have them, and everything still works, for root and for a
user without any right but a group that may use libvirt's socket.

Run: /usr/bin/python3 -m pytest tests/sandbox        (root; ours alone)"""

import os
import pathlib
import pwd
import re
import shutil
import socket
import subprocess
import tempfile

import pytest

from lab import net, programs, testdriver, wire
from lab.hypervisor import Hypervisor

import spy

OURS = programs.OURS_DIR / "fence_virtd"
XVM = programs.OURS_DIR / "fence_xvm"
#: Somebody who owns nothing. libvirt wants users to have a name.
USER = pwd.getpwnam("nobody").pw_uid
#: The group that Debian's libvirt lets use its socket.
GROUP = "libvirt"
ACTIONS = [("status", 0), ("off", 0), ("status", 2), ("off", 0), ("on", 0), ("status", 0), ("reboot", 0), ("status", 0)]
CAPABILITIES = {"CAP_DAC_OVERRIDE": 1, "CAP_DAC_READ_SEARCH": 2, "CAP_NET_ADMIN": 12}


@pytest.fixture
def place():
    """A directory that any user may pass: pytest's own are root's alone."""
    it = pathlib.Path(tempfile.mkdtemp(prefix="fence-sandbox-"))
    it.chmod(0o711)
    yield it
    shutil.rmtree(it)


@pytest.fixture(scope="module")
def lab():
    with net.Net() as it:
        it.node("host")
        it.node("guest")
        yield it


def config(place, listeners, uri, more=""):
    """fence_virt.conf, with a key file beside it."""
    key = programs.write_key(place / "key")
    blocks = [(name, body.replace("@key@", f'key_file = "{key}";')) for name, body in listeners.items()]
    text = " ".join(f"{name} {{ {body} }}" for name, body in blocks)
    return programs.write_config(place / "fence_virt.conf", f"""
        fence_virtd {{ listener = "{', '.join(listeners)}"; backend = "libvirt"; state_dir = "{place}/state";
            audit_log = "{place}/log/audit"; {more} }}
        listeners {{ {text} }}
        backends {{ libvirt {{ uri = "{uri}"; }} }}""")


def status(pid, thread=None):
    """The fields of /proc/PID/status of a thread."""
    text = pathlib.Path(f"/proc/{pid}/task/{thread or pid}/status").read_text()
    return dict(re.findall(r"^(\w+):\t(.*)$", text, re.M))


def threads(pid):
    """The status of each thread; those that end meanwhile are left out."""
    out = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            out.append(status(pid, thread))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return out


def assert_confined(pid, capabilities, inheritable=False):
    """All threads have the limits, and no more than these capabilities; `inheritable`: that set may have them too, which
    gives no program anything by itself."""
    allowed = sum(1 << CAPABILITIES[it] for it in capabilities)
    found = threads(pid)
    assert found
    for it in found:
        assert (it["NoNewPrivs"], it["Seccomp"]) == ("1", "2"), it
        for kind in ("CapPrm", "CapEff", "CapInh") if inheritable else ("CapPrm", "CapEff"):
            assert int(it[kind], 16) & ~allowed == 0, it
        for kind in ("CapAmb",) if inheritable else ("CapInh", "CapAmb"):
            assert int(it[kind], 16) == 0, it


def agent(lab, place, *args):
    return programs.run_agent(lab.nodes["guest"], "-k", place / "key", *args, program=str(XVM))


@pytest.fixture
def daemon(lab, place):
    """daemon(config, user=False, ready=…): our fence_virtd, as root or as the user without rights."""
    running = []
    binary = place / "fence_virtd"
    shutil.copy(OURS, binary)
    binary.chmod(0o755)
    for name in ("state", "log"):
        (place / name).mkdir()

    def start(file, user=False, ready="tcp", capability=None, node=None):
        program = binary
        if user:
            program = place / "as-user"
            more = f",+{capability}" if capability else ""
            program.write_text(f"""#!/bin/sh
exec setpriv --reuid={USER} --regid={USER} --groups={GROUP} --inh-caps=-all{more} --ambient-caps=-all{more} \\
    --bounding-set=-all{more} --no-new-privs {binary} "$@"
""")
            program.chmod(0o755)
            for name in ("state", "log") if capability else ("key", "fence_virt.conf", "state", "log"):
                os.chown(place / name, USER, USER)
        it = programs.Daemon(node or lab.nodes["host"], file, program=str(program), ready=ready, wait=60, pidfile=place / "state/pid",
                             env={"HOME": str(place / "state")})
        running.append(it)
        return it

    yield start
    for it in running:
        assert it.stop() == 0, it.log


def test_every_thread(lab, place, daemon):
    uri = testdriver.write(place / "domains.xml", ["vm1"])
    it = daemon(config(place, {"multicast": "@key@", "tcp": f'@key@ address = "{lab.nodes["host"].ip}"; port = "1230";'}, uri),
                ready="udp")
    it.wait_log(" serving")
    assert agent(lab, place, "-o", "reboot", "-H", "vm1").rc == 0
    assert len(threads(it.pid)) > 3
    assert_confined(it.pid, CAPABILITIES)
    line = it.wait_log("sandbox: (.*)")[1]
    assert "system calls limited" in line
    # Another kernel may have less of it, but never in silence.
    assert re.search(r"files (limited|not limited \(.+\))", line)
    # What a log rotation does.
    (place / "log/audit").rename(place / "log/audit.1")
    it.send_signal(1)
    it.wait_log("audit file opened anew")
    assert agent(lab, place, "-o", "status", "-H", "vm1").rc == 0
    net.wait_until(lambda: (place / "log/audit").read_text().count("\n") == 1)


def test_switched_off(lab, place, daemon):
    uri = testdriver.write(place / "domains.xml", ["vm1"])
    it = daemon(config(place, {"multicast": "@key@"}, uri, more='sandbox = "no";'), ready="udp")
    it.wait_log("keeps all rights")
    it.wait_log(" serving")
    assert {one["Seccomp"] for one in threads(it.pid)} == {status(os.getpid())["Seccomp"]}


#: Stands in for ssh and for the user's own command: connects standard input and output to libvirtd.
TUNNEL = """#!/usr/bin/python3
import os, select, socket, sys
open({notes!r}, "a").write(open("/proc/self/status").read())
daemon = socket.socket(socket.AF_UNIX)
daemon.connect({socket!r})
while True:
    for ready in select.select([0, daemon], [], [])[0]:
        data = os.read(0, 65536) if ready == 0 else daemon.recv(65536)
        if not data:
            sys.exit()
        daemon.sendall(data) if ready == 0 else os.write(1, data)
"""


@pytest.mark.parametrize("user", [False, True], ids=["root", "user"])
@pytest.mark.parametrize("transport", ["ssh", "ext"])
def test_programs_that_libvirt_starts(lab, place, daemon, transport, user):
    """URIs of other hosts: libvirt starts a program, which has none of the daemon's capabilities."""
    hypervisor = place / "hypervisor"
    hypervisor.mkdir(mode=0o711)
    notes, tunnel = place / "notes", place / "tunnel"
    notes.touch()
    notes.chmod(0o666)
    with Hypervisor(lab.nodes["host"].ns, directory=hypervisor, socket_group=GROUP) as it:
        it.domain("vm1")
        tunnel.write_text(TUNNEL.format(notes=str(notes), socket=str(it.socket)))
        tunnel.chmod(0o755)
        uri = f"qemu+{transport}://elsewhere/system?command={tunnel}&proxy=netcat"
        file = config(place, {"multicast": "@key@"}, uri)
        served = daemon(file, user=user, ready="udp", capability=None)
        served.wait_log(" serving")
        assert agent(lab, place, "-o", "status", "-H", "vm1").rc == 0, served.log
    found = re.findall(r"^Cap(Eff|Prm|Amb):\t(\w+)$", notes.read_text(), re.M)
    assert found and all(int(value, 16) == 0 for _, value in found), found


def test_a_user_without_rights_and_a_real_hypervisor(lab, place, daemon):
    hypervisor = place / "hypervisor"
    hypervisor.mkdir(mode=0o711)
    with Hypervisor(lab.nodes["host"].ns, directory=hypervisor, socket_group=GROUP) as it:
        vm = it.domain("vm1")
        tcp = f'@key@ address = "{lab.nodes["host"].ip}"; port = "1230";'
        one = daemon(config(place, {"multicast": "@key@", "tcp": tcp}, it.uri), user=True, ready="udp")
        one.wait_log(" serving", timeout=60)
        assert_confined(one.pid, ())
        assert status(one.pid)["Uid"].split() == [str(USER)] * 4
        assert "vm1" in agent(lab, place, "-o", "list").out
        for action, code in ACTIONS:
            said = agent(lab, place, "-o", action, "-H", vm.uuid)
            assert said.rc == code, (action, said, one.log)
        for action, code in ACTIONS:
            said = programs.run_agent(lab.nodes["guest"], "-k", place / "key", "-T", lab.nodes["host"].ip, "-p", "1230", "-o", action,
                                      "-n", "vm1", program=str(programs.OURS_DIR / "fence_virt"))
            assert said.rc == code, (action, said, one.log)
        assert vm.state() == "running"
        # The daemon is limited for as long as it runs, whatever libvirt started meanwhile.
        assert_confined(one.pid, ())


@pytest.mark.parametrize("user", [False, True], ids=["root", "user"])
def test_the_arguments_of_all_processes_are_read(lab, place, daemon, user):
    """A machine that libvirtd lost is found by them."""
    hypervisor = place / "hypervisor"
    hypervisor.mkdir(mode=0o711)
    with Hypervisor(lab.nodes["host"].ns, directory=hypervisor, socket_group=GROUP) as it:
        vm = it.domain("vm1")
        it.kill()
        it.path("/run/libvirt/qemu/vm1.xml").unlink()
        it.start()
        assert vm.state() == "shut off"
        one = daemon(config(place, {"multicast": "@key@"}, it.uri), user=user, ready="udp", node=it.beside(lab.nodes["host"]))
        one.wait_log(" serving")
        assert agent(lab, place, "-o", "status", "-H", "vm1").rc == 1, one.log
        vm.process().kill()
        assert agent(lab, place, "-o", "status", "-H", "vm1").rc == 2, one.log
        one.stop()


def test_a_user_without_rights_and_a_serial_line(lab, place, daemon):
    """The test plays QEMU, whose group the user is in."""
    path = place / "vm1.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        os.chown(path, 0, USER)
        path.chmod(0o775)
        listener.listen(1)
        listener.settimeout(60)
        domain = testdriver.Domain("vm1", devices=testdriver.serial_device(path))
        uri = testdriver.write(place / "domains.xml", [domain, "vm2"])
        os.chmod(place / "domains.xml", 0o644)
        one = daemon(config(place, {"serial": f'uri = "{uri}";'}, uri), user=True, ready=None)
        stream = wire.Stream(listener.accept()[0], 60)
        for action, code in [(wire.STATUS, 0), (wire.OFF, 0), (wire.STATUS, 2), (wire.ON, 0), (wire.REBOOT, 0)]:
            number = int.from_bytes(os.urandom(4), "little")
            stream.send(wire.SerialRequest(action, b"vm2", seqno=number).build())
            answer = stream.recv(len(wire.serial_response(0)))
            assert answer == wire.serial_response(code), (action, one.log)
        assert_confined(one.pid, ())


@pytest.mark.parametrize("user", [False, True], ids=["root", "user"])
def test_fence_agents(lab, place, daemon, user):
    """They have no capability, whoever starts them, and not what the daemon's own lets it read."""
    notes, password = place / "notes", programs.write_key(place / "password", b"geheim geheim\n")
    notes.mkdir()
    os.chown(notes, *([USER] * 2 if user else [0, 0]))
    files = [place / "key", place / "fence_virt.conf", password]
    (place / "fence_spy").write_text(spy.spy(notes, files))
    (place / "fence_spy").chmod(0o755)
    key = programs.write_key(place / "key")
    file = programs.write_config(place / "fence_virt.conf", f"""
        fence_virtd {{ listener = "tcp"; backend = "agent"; state_dir = "{place}/state"; }}
        listeners {{ tcp {{ key_file = "{key}"; address = "{lab.nodes["host"].ip}"; }} }}
        backends {{ agent {{ device = "spy" {{ agent = "{place}/fence_spy"; plugs = "vm1";
            options {{ password_file = "{password}"; }} }} }} }}""")
    one = daemon(file, user=user, capability="dac_read_search" if user else None)
    kept = ["CAP_DAC_READ_SEARCH"] if user else CAPABILITIES
    one.wait_log(" serving")
    assert_confined(one.pid, kept, inheritable=user)
    said = programs.run_agent(lab.nodes["guest"], "-k", key, "-T", lab.nodes["host"].ip, "-o", "status", "-n", "vm1",
                              program=str(programs.OURS_DIR / "fence_virt"))
    assert said.rc == 0, (said, one.log)
    def noted(action):
        return (notes / action).exists() and re.findall(r"^Cap(\w+):\t(\w+)$", (notes / action).read_text(), re.M)
    for action in ("metadata", "monitor", "status"):
        # The monitor runs beside the request, and may not be over.
        net.wait_until(lambda: len(noted(action) or ()) == 4)
        found = noted(action)
        assert [it[0] for it in found] == ["Prm", "Eff", "Bnd", "Amb"] and not any(int(it[1], 16) for it in found[:2] + found[3:]), found
        assert user or not int(found[2][1], 16), found
    assert (notes / "password").read_text() == "geheim geheim\n"
    # Root's files are root's, also without capabilities.
    assert (notes / "read").exists() != user
    # The one that it reads the password with is the daemon's still, after every start of a program.
    assert_confined(one.pid, kept, inheritable=user)


@pytest.mark.parametrize("way", ["multicast", "tcp"])
def test_the_agent_while_it_waits(lab, place, way):
    """Nobody answers: the agent waits, confined."""
    key = programs.write_key(place / "key")
    host = lab.nodes["host"]
    with host.socket() as silent:
        silent.bind((host.ip, 1231))
        silent.listen(1)
        options = ["-T", host.ip, "-p", "1231"] if way == "tcp" else ["-p", "1239"]
        name = "fence_virt" if way == "tcp" else "fence_xvm"
        reader, writer = os.pipe()
        os.set_inheritable(reader, True)
        it = lab.nodes["guest"].popen([programs.OURS_DIR / name, *options, "-k", key, "-t", "60", "-o", "off", "-H", "vm1"],
                                      stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                      pass_fds=[reader])
        try:
            net.wait_until(lambda: status(it.pid)["Seccomp"] == "2", 30)
            # Its own limits come one after the other.
            assert_confined(it.pid, ())
            pipe = os.readlink(f"/proc/self/fd/{reader}")
            assert pipe not in [os.readlink(f"/proc/{it.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{it.pid}/fd")]
        finally:
            it.kill()
            it.wait()
            os.close(reader)
            os.close(writer)


def limited(place, kilobytes):
    """Our fence_virtd with a limited address space."""
    program = place / "limited"
    program.write_text(f'#!/bin/sh\nulimit -v {kilobytes}\nexec {OURS} "$@"\n')
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize("kilobytes", [200_000, 300_000, 600_000])
def test_a_limited_address_space_costs_calls_and_no_fence(lab, place, kilobytes):
    """libvirt's libraries abort where they get no memory, and the C library reserves much for each thread that calls them."""
    (place / "log").mkdir()
    uri = testdriver.write(place / "domains.xml", ["vm1", "vm2"])
    file = config(place, {"multicast": '@key@ interface = "eth0";', "tcp": f'@key@ address = "{lab.nodes["host"].ip}"; port = "1230";'}, uri)
    with programs.Daemon(lab.nodes["host"], file, program=limited(place, kilobytes), ready="udp") as it:
        it.wait_log(" serving")
        for action in ("status", "off", "on", "reboot", "list"):
            assert agent(lab, place, "-o", action, "-H", "vm1").rc == 0, it.log
        ask = f'{programs.OURS_DIR / "fence_virt"} -T {lab.nodes["host"].ip} -p 1230 -k {place / "key"} -H vm1'
        at_once = f"for n in $(seq 40); do for a in status list; do {{ {ask} -o $a >&2; echo $?; }} & done; done; wait"
        asked = lab.nodes["guest"].popen(["sh", "-c", at_once], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert asked.communicate(timeout=120)[0] == "0\n" * 80, it.log
        it.wait_log("the address space of this process is limited .*: at most [0-9]+ calls to libvirt at once")


def test_an_address_space_that_is_not_enough_is_the_reason(lab, place):
    (place / "log").mkdir()
    file = config(place, {"tcp": "@key@"}, testdriver.write(place / "domains.xml", ["vm1"]))
    it = programs.run_daemon(lab.nodes["host"], "-F", "-f", file, program=limited(place, 180_000))
    assert it.rc == 1 and "limited to 175 MiB (ulimit -v, LimitAS=)" in it.out + it.err, it
