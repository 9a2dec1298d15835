# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the packages are ($PACKAGES_DIR, made by `make deb rpm`), and a clean Debian to install them in."""

import os
import pathlib
import shutil
import subprocess

import pytest

from lab import programs

PACKAGES = pathlib.Path(
    os.environ.get("PACKAGES_DIR") or pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or programs.REPOSITORY / "target")
    / "packages")
ROOT = PACKAGES / "root"


@pytest.fixture
def clean_root(tmp_path):
    """A Debian 12 of its own, as scripts/clean-root makes it; see `Root`."""
    if not (ROOT / "bookworm.tar").exists():
        pytest.skip("make packages-check makes the Debian for this")
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["tar", "-xf", ROOT / "bookworm.tar", "-C", root, "--exclude=./dev/*"], check=True)
    yield Root(root)
    shutil.rmtree(root)


class Root:
    """A Debian that is not running, or (after `booted`) one whose systemctl only notes what it is told."""

    def __init__(self, path):
        self.path = path
        for directory in ("packages", "reference"):
            (path / directory).mkdir(parents=True)
        for package in PACKAGES.glob("*.deb"):
            shutil.copy(package, path / "packages")
        for package in (ROOT / "reference").iterdir():
            shutil.copy(package, path / "reference")
        # The C package starts its daemon; nothing may run here but by the test.
        self.script("usr/sbin/policy-rc.d", "exit 101")

    def script(self, name, body):
        path = self.path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def booted(self):
        """From here on maintainer scripts believe that systemd runs."""
        (self.path / "usr/sbin/policy-rc.d").unlink()
        (self.path / "run/systemd/system").mkdir(parents=True)
        self.script("usr/bin/systemctl", 'echo "$*" >> /systemctl.log')

    def asked_of_systemd(self):
        log = self.path / "systemctl.log"
        return log.read_text().splitlines() if log.exists() else []

    def run(self, script, check=True):
        """Runs a shell script inside, with a network and processes of its own, all gone at its end."""
        before = ("mount -t proc proc {0}/proc; mount -t tmpfs tmpfs {0}/dev; "
                  "for d in null zero random urandom; do touch {0}/dev/$d; mount --bind /dev/$d {0}/dev/$d; done; "
                  "ip link set lo up; ip link set lo multicast on; ip route add 224.0.0.0/4 dev lo; "
                  "exec chroot {0} /bin/sh -c \"$1\"").format(self.path)
        command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--", "sh", "-ec", before, "sh",
                   script]
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"})
        if check:
            assert done.returncode == 0, f"{script}\n{done.stdout}"
        return done.stdout

    def install(self, which="packages", *options):
        return self.run(f"dpkg {' '.join(options)} -i /{which}/*.deb")

    def exists(self, name):
        return os.path.lexists(self.path / name)

    def mode(self, name):
        return oct((self.path / name).stat().st_mode & 0o7777)

    def files(self):
        """Every file there is, but those that any use of dpkg touches."""
        found = set()
        for directory, _, names in os.walk(self.path):
            found |= {os.path.relpath(os.path.join(directory, it), self.path) for it in names}
        passing = ("var/lib/dpkg/", "var/log/", "var/cache/", "packages/", "reference/")
        return {it for it in found if not it.startswith(passing)}
