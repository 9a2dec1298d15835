# SPDX-License-Identifier: GPL-2.0-or-later
"""The unit itself, on a machine of its own: a container with systemd as its first process, our files as `make install` puts
them, and the machine's libvirt. Key and configuration belong to root, mode 0600, as the C daemon's do.

Where no such container can be started (inside another one, as a rule) the cases are skipped."""

import contextlib
import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import time

import pytest

from lab import net, process, programs, testdriver, wire

from sandbox import spy

REPOSITORY = programs.REPOSITORY
#: systemd-nspawn lets through what Docker does, and Landlock is younger.
LANDLOCK = "landlock_create_ruleset landlock_add_rule landlock_restrict_self"
CONFIG = """
fence_virtd { listener = "multicast, tcp"; backend = "libvirt"; audit_log = "/var/log/fence_virt/audit"; }
listeners { multicast { interface = "lo"; } tcp { port = "1230"; } }
backends { libvirt { uri = "test+unix:///default?socket=/run/libvirt/libvirt-sock"; } }
"""


class Machine:
    """The container. Its root is this machine's, with everything that is written kept in memory."""

    def __init__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="fence-machine-"))
        self.root = self.directory / "root"
        self._nspawn = self._pid = None

    def boot(self):
        """Skips the test where that can't be done."""
        if not shutil.which("systemd-nspawn"):
            pytest.skip("no systemd-nspawn")
        layers = self.directory / "layers"
        for it in (self.root, layers):
            it.mkdir()
        if self._run("mount", "-t", "tmpfs", "-o", "mode=0755", "layers", layers).returncode:
            pytest.skip("can't mount a tmpfs")
        for name in ("upper", "work"):
            (layers / name).mkdir()
        options = f"lowerdir=/,upperdir={layers}/upper,workdir={layers}/work"
        mounted = self._run("mount", "-t", "overlay", "-o", options, "overlay", self.root)
        if mounted.returncode:
            pytest.skip(f"can't mount an overlay: {mounted.stderr.strip()}")
        self._install()
        log = open(self.directory / "boot.log", "wb")
        self._nspawn = subprocess.Popen(
            ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network", "--link-journal=no",
             "--console=pipe", f"--machine=fence-{os.getpid()}", f"--system-call-filter={LANDLOCK}", f"--directory={self.root}",
             "--boot", "systemd.unit=basic.target"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 90
        while self("systemctl", "is-active", "basic.target").stdout.strip() != "active":
            if self._nspawn.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"no container: {(self.directory / 'boot.log').read_text(errors='replace')[-300:]}")
            time.sleep(0.2)
        self("ip", "link", "set", "lo", "up", "multicast", "on", check=True)
        self("ip", "route", "add", "224.0.0.0/4", "dev", "lo", check=True)

    def _install(self):
        for name in ("fence_virtd", "fence_xvm"):
            (self.root / "usr/sbin" / name).unlink(missing_ok=True)
            shutil.copy(programs.OURS_DIR / name, self.root / "usr/sbin" / name)
        (self.root / "usr/sbin/fence_virt").unlink(missing_ok=True)
        (self.root / "usr/sbin/fence_virt").symlink_to("fence_xvm")
        units = self.root / "etc/systemd/system"
        shutil.copy(REPOSITORY / "systemd/fence_virtd.service", units / "fence_virtd.service")
        (self.root / "usr/share/fence-virt").mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / "packaging/adapt-host", self.root / "usr/share/fence-virt/adapt-host")
        generators = self.root / "usr/lib/systemd/system-generators"
        generators.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / "packaging/fence_virtd-generator", generators / "fence_virtd-generator")
        shutil.copy(REPOSITORY / "systemd/fence_virt.sysusers.conf", self.root / "usr/lib/sysusers.d/fence_virt.conf")
        programs.write_config(self.root / "etc/fence_virt.conf", CONFIG)
        (self.root / "etc/cluster").mkdir(exist_ok=True)
        programs.write_key(self.root / "etc/cluster/fence_xvm.key")
        secret = self.root / "etc/shadow"
        if not secret.exists():
            secret.touch(0o600)

    def __call__(self, *argv, check=False):
        """Runs a program inside; before there is an inside it fails."""
        if not self._pid:
            inits = [str(it) for it in process.children(self._nspawn.pid) if pathlib.Path(f"/proc/{it}/exe").resolve().name == "systemd"]
            if not inits:
                return subprocess.CompletedProcess(argv, 1, "", "not yet")
            self._pid = inits[0]
        out = subprocess.run(["nsenter", "-t", self._pid, "-a", *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                             timeout=60)
        assert not check or out.returncode == 0, f"{argv}: {out.stdout}{out.stderr}\n{self.journal()}"
        return out

    def journal(self):
        """What the unit said."""
        return self("journalctl", "--no-pager", "-o", "cat", "-u", "fence_virtd").stdout

    def pid(self):
        """The daemon's process id, inside."""
        return self("systemctl", "show", "-P", "MainPID", "fence_virtd", check=True).stdout.strip()

    def stop(self):
        """Ends all of it."""
        if self._nspawn:
            # systemd-nspawn that is killed leaves the container running. Its first process takes all others with it.
            inside = process.descendants(self._nspawn.pid)
            self._nspawn.kill()
            for it in inside:
                it.kill()
            self._nspawn.wait()
            for it in inside:
                assert it.ended(60), f"process {it.pid} of the container does not end"
            self._remove_groups()
        for it in (self.root, self.directory / "layers"):
            for _ in range(50):
                if not os.path.ismount(it) or self._run("umount", it).returncode == 0:
                    break
                time.sleep(0.1)
            else:
                self._run("umount", "-l", it)
        shutil.rmtree(self.directory, ignore_errors=True)

    @staticmethod
    def _remove_groups():
        """What systemd-nspawn makes in our own control groups and does not take away. Another run's are in use and stay."""
        for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
            _, hierarchy, own = line.split(":", 2)
            tops = [pathlib.Path("/sys/fs/cgroup", it) for it in ([hierarchy.removeprefix("name=")] if hierarchy else ["unified", ""])]
            for made in (top / own.lstrip("/") / name for top in tops for name in ("payload", "supervisor")):
                for directory, _, _ in os.walk(made, topdown=False):
                    with contextlib.suppress(OSError):
                        os.rmdir(directory)

    @staticmethod
    def _run(*argv):
        return subprocess.run([str(it) for it in argv], capture_output=True, text=True)


@pytest.fixture(scope="module")
def machine():
    it = Machine()
    try:
        it.boot()
        it("systemctl", "start", "libvirtd.socket", check=True)
        it("systemctl", "start", "fence_virtd", check=True)
        yield it
    finally:
        it.stop()


def test_who_it_is(machine):
    text = machine("cat", f"/proc/{machine.pid()}/status", check=True).stdout
    status = dict(re.findall(r"^(\w+):\t(.*)$", text, re.M))
    user = machine("id", "-u", "fence_virt", check=True).stdout.strip()
    assert status["Uid"].split() == [user] * 4 and user != "0"
    read_search = 1 << 2
    for kind in ("CapPrm", "CapEff", "CapBnd"):
        assert int(status[kind], 16) == read_search, status
    # Programs that it starts don't have it.
    assert int(status["CapAmb"], 16) == 0, status
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert "sandbox: files limited, system calls limited" in machine.journal()


@pytest.mark.parametrize("way", [("fence_xvm",), ("fence_virt", "-T", "127.0.0.1", "-p", "1230")], ids=["multicast", "tcp"])
def test_every_action(machine, way):
    for action, code in [("status", 0), ("off", 0), ("status", 2), ("on", 0), ("reboot", 0), ("status", 0)]:
        target = "-n" if way[0] == "fence_virt" else "-H"
        said = machine(*way, "-o", action, target, "test")
        assert said.returncode == code, (action, said, machine.journal())


def test_what_it_sees(machine):
    """By the eyes of root inside the daemon's file systems: hidden is what its capability could read."""
    inside = ["nsenter", "-m", "-t", machine.pid()]
    for path in ("/etc/shadow", "/root", "/home"):
        assert machine(*inside, "ls", "-lA", path).stdout.split() in (["total", "0"],) or \
            machine(*inside, "stat", "-c", "%a", path).stdout.strip() == "0", path
    for path in ("/etc/x", "/usr/x", "/var/lib/x"):
        assert "Read-only" in machine(*inside, "touch", path).stderr, path


def test_reload_and_a_key_file_that_is_replaced(machine):
    """Root's key file, mode 0600, is put in place anew by a tool; the unit is told to reload."""
    before = machine.journal().count("audit file opened anew")
    machine("mv", "/var/log/fence_virt/audit", "/var/log/fence_virt/audit.1", check=True)
    machine("systemctl", "reload", "fence_virtd", check=True)
    net.wait_until(lambda: machine.journal().count("audit file opened anew") > before, 30, 0.2)
    assert machine("fence_xvm", "-o", "status", "-H", "test").returncode == 0
    assert machine("cat", "/var/log/fence_virt/audit", check=True).stdout.count("\n") == 1
    assert machine("stat", "-c", "%U %a", "/var/log/fence_virt/audit").stdout.split() == ["fence_virt", "640"]


def test_logrotate(machine):
    """As it is installed: the file goes aside, the daemon goes on in a new one."""
    machine("mkdir", "-p", "/run/rotate", check=True)
    text = (REPOSITORY / "packaging/logrotate/fence_virtd").read_text()
    machine("sh", "-c", 'printf %s "$1" > /run/rotate/conf && chmod 644 /run/rotate/conf', "sh", text, check=True)
    assert machine("fence_xvm", "-o", "status", "-H", "test").returncode == 0
    before = machine.journal().count("audit file opened anew")
    said = machine("logrotate", "--force", "--state", "/run/rotate/state", "/run/rotate/conf", check=True)
    assert said.stderr == ""
    net.wait_until(lambda: machine.journal().count("audit file opened anew") > before, 30, 0.2)
    assert machine("fence_xvm", "-o", "status", "-H", "test").returncode == 0
    assert machine("cat", "/var/log/fence_virt/audit", check=True).stdout.count("\n") == 1


def test_the_port_stays_over_a_restart_and_a_crash_and_goes_with_a_stop(machine):
    """The socket is the very same: nobody is refused in between."""
    def socket_now():
        return re.findall(r"ino:(\d+)", machine("ss", "-Htlne", "sport", "=", ":1230", check=True).stdout)

    def status():
        return machine("fence_virt", "-T", "127.0.0.1", "-p", "1230", "-n", "test", "-o", "status").returncode

    first = socket_now()
    assert len(first) == 1
    for how in (("restart", "fence_virtd"), ("kill", "--signal=KILL", "fence_virtd")):
        before, pid = machine.journal().count("with the socket that the service manager kept"), machine.pid()
        machine("systemctl", *how, check=True)
        assert socket_now() == first
        net.wait_until(lambda old=pid: machine.pid() not in (old, "0"), 60, 0.2)
        assert status() == 0 and socket_now() == first
        net.wait_until(lambda count=before: machine.journal().count("with the socket that the service manager kept") > count, 60, 0.2)
    machine("systemctl", "stop", "fence_virtd", check=True)
    assert not socket_now()
    machine("systemctl", "start", "fence_virtd", check=True)
    assert status() == 0


def test_arguments_from_the_files_of_the_c_daemon(machine):
    machine("sh", "-c", "echo 'FENCE_VIRTD_ARGS=\"-w -d 1\"' > /etc/default/fence_virtd", check=True)
    machine("systemctl", "restart", "fence_virtd", check=True)
    line = machine("cat", f"/proc/{machine.pid()}/cmdline", check=True).stdout.split("\0")
    machine("rm", "/etc/default/fence_virtd", check=True)
    assert line[:-1] == ["/usr/sbin/fence_virtd", "-F", "-f", "/etc/fence_virt.conf", "-w", "-d", "1"]
    assert machine("fence_xvm", "-o", "monitor").returncode == 0


def test_every_listener_of_the_c_daemon_is_served_with_no_step_by_hand(machine):
    """As after an installation: units read again, the daemon started. QEMU's socket is its group's."""
    config, place = machine.root / "etc/fence_virt.conf", "/var/lib/libvirt/qemu/fence-test.sock"
    before = config.read_text()
    group = machine("stat", "-c", "%G", "/var/lib/libvirt/qemu", check=True).stdout.strip()
    assert group not in machine("id", "-nG", "fence_virt", check=True).stdout.split()
    domains = testdriver.write(machine.root / "etc/domains.xml", [testdriver.Domain(
        "test", devices=f"<serial type='unix'><source mode='bind' path='{place}'/></serial>")]).replace(str(machine.root), "")
    text = before.replace("multicast, tcp", "multicast, tcp, vsock, serial").replace(
        "test+unix:///default?socket=/run/libvirt/libvirt-sock", domains)
    text = text.replace("listeners {", f'listeners {{ vsock {{ port = "1233"; }} serial {{ uri = "{domains}"; }}')
    with socket.socket(socket.AF_UNIX) as qemu:
        qemu.bind(f"{machine.root}{place}")
        qemu.listen()
        machine("chgrp", group, place, check=True)
        machine("chmod", "0770", place, check=True)
        try:
            programs.write_config(config, text)
            machine("systemctl", "daemon-reload", check=True)
            machine("systemctl", "restart", "fence_virtd", check=True)
            assert group in machine("id", "-nG", "fence_virt", check=True).stdout.split()
            qemu.settimeout(30)
            with qemu.accept()[0] as line:
                line.settimeout(30)
                line.sendall(wire.SerialRequest(wire.STATUS, b"test", seqno=1).build())
                answer = line.recv(wire.SERIAL_RESPONSE_LEN, socket.MSG_WAITALL)
                assert answer[:5] == wire.SERIAL_MAGIC + bytes([wire.SUCCESS]), machine.journal()
            with socket.socket(socket.AF_VSOCK) as other, pytest.raises(OSError, match="Address already in use"):
                other.bind((socket.VMADDR_CID_ANY, 1233))
            for way in (("fence_xvm", "-H"), ("fence_virt", "-T", "127.0.0.1", "-p", "1230", "-n")):
                assert machine(*way, "test", "-o", "status").returncode == 0, machine.journal()
        finally:
            programs.write_config(config, before)
            machine("gpasswd", "-d", "fence_virt", group)
            machine("systemctl", "daemon-reload", check=True)
            machine("systemctl", "restart", "fence_virtd", check=True)
    assert "vsock" not in machine("systemctl", "show", "-P", "DropInPaths", "fence_virtd", check=True).stdout


def test_several_daemons(machine):
    """A second one beside the first: its own file, port and memory."""
    template = subprocess.run([REPOSITORY / "scripts/unit-template"], capture_output=True, text=True, check=True).stdout
    config = CONFIG.replace("multicast, tcp", "tcp").replace("1230", "1231").replace("/audit", "/web.audit")
    machine("mkdir", "-p", "/etc/fence_virt.d", check=True)
    for path, text in (("/etc/systemd/system/fence_virtd@.service", template), ("/etc/fence_virt.d/web.conf", config)):
        machine("sh", "-c", 'umask 077; printf %s "$1" > "$2"', "sh", text, path, check=True)
    machine("systemctl", "daemon-reload", check=True)
    machine("systemctl", "start", "fence_virtd@web", check=True)
    first = machine.pid()
    for port in ("1230", "1231"):
        assert machine("fence_virt", "-T", "127.0.0.1", "-p", port, "-o", "status", "-n", "test").returncode == 0
    assert machine("stat", "-c", "%U %a", "/var/lib/fence_virt/web", check=True).stdout.split() == ["fence_virt", "700"]
    assert machine("ls", "/var/lib/fence_virt/web", check=True).stdout
    machine("systemctl", "stop", "fence_virtd@web", check=True)
    assert machine.pid() == first
    assert machine("fence_virt", "-T", "127.0.0.1", "-p", "1230", "-o", "monitor").returncode == 0


COROSYNC = """
system {
    sched_rr: no
    move_to_root_cgroup: no
}
totem {
    version: 2
    cluster_name: test
    transport: udpu
    token: 10000
}
logging {
    to_syslog: yes
}
quorum {
    provider: corosync_votequorum
}
nodelist {
    node {
        nodeid: 1
        name: alpha
        ring0_addr: 127.0.0.1
    }
}
"""
DROP_IN = """
[Service]
SupplementaryGroups=haclient
ExecStartPre=-/usr/sbin/fence_virtd --check
"""


def test_corosync_and_pacemaker(machine):
    """The cpg backend as docs/cpg.md says: not let in, then let in; Pacemaker's history; corosync that dies and comes back."""
    cpg = CONFIG.replace('backend = "libvirt"', 'backend = "cpg"').replace("{ libvirt {", '{ cpg { host_down = "pacemaker";')
    files = {"/etc/corosync/corosync.conf": COROSYNC, "/etc/fence_virt.conf": cpg,
             "/run/systemd/system/fence_virtd.service.d/cpg.conf": DROP_IN}
    seen = len(machine.journal())
    said = lambda text: text in machine.journal()[seen:]
    try:
        for path, text in files.items():
            machine("sh", "-c", 'umask 077; mkdir -p "${2%/*}"; printf %s "$1" > "$2"', "sh", text, path, check=True)
        machine("systemctl", "daemon-reload", check=True)
        for unit in ("corosync", "pacemaker"):
            machine("systemctl", "start", "--job-mode=ignore-dependencies", unit, check=True)
        net.wait_until(lambda: machine("stonith_admin", "--confirm", "beta").returncode == 0, 90, 0.5)

        machine("systemctl", "restart", "fence_virtd", check=True)
        net.wait_until(lambda: said("does not let this user in: name its user in a file in /etc/corosync/uidgid.d"), 30, 0.2)
        machine("sh", "-c", "printf 'uidgid {\\n    uid: fence_virt\\n}\\n' > /etc/corosync/uidgid.d/fence_virt", check=True)
        machine("corosync-cfgtool", "-R", check=True)
        net.wait_until(lambda: said("corosync: in the group fence-agents-2"), 30, 0.2)
        assert said("ok       host_down pacemaker: its fencing history can be read; 1 in it"), machine.journal()
        for action, code in [("status", 0), ("off", 0), ("status", 2), ("on", 0)]:
            answer = machine("fence_xvm", "-o", action, "-H", "test")
            assert answer.returncode == code, (action, answer, machine.journal())

        seen = len(machine.journal())
        machine("sh", "-c", "kill -9 $(systemctl show -P MainPID corosync)", check=True)
        net.wait_until(lambda: said("corosync: group fence-agents-2: "), 30, 0.2)
        assert machine("fence_xvm", "-o", "status", "-H", "test").returncode == 0
        machine("systemctl", "start", "--job-mode=ignore-dependencies", "corosync", check=True)
        net.wait_until(lambda: said("corosync: in the group fence-agents-2"), 30, 0.2)
    finally:
        machine("rm", "-r", "/run/systemd/system/fence_virtd.service.d")
        machine("sh", "-c", 'printf %s "$1" > /etc/fence_virt.conf', "sh", CONFIG)
        machine("systemctl", "daemon-reload")
        machine("systemctl", "restart", "fence_virtd")
        for unit in ("pacemaker", "corosync"):
            machine("sh", "-c", f"kill -9 $(systemctl show -P MainPID {unit})")


AGENTS = """
fence_virtd { listener = "multicast, tcp"; backend = "libvirt, agent"; audit_log = "/var/log/fence_virt/audit"; }
listeners { multicast { interface = "lo"; } tcp { port = "1230"; } }
backends {
    libvirt { uri = "test+unix:///default?socket=/run/libvirt/libvirt-sock"; }
    agent {
        device = "pool-1" { agent = "fence_xenapi"; plugs = "*"; options {
            session_url = "http://127.0.0.12"; username = "fencing"; password_file = "/etc/fence_virt/pool.password"; } }
        device = "pool-2" { agent = "fence_xenapi"; plugs = "*"; options {
            session_url = "http://127.0.0.11"; username = "fencing"; password_file = "/etc/fence_virt/pool.password"; } }
        device = "kvm7" { agent = "fence_virsh"; plugs = "*"; status_timeout = "30"; options {
            ip = "127.0.0.1"; ipport = "2222"; username = "root"; identity_file = "/var/lib/fence_virt/kvm7.key"; } }
        device = "spy" { agent = "/usr/local/sbin/fence_spy"; plugs = "spied"; options {
            password_file = "/etc/fence_virt/pool.password"; } }
    }
}
"""
#: Servers that agents of the machine talk to: a pool of two members, and an SSH server that root gets into by key.
ENDPOINTS = """
install -d -m 700 /etc/fence_virt /root/.ssh
umask 077
printf '%s\\n' "$1" > /etc/fence_virt/pool.password
(setsid /usr/bin/python3 /srv/xen_pool.py --members 2 web1 > /run/pool.log 2>&1 &)
ssh-keygen -q -t ed25519 -N '' -f /run/kvm7.key
ssh-keygen -q -t ed25519 -N '' -f /run/host.key
install -o fence_virt -m 600 /run/kvm7.key /var/lib/fence_virt/kvm7.key
install -d -o fence_virt -m 700 /var/lib/fence_virt/.ssh
printf '[127.0.0.1]:2222 %s\\n' "$(cut -d' ' -f1,2 /run/host.key.pub)" > /run/known
install -o fence_virt -m 600 /run/known /var/lib/fence_virt/.ssh/known_hosts
mkdir -p /run/sshd
usermod -p '*' root
/usr/sbin/sshd -f /dev/null -h /run/host.key -p 2222 -o PermitRootLogin=yes -o StrictModes=no -o UsePAM=no \\
    -o AuthorizedKeysFile=/run/kvm7.key.pub -o PidFile=none -E /run/sshd.log
"""


def test_fence_agents(machine):
    """Debian's own, as they are: no drop-in. Passwords are root's, and no agent can read them or the daemon's keys."""
    shutil.copy(REPOSITORY / "tests/agents/xen_pool.py", machine.root / "srv/xen_pool.py")
    password = re.search(r'PASSWORD = "\w+", "(.*)"', (machine.root / "srv/xen_pool.py").read_text())[1]
    secret = ["/etc/cluster/fence_xvm.key", "/etc/fence_virt.conf", "/etc/fence_virt/pool.password"]
    files = {"/etc/fence_virt.conf": AGENTS, "/usr/local/sbin/fence_spy": spy.spy("/var/lib/fence_virt/spied", secret),
             "/run/systemd/system/fence_virtd.service.d/check.conf": "[Service]\nExecStartPre=-/usr/sbin/fence_virtd --check\n"}
    seen = len(machine.journal())
    try:
        for path, text in files.items():
            machine("sh", "-c", 'umask 077; mkdir -p "${2%/*}"; printf %s "$1" > "$2"', "sh", text, path, check=True)
        machine("chmod", "755", "/usr/local/sbin/fence_spy", check=True)
        machine("chmod", "600", "/etc/fence_virt.conf", check=True)
        machine("sh", "-c", ENDPOINTS, "sh", password, check=True)
        machine("install", "-d", "-o", "fence_virt", "/var/lib/fence_virt/spied", check=True)
        net.wait_until(lambda: "master" in machine("cat", "/run/pool.log").stdout, 30, 0.2)
        machine("systemctl", "daemon-reload", check=True)
        machine("systemctl", "restart", "fence_virtd", check=True)
        said = machine.journal()[seen:]
        for line in ("ok       agent pool-2: ", "ok       agent kvm7: ", "ok       agent spy: ", "warning  agent pool-1: ",
                     "pool-2 serves the same and is well"):
            assert line in said, said
        assert password not in said
        for target, action, code in [("web1", "status", 0), ("web1", "off", 0), ("web1", "status", 2), ("web1", "on", 0),
                                     ("test", "status", 0), ("spied", "status", 0)]:
            answer = machine("fence_xvm", "-o", action, "-H", target)
            assert answer.returncode == code, (target, action, answer, machine.journal())
        assert "web1" in machine("fence_xvm", "-o", "list").stdout
        notes = machine("cat", "/var/lib/fence_virt/spied/status", check=True).stdout
        found = dict(re.findall(r"^Cap(\w+):\t(\w+)$", notes, re.M))
        assert {int(found[it], 16) for it in ("Prm", "Eff", "Amb")} == {0}, notes
        assert machine("cat", "/var/lib/fence_virt/spied/password", check=True).stdout == f"{password}\n"
        assert machine("cat", "/var/lib/fence_virt/spied/read").returncode != 0
        # The daemon's own reads the password anew for each run.
        machine("sh", "-c", "echo wrong > /etc/fence_virt/pool.password", check=True)
        assert machine("fence_xvm", "-o", "off", "-H", "web1").returncode == 1
    finally:
        machine("rm", "-r", "/run/systemd/system/fence_virtd.service.d")
        machine("sh", "-c", 'printf %s "$1" > /etc/fence_virt.conf', "sh", CONFIG)
        machine("systemctl", "daemon-reload")
        machine("systemctl", "restart", "fence_virtd")


def test_a_daemon_that_hangs_is_started_anew(machine):
    """The watchdog, with less patience than the unit's."""
    before = machine.pid()
    machine("mkdir", "-p", "/run/systemd/system/fence_virtd.service.d", check=True)
    machine("sh", "-c", "printf '[Service]\\nWatchdogSec=6\\nTimeoutAbortSec=2\\n' > /run/systemd/system/fence_virtd.service.d/quick.conf", check=True)
    machine("systemctl", "daemon-reload", check=True)
    machine("systemctl", "restart", "fence_virtd", check=True)
    first = machine.pid()
    assert first != before
    # It says that it lives, for longer than the watchdog waits.
    time.sleep(8)
    assert machine.pid() == first, machine.journal()
    machine("kill", "-STOP", first, check=True)
    net.wait_until(lambda: machine.pid() not in ("0", first), 60, 0.5)
    net.wait_until(lambda: machine("fence_xvm", "-t", "5", "-o", "monitor").returncode == 0, 30, 0.5)


def test_stop_leaves_records_of_agents(machine):
    assert machine("ls", "/run/fence_virt", check=True).stdout
    machine("systemctl", "stop", "fence_virtd", check=True)
    assert machine("ls", "/run/fence_virt", check=True).stdout
    assert machine("systemctl", "show", "-P", "Result", "fence_virtd").stdout.strip() == "success"
