# SPDX-License-Identifier: GPL-2.0-or-later
"""An SSH server of its own on the hypervisor's node, where fence_virsh logs in as root and runs virsh.

    with Sshd(site, directory) as sshd:
        start_host([device("hv", "fence_virsh", options=sshd.options())], over=sshd.known())

The server has its own key, port, users and configuration; the machine's are neither read nor touched.
"""

import contextlib
import pathlib
import shutil
import subprocess

from lab import process
from lab.endpoint import Endpoint

PORT = 2222
USER, PASSWORD = "root", "virsh-hunter2-77ac"
SSHD = "/usr/sbin/sshd"


class Sshd(Endpoint):
    """sshd on the node of the site's hypervisor, whose virsh means that hypervisor."""

    def __init__(self, site, directory):
        super().__init__(site.place("hv"), directory)
        self.site = site
        for name in ("host", "client"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
        self._write_files()
        self.start()

    def start(self, path="/usr/bin:/bin"):
        """Runs, and takes connections when this returns. `path`: where sessions look for programs."""
        (self.directory / "sshd_config").write_text(self._config(path))
        # Users, passwords, /run and logins on record are its own: root may have no password, and none that we know.
        script = """set -e
            mount -t tmpfs run /run; mkdir /run/sshd; mount -t tmpfs log /var/log; touch /var/log/lastlog
            mount --bind "$1/passwd" /etc/passwd; mount --bind "$1/shadow" /etc/shadow
            exec "$2" -D -e -f "$1/sshd_config" """
        return self.run(["unshare", "--mount", "--propagation=private", "sh", "-c", script, "sshd", self.directory, SSHD], PORT)

    def runs(self, program):
        """Whether a session runs this program now."""
        for it in process.descendants(self.process.pid):
            with contextlib.suppress(OSError):
                if pathlib.Path(f"/proc/{it.pid}/comm").read_text().strip() == program:
                    return True
        return False

    def options(self, *, password=False, **more):
        """Options of a device for it: with the key file, or with the password."""
        options = {"ip": self.node.ip, "ipport": PORT, "username": USER}
        if password:
            options["password_file"] = self.site.secret(PASSWORD)
        else:
            options["identity_file"] = self.directory / "client"
        return {**options, **more}

    def known(self):
        """What a host sees in place of /etc/ssh: it knows this server's key."""
        return {"/etc/ssh": self.directory / "etc-ssh"}

    def _write_files(self):
        here = self.directory
        home = here / "home"
        home.mkdir()
        (here / "passwd").write_text(f"root:x:0:0:root:{home}:/bin/bash\nsshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n")
        hashed = subprocess.run(["openssl", "passwd", "-6", "-stdin"], input=PASSWORD, capture_output=True, text=True,
                                check=True).stdout.strip()
        (here / "shadow").write_text(f"root:{hashed}:19000:0:99999:7:::\n")
        (here / "shadow").chmod(0o600)
        shutil.copy(here / "client.pub", here / "authorized_keys")
        (here / "etc-ssh").mkdir()
        key = (here / "host.pub").read_text().rsplit(" ", 1)[0]
        (here / "etc-ssh/ssh_known_hosts").write_text(f"[{self.node.ip}]:{PORT} {key}\n")

    def _config(self, path):
        here = self.directory
        return f"""ListenAddress {self.node.ip}
Port {PORT}
HostKey {here}/host
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication yes
KbdInteractiveAuthentication no
AuthorizedKeysFile {here}/authorized_keys
PrintMotd no
PrintLastLog no
SetEnv LIBVIRT_DEFAULT_URI={self.site.hypervisor.uri} PATH={path}
"""
