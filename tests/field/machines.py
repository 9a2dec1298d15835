# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts and guests with the programs of one side ("ours", or the C programs "installed" or "today") in /usr/sbin, and with
/etc, /run and /var/lib of their own.

    with Site(directory, "ours") as site:
        site.host.run("fence_virtd", "--keygen")
        site.serve()                                # fence_virtd with site.conf()
        site.guest.run("fence_xvm", "-o", "list")   # as a person types it: nothing but what the machine has

A caller finds the programs at the names that it knows, and no process of another machine.
"""

import pathlib

from lab import corosync, net, programs, testdriver
from lab.hypervisor import until

HERE = pathlib.Path(__file__).resolve().parent
KEY = "/etc/cluster/fence_xvm.key"
FENCED = "/usr/lib/pacemaker/pacemaker-fenced"


class Machine(corosync.Machine):
    """One host or guest; nothing runs on it but what is started."""

    INIT = HERE / "machine-init"

    def __init__(self, place, directory, side):
        directory.mkdir()
        (directory / "lib").mkdir()
        shelf = pathlib.Path(programs.program(side, "fence_xvm")).parent
        super().__init__(place, directory, parts=shelf)
        self.ip = place.ip
        self.boot()
        until(lambda: self.path("/run/up").exists() or not self.alive(), 60, f"{self.name}\n{self.tail()}")
        assert self.alive(), self.tail()

    def path(self, name):
        """The place where a file of the machine is seen from here."""
        return pathlib.Path(f"/proc/{self._init_pid}/root{name}")

    def write(self, name, data, mode=0o600):
        """Writes a file of root's on the machine, and its directory."""
        path = self.path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        path.chmod(mode)

    def ask(self, *argv, stdin=None, timeout=60, user=None):
        """Runs a program; its Result. `stdin`: text. `user`: number of an ordinary user."""
        if user is not None:
            argv = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *argv]
        return programs.run_agent(self, *argv[1:], program=argv[0], stdin=stdin, timeout=timeout)

    def firewall(self, *lets_in):
        """From now on only these matches of nftables, and answers, come in by eth0."""
        rules = "".join(f'iifname "eth0" {it} accept; ' for it in lets_in)
        self.place.run(["nft", "-f", "-"], check=True, input=f"""table inet lab {{ chain c {{
            type filter hook input priority 0; {rules} ct state established,related accept; iifname "eth0" drop; }}; }}""")


class Site:
    """A host with domains of libvirt's test driver, and a guest."""

    def __init__(self, directory, side, domains=("vm1", testdriver.Domain("vm2", state=testdriver.SHUTOFF))):
        self.directory, self.side, self.net = pathlib.Path(directory), side, net.Net()
        self.modules = programs.MODULE_PATH if side == "ours" else programs.modules(side)
        self.uri = testdriver.write(self.directory / "domains.xml", domains)
        self.host, self.guest = self.machine("host"), self.machine("guest")
        self.daemon = self.fenced = None

    def machine(self, name):
        """One more machine."""
        return Machine(self.net.node(name), self.directory / name, self.side)

    def conf(self, listener="multicast", more=""):
        """fence_virt.conf with the key at its usual place."""
        where = 'interface = "eth0";' if listener == "multicast" else f'address = "{self.host.ip}";'
        return (f'fence_virtd {{ listener = "{listener}"; backend = "libvirt"; module_path = "{self.modules}"; }}\n'
                f'listeners {{ {listener} {{ {where} {more} }} }}\n'
                f'backends {{ libvirt {{ uri = "{self.uri}"; }} }}\n')

    def share_key(self, data=None, mode=0o600):
        """Both machines have one key, of 512 bytes as a rule."""
        data = bytes((i * 89 + 41) % 256 for i in range(512)) if data is None else data
        for machine in (self.host, self.guest):
            machine.path("/etc/cluster").mkdir(exist_ok=True)
            machine.write(KEY, data, mode)

    def serve(self, text=None, *arguments, ready="udp"):
        """fence_virtd on the host, in the foreground, with /etc/fence_virt.conf."""
        self.stop()
        file = programs.write_config(self.host.path("/etc/fence_virt.conf"), self.conf() if text is None else text)
        self.daemon = programs.Daemon(self.host, "/etc/fence_virt.conf", *arguments, ready=ready, program="/usr/sbin/fence_virtd",
                                      debug=3, pidfile="/run/lab.pid")
        if self.side == "ours" and ready:
            self.daemon.wait_serving()
        return file

    def start_fenced(self):
        """Pacemaker's own daemon for fencing on the guest, alone, as its regression tests run it."""
        if self.fenced is None:
            out = open(self.directory / "fenced.out", "ab")
            self.fenced = self.guest.popen([FENCED, "--stand-alone", "--logfile", "/var/log/pacemaker/pacemaker.log", "-VV"],
                                           stdout=out, stderr=out)
            until(lambda: self.guest.run("stonith_admin", "--list-registered", check=False).returncode == 0, 60,
                  "pacemaker-fenced answers")
        return self.guest

    def device(self, name, agent="fence_xvm", **options):
        """Makes a stonith device of pacemaker-fenced."""
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        self.start_fenced().run("stonith_admin", "--register", name, "--agent", agent, *words)

    def stop(self):
        """No daemon serves any more."""
        if self.daemon:
            self.daemon.stop()
            self.daemon = None

    def close(self):
        """Ends everything."""
        self.stop()
        for machine in (self.host, self.guest):
            machine.kill()
        self.net.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
