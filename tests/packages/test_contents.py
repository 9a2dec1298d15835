# SPDX-License-Identifier: GPL-2.0-or-later
"""What is in the packages: files, modes, owners, dependencies; and that they can be made again byte for byte.

The RPMs are read here and installed nowhere: there is no RPM distribution to do it on.
"""

import gzip
import hashlib
import os
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections import namedtuple

import pytest

from lab import programs

from .conftest import PACKAGES

VERSION = subprocess.run([programs.REPOSITORY / "scripts/version"], capture_output=True, text=True,
                         check=True).stdout.strip()
# The newest versions of the C packages that distributions have by now begin with 4; ours must come after them.
C_VERSIONS = ["4.12.1-1", "4.16.0-13", "99.0-1"]
Entry = namedtuple("Entry", "mode owner link")

AGENT_FILES = {"/usr/sbin/fence_xvm", "/usr/sbin/fence_virt", "/usr/share/man/man8/fence_xvm.8.gz",
               "/usr/share/man/man8/fence_virt.8.gz", "/usr/lib/firewalld/services/fence_xvm.xml",
               "/usr/share/doc/fence-virt/fence-xvm.cdx.json"}
DAEMON_FILES = {"/usr/sbin/fence_virtd", "/usr/lib/systemd/system/fence_virtd.service",
                "/usr/lib/systemd/system/fence_virtd@.service", "/usr/lib/sysusers.d/fence_virt.conf", "/usr/share/man/man8/fence_virtd.8.gz",
                "/usr/share/man/man5/fence_virt.conf.5.gz", "/usr/lib/firewalld/services/fence_virtd.xml",
                "/usr/share/fence-virt/fence_virt.conf", "/usr/share/fence-virt/adapt-host", "/usr/lib/systemd/system-generators/fence_virtd-generator", "/etc/logrotate.d/fence_virtd",
                "/usr/share/doc/fence-virt/fence-virtd.cdx.json",
                "/usr/share/doc/fence-virt/SECURITY.md", "/usr/share/doc/fence-virt/CHANGELOG.md",
                *(f"/usr/share/doc/fence-virt/{it.name}" for it in (programs.REPOSITORY / "docs").glob("*.md")),
                *(f"/usr/share/doc/fence-virt/pictures/{it.name}" for it in (programs.REPOSITORY / "docs/pictures").glob("*.svg")),
                *(f"/usr/share/doc/fence-virt/examples/{it.name}" for it in (programs.REPOSITORY / "docs/examples").iterdir())}
# Where the daemon's package may have more.
DAEMON_PLACES = ("/usr/share/doc/", "/usr/lib/tmpfiles.d/fence_virt", "/usr/share/lintian/")


class Deb:
    kind = "deb"

    def __init__(self, name):
        self.path = PACKAGES / f"{name}_{VERSION}-1_amd64.deb"

    def files(self):
        out = subprocess.run(["dpkg-deb", "-c", self.path], capture_output=True, text=True, check=True).stdout
        found = {}
        for line in out.splitlines():
            mode, owner, _, _, _, path, *link = line.split(None, 5)[:5] + line.split(None, 5)[5].split(" -> ")
            if not path.endswith("/"):
                # Units: both names are one directory.
                path = path.removeprefix(".").replace("/usr/lib/systemd", "/lib/systemd")
                found[path.replace("/lib/systemd", "/usr/lib/systemd")] = Entry(mode, owner.replace("/", ":"), link[0] if link else None)
        return found

    def read(self, path):
        return subprocess.run(f"dpkg-deb --fsys-tarfile {self.path} | tar -xO .{path}", shell=True, check=True,
                              capture_output=True).stdout

    def field(self, name):
        return subprocess.run(["dpkg-deb", "-f", self.path, name], capture_output=True, text=True,
                              check=True).stdout.strip()


class Rpm:
    kind = "rpm"

    def __init__(self, name):
        self.path = PACKAGES / f"{name}-{VERSION}-1.x86_64.rpm"

    def query(self, *args):
        return subprocess.run(["rpm", "-qp", *args, self.path], capture_output=True, text=True, check=True).stdout

    def files(self):
        found = {}
        for line in self.query("--qf", "[%{FILEMODES:perms} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILENAMES} "
                                       "%{FILELINKTOS} %{FILEFLAGS:fflags}\n]").splitlines():
            mode, owner, path, *rest = line.split(" ")
            if not mode.startswith("d") and "g" not in rest[-1]:
                found[path] = Entry(mode, owner, rest[0] or None)
        return found

    def read(self, path):
        return subprocess.run(f"rpm2archive -n - < {self.path} | tar -xO .{path}", shell=True, check=True,
                              capture_output=True).stdout


@pytest.fixture(params=["deb", "rpm"])
def packages(request):
    kind = Deb if request.param == "deb" else Rpm
    found = {name: kind(name) for name in ("fence-virt", "fence-virtd")}
    for package in found.values():
        assert package.path.exists(), f"{package.path} is not there: make deb rpm"
    return found


def test_files(packages):
    agent, daemon = packages["fence-virt"].files(), packages["fence-virtd"].files()
    # Licence and history.
    other = {it for it in agent if it.startswith(("/usr/share/doc/fence-virt/", "/usr/share/lintian/"))}
    assert set(agent) - other | AGENT_FILES & other == AGENT_FILES
    missing = DAEMON_FILES - set(daemon)
    assert not missing, missing
    unexpected = {it for it in set(daemon) - DAEMON_FILES if not it.startswith(DAEMON_PLACES)}
    assert not unexpected, f"say in tests/packages/test_contents.py that these belong there: {unexpected}"
    # The licence may be in both RPMs: one file with one content.
    both = {it for it in set(agent) & set(daemon) if not it.endswith("/LICENSE")}
    assert not both, both
    assert agent["/usr/sbin/fence_virt"].link == "fence_xvm"


def test_modes_and_owners(packages):
    for name, package in packages.items():
        for path, entry in package.files().items():
            assert entry.owner == "root:root", f"{name}: {path}"
            runs = any(it in path for it in ("/sbin/", "/system-generators/", "/adapt-host"))
            expected = "lrwxrwxrwx" if entry.link else "-rwxr-xr-x" if runs else "-rw-r--r--"
            assert entry.mode == expected, f"{name}: {path}"


def test_version(packages):
    if packages["fence-virt"].kind == "deb":
        for package in packages.values():
            assert package.field("Version") == f"1:{VERSION}-1"
            for older in C_VERSIONS:
                subprocess.run(["dpkg", "--compare-versions", package.field("Version"), "gt", older], check=True)
    else:
        for package in packages.values():
            assert package.query("--qf", "%{EPOCH}:%{VERSION}-%{RELEASE}") == f"1:{VERSION}-1"


def test_programs_run_and_are_what_was_built(packages, tmp_path):
    for name, program in (("fence-virt", "fence_xvm"), ("fence-virtd", "fence_virtd")):
        path = tmp_path / program
        path.write_bytes(packages[name].read(f"/usr/sbin/{program}"))
        path.chmod(0o755)
        assert VERSION in subprocess.run([path, "-V"], capture_output=True, text=True, check=True).stdout


def test_manual_pages_are_compressed(packages):
    for name, package in packages.items():
        for path, entry in package.files().items():
            if "/man/man" in path and not entry.link:
                assert gzip.decompress(package.read(path)).startswith((b".TH ", b".so man8/fence_xvm.8")), path


def test_debian_dependencies():
    assert Deb("fence-virt").field("Depends") == ""
    depends = Deb("fence-virtd").field("Depends")
    for library in ("libvirt0", "libcpg4", "libcmap4", "libc6"):
        assert re.search(rf"\b{library} \(>=", depends), depends
    assert Deb("fence-virtd").field("Suggests") == "fence-agents"
    for name in ("fence-virt", "fence-virtd"):
        # The same names as the C packages: they are upgraded, nothing needs to be replaced or conflicted with.
        for field in ("Conflicts", "Breaks", "Replaces"):
            assert Deb(name).field(field) == ""


def test_rpm_dependencies():
    assert not [it for it in Rpm("fence-virt").query("--requires").split() if it.startswith("lib")]
    daemon = Rpm("fence-virtd")
    for library in ("libvirt.so.0", "libcpg.so.4", "libcmap.so.4"):
        assert f"{library}()(64bit)" in daemon.query("--requires"), library
    # An example is no program of ours.
    assert "python" not in daemon.query("--requires") and daemon.query("--suggests").split() == ["fence-agents-all"]
    # No program of a newer C library than that of the oldest distribution that is named in docs/install.md.
    needed = [tuple(map(int, it.split("."))) for it in re.findall(r"\(GLIBC_([\d.]+)\)", daemon.query("--requires"))]
    assert max(needed) <= (2, 34), max(needed)
    provides, obsoletes = daemon.query("--provides"), daemon.query("--obsoletes")
    for part in ("multicast", "serial", "tcp", "libvirt"):
        assert f"fence-virtd-{part} = 1:{VERSION}-1" in provides
        assert f"fence-virtd-{part} < 1:{VERSION}-1" in obsoletes
    has_cpg = "cpg" in subprocess.run([programs.FENCE_VIRTD, "-l"], capture_output=True, text=True, check=True).stdout
    assert ("fence-virtd-cpg = " in provides) == has_cpg
    assert ("fence-virtd-cpg" in daemon.query("--conflicts")) != has_cpg


def test_configuration_is_the_administrators(tmp_path):
    """Neither package brings an /etc/fence_virt.conf that could take the place of one that is there."""
    control = tmp_path / "control"
    subprocess.run(["dpkg-deb", "-e", Deb("fence-virtd").path, control], check=True)
    assert (control / "conffiles").read_text().split() == ["/etc/logrotate.d/fence_virtd"]
    flags = dict(line.split(" ") for line in Rpm("fence-virtd").query(
        "--qf", "[%{FILENAMES} %{FILEFLAGS:fflags}\n]").splitlines() if line.startswith("/etc/"))
    assert flags == {"/etc/fence_virt.conf": "cng", "/etc/logrotate.d/fence_virtd": "cn"}
    sample = (programs.REPOSITORY / "etc/fence_virt.conf").read_bytes()
    for package in (Deb("fence-virtd"), Rpm("fence-virtd")):
        assert package.read("/usr/share/fence-virt/fence_virt.conf") == sample


def test_upgrade_of_an_rpm_keeps_the_configuration(tmp_path):
    """rpm itself, on a tree of its own: a package with the old file as %config, then ours. Without scriptlets."""
    spec = tmp_path / "old.spec"
    spec.write_text("Name: fence-virtd\nVersion: 4.12.1\nRelease: 1\nSummary: x\nLicense: x\n%description\nx\n"
                    "%install\nmkdir -p %{buildroot}/etc\necho old > %{buildroot}/etc/fence_virt.conf\n"
                    "%files\n%config(noreplace) /etc/fence_virt.conf\n")
    subprocess.run(["rpmbuild", "--quiet", "-bb", spec, "--target", "x86_64", "--define", f"_topdir {tmp_path}/top",
                    "--define", f"_rpmdir {tmp_path}", "--define", "_rpmfilename old.rpm"], check=True)
    for content in ("old\n", "edited\n"):
        root = tmp_path / content.strip()
        rpm = ["rpm", "--root", root, "--dbpath", "/var/lib/rpm", "--nodeps", "--noscripts", "--notriggers"]
        root.mkdir()
        subprocess.run([*rpm, "-i", tmp_path / "old.rpm"], check=True)
        config = root / "etc/fence_virt.conf"
        config.write_text(content)
        subprocess.run([*rpm, "-U", Rpm("fence-virtd").path], check=True)
        assert config.read_text() == content
        assert not config.with_suffix(".conf.rpmsave").exists() and not config.with_suffix(".conf.rpmnew").exists()
        assert (root / "usr/sbin/fence_virtd").exists()


def test_scripts_are_sound(tmp_path):
    control = tmp_path / "control"
    subprocess.run(["dpkg-deb", "-e", Deb("fence-virtd").path, control], check=True)
    scripts = [(it.name, it.read_text()) for it in control.iterdir() if it.read_bytes().startswith(b"#!")]
    for tag in ("PREIN", "POSTIN", "PREUN", "POSTUN"):
        scripts.append((tag, Rpm("fence-virtd").query("--qf", f"%|{tag}?{{%{{{tag}}}}}|")))
    assert len(scripts) > 6
    for name, text in scripts:
        subprocess.run(["sh", "-n"], input=text, text=True, check=True)
        # Keys are the administrator's: made by no script, and removed by none. It may be said how.
        text = "".join(line for line in text.splitlines(keepends=True) if not line.lstrip().startswith("echo "))
        assert not re.search(r"random|keygen|\brm\b.*\.key", text), name
        # What runs may be restarted; nothing is started that did not run.
        assert not re.search(r"systemctl (--\S+ )*(start|restart)\b|deb-systemd-invoke (start|restart)\b", text), name


def test_made_again_they_are_the_same(tmp_path):
    """Same sources, same day, same bytes: whoever doubts a package can make it himself."""
    # make test sets the day; by hand it is that of the commit that the packages were made of.
    day = os.environ.get("SOURCE_DATE_EPOCH") or subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=programs.REPOSITORY, capture_output=True, text=True,
        check=True).stdout.strip()
    for script in ("build-deb", "build-rpm"):
        subprocess.run([programs.REPOSITORY / "scripts" / script, tmp_path], check=True, capture_output=True,
                       env={**os.environ, "SOURCE_DATE_EPOCH": day})
    made = {it.name: hashlib.sha256(it.read_bytes()).hexdigest() for it in tmp_path.iterdir()}
    assert len(made) == 4
    for name, digest in made.items():
        assert digest == hashlib.sha256((PACKAGES / name).read_bytes()).hexdigest(), name


@pytest.mark.parametrize("name, ports", [
    ("fence_virtd", {("udp", "1229"), ("tcp", "1229")}), ("fence_xvm", {("tcp", "1229")})])
def test_firewall_services(name, ports):
    service = ElementTree.parse(programs.REPOSITORY / f"packaging/firewalld/{name}.xml").getroot()
    assert {(it.get("protocol"), it.get("port")) for it in service.iter("port")} == ports
    source = (programs.REPOSITORY / "docs/fence_xvm.md").read_text()
    assert "TCP port 1229 of the guest" in source, "docs/fence_xvm.md names the port too"


def test_logrotate_reads_its_file():
    done = subprocess.run(["logrotate", "-d", "-s", "/dev/null", programs.REPOSITORY / "packaging/logrotate/fence_virtd"],
                          capture_output=True, text=True)
    assert done.returncode == 0 and "error" not in done.stderr, done.stderr
