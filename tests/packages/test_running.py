# SPDX-License-Identifier: GPL-2.0-or-later
"""The upgrade of a C daemon that runs, under a real systemd: the container of tests/sandbox, with the C packages in it."""

import shutil
import subprocess

import pytest

from lab import net, programs
from sandbox.test_unit import Machine

from .conftest import PACKAGES, ROOT

KEY = "/etc/fence_virt.key"


class OldHost(Machine):
    """This machine's Debian, where the C packages are installed; their files as they were."""

    def __init__(self, interface):
        super().__init__()
        self.interface = interface

    def _install(self):
        for package in (ROOT / "reference").iterdir():
            subprocess.run(f"dpkg-deb --fsys-tarfile {package} | tar -x --keep-directory-symlink -C {self.root}",
                           shell=True, check=True)
        programs.write_config(self.root / "etc/fence_virt.conf", listener_options={
            "interface": self.interface, "key_file": KEY}, backend_options={"uri": "test:///default"})
        programs.write_key(self.root / KEY[1:])
        (self.root / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
        # The C unit names no pid file, and where a container's control groups don't work systemd can't stop what it
        # can't guess. On a host it can.
        own = self.root / "etc/systemd/system/fence_virtd.service.d"
        own.mkdir()
        (own / "pid.conf").write_text("[Service]\nPIDFile=/run/fence_virtd.pid\n")
        for package in PACKAGES.glob("*.deb"):
            shutil.copy(package, self.root / "root")

    def upgrade(self):
        self("systemctl", "start", "fence_virtd", check=True)
        self.old = self.pid()
        assert "fence_virtd -w" in self("cat", f"/proc/{self.old}/cmdline").stdout.replace("\0", " ")
        done = self("sh", "-c", "dpkg -i /root/*.deb 2>&1", check=True)
        return done.stdout


@pytest.fixture
def old_host(request):
    if not (ROOT / "reference").exists():
        pytest.skip("make packages-check fetches the C packages for this")
    host = OldHost(request.param)
    try:
        host.boot()
        yield host
    finally:
        host.stop()


@pytest.mark.parametrize("old_host", ["lo"], indirect=True)
def test_upgrade_goes_on_serving(old_host):
    host = old_host
    said = host.upgrade()
    assert "NOBODY IS FENCED" not in said, host.journal()
    assert host("systemctl", "is-active", "fence_virtd").stdout.strip() == "active"
    assert host("systemctl", "is-enabled", "fence_virtd").stdout.strip() == "enabled"
    assert host.pid() not in ("0", host.old)
    for action, code in [("status", 0), ("off", 0), ("status", 2), ("on", 0)]:
        assert host("fence_xvm", "-k", KEY, "-o", action, "-H", "test").returncode == code, host.journal()
    # Stopped before: it stays so.
    host("systemctl", "stop", "fence_virtd", check=True)
    host("sh", "-c", "dpkg -i /root/*.deb", check=True)
    assert host("systemctl", "is-active", "fence_virtd").stdout.strip() == "inactive"
    host("systemctl", "start", "fence_virtd", check=True)
    host("sh", "-c", "dpkg -r fence-virtd", check=True)
    assert host("pgrep", "-x", "fence_virtd").returncode == 1


@pytest.mark.parametrize("old_host", ["nosuch0"], indirect=True)
def test_a_file_that_only_the_c_daemon_takes(old_host):
    """It takes a misspelt interface for any. Ours does not serve then, and the upgrade says so."""
    host = old_host
    assert "NOBODY IS FENCED" in host.upgrade()
    assert "nosuch0" in host.journal()
    host("sed", "-i", "s/nosuch0/lo/", "/etc/fence_virt.conf", check=True)
    # The unit tries again by itself.
    net.wait_until(lambda: host("fence_xvm", "-k", KEY, "-t", "5", "-o", "monitor").returncode == 0, 60, 0.5)
