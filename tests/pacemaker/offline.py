# SPDX-License-Identifier: GPL-2.0-or-later
"""pcs and Pacemaker's tools without a cluster, with the agents of one side where they look for them: /usr/sbin.

The agents are mounted over those of the machine, in a mount namespace that lives as long as one command. Nothing of
the machine is written.
"""

import dataclasses
import os
import pathlib
import shlex
import subprocess

from lab import programs


class Offline:
    """A desk with one file of configuration, `cib`."""

    def __init__(self, directory, side):
        self.directory = pathlib.Path(directory)
        source = programs.REFERENCE_DIR if side == "reference" else programs.OURS_DIR
        self.agents = {}
        for name in ("fence_xvm", "fence_virt"):
            self.agents[name] = os.path.realpath(source / name)
        self.key = programs.write_key(self.directory / "fence_xvm.key")
        self.cib = self.directory / "cib.xml"
        self.cib.write_text(self.run("cibadmin", "--empty").stdout)

    def run(self, *argv, check=True, key=True, timeout=300):
        """Runs a program; returns the CompletedProcess (text). `key`: the node has the key in its usual place."""
        mounts = ["mount -t tmpfs -o mode=755 fvlab /run", "mkdir -p /run/lock /run/etc/cluster"]
        # Both names may be one file, and a second mount on it would hide the first.
        mounts += dict.fromkeys(
            f"mount --bind {shlex.quote(path)} {shlex.quote(os.path.realpath(programs.REFERENCE_DIR / name))}"
            for name, path in self.agents.items() if path != os.path.realpath(programs.REFERENCE_DIR / name))
        mounts += ["cp -a /etc/. /run/etc", "rm -rf /run/etc/cluster/*"]
        mounts += [f"cp {shlex.quote(str(self.key))} /run/etc/cluster/fence_xvm.key"] if key else []
        mounts += ["mount --bind /run/etc /etc"]
        done = subprocess.run(
            ["unshare", "--mount", "--net", "--propagation=private", "sh", "-ec", "; ".join(mounts) + '; exec "$@"', "sh",
             *map(str, argv)], cwd=self.directory, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=timeout)
        assert done.returncode == 0 or not check, \
            f"{shlex.join(map(str, argv))}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def pcs(self, *words, **kw):
        """pcs on the file of configuration."""
        return self.run("pcs", "-f", self.cib, *words, **kw)

    def validate(self, agent, **options):
        """What Pacemaker says of these options."""
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        done = self.run("stonith_admin", "--validate", "--agent", agent, *words, check=False)
        return Verdict("succeeded" in done.stdout, done.stdout)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether options are fine, and the words about it."""

    valid: bool
    text: str
