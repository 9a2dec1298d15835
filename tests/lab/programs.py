# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs under test as processes.

Environment: SIDE=reference|ours (default reference) chooses all three; FENCE_VIRTD, FENCE_XVM, FENCE_VIRT
name single ones; OURS_DIR is where ours lie (default $CARGO_TARGET_DIR/debug, else target/debug).
VIRTD_SIDE / AGENT_SIDE say which expectations hold for a program at an unusual path.
REFERENCE=installed|today (default installed) says which C programs the reference is: those of this machine, or those of
Debian sid, which scripts/reference-today fetches.

    daemon = Daemon(node, config_file, port=1229)     # runs in the foreground, waits until the port is bound
    run_agent(guest, "-o", "status", "-H", "vm1")     # Result(rc, out, err, seconds)
    daemon.wait_log(r"...")
    daemon.stop()                                     # by pid, returns its exit code

A process is always ended by the pid that was started here, never by name.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import tempfile
import threading
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target")
#: The roots of the C programs.
REFERENCES = {"installed": pathlib.Path("/"), "today": TARGET / "reference-today"}
REFERENCE = os.environ.get("REFERENCE") or "installed"
if REFERENCE not in REFERENCES:
    raise SystemExit(f"REFERENCE={REFERENCE}: {' or '.join(REFERENCES)}")
REFERENCE_DIR = REFERENCES[REFERENCE] / "usr/sbin"
DEBUG_DIR = TARGET / "debug"
OURS_DIR = pathlib.Path(os.environ.get("OURS_DIR") or DEBUG_DIR)
SIDE = os.environ.get("SIDE", "reference")
if SIDE not in ("reference", "ours"):
    raise SystemExit(f"SIDE={SIDE}: reference or ours")


def modules(reference):
    """Where the modules of those C programs lie: one of REFERENCES."""
    return str(REFERENCES[reference] / "usr/lib/x86_64-linux-gnu/fence-virt")


MODULE_PATH = os.environ.get("FENCE_MODULES") or modules(REFERENCE)


def program(side, name):
    """Path of a program of that side: "ours", "reference", or one of REFERENCES."""
    if side == "ours":
        return str(OURS_DIR / name)
    root = REFERENCES[REFERENCE if side == "reference" else side]
    if root == REFERENCES["today"] and not (root / "version").exists():
        raise SystemExit(f"The C programs of Debian sid are not in {root}. Run this first: make reference-today")
    return str(root / "usr/sbin" / name)


def missing(paths):
    """The programs among these paths that are not there."""
    return [path for path in paths if not os.access(path, os.X_OK)]


def _program(name):
    return os.environ.get(name.upper()) or program(SIDE, name)


FENCE_VIRTD = _program("fence_virtd")
FENCE_XVM = _program("fence_xvm")
FENCE_VIRT = _program("fence_virt")


def side_of(path):
    """"reference" for a program of REFERENCE, "ours" for any other."""
    return "reference" if pathlib.Path(path).parent == REFERENCE_DIR else "ours"


VIRTD_SIDE = os.environ.get("VIRTD_SIDE") or side_of(FENCE_VIRTD)
AGENT_SIDE = os.environ.get("AGENT_SIDE") or side_of(FENCE_XVM)


def scratch(prefix="fvlab-"):
    """A new scratch directory; pytest users take tmp_path instead."""
    return pathlib.Path(tempfile.mkdtemp(prefix=prefix))


def write_key(path, data=None):
    """Writes a key file (mode 0600) and returns its path. Without `data`: 4096 fixed bytes."""
    if data is None:
        data = bytes((i * 131 + i // 256 * 7 + 17) % 256 for i in range(4096))
    path = pathlib.Path(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as f:
        f.write(data)
    return path


def shelved(side, directory, over=None):
    """The side's fence_virtd. Ours keeps state in /var/lib: daemons of one directory get their own. `over`: {place: path}, what
    ours and its children see in further places."""
    path, directory = program(side, "fence_virtd"), pathlib.Path(directory)
    if side != "ours":
        return path
    (directory / "state").mkdir(exist_ok=True)
    binds = "\n".join(f"mount --bind {shlex.quote(str(path))} {shlex.quote(str(place))}"
                      for place, path in {"/var/lib": directory / "state", **(over or {})}.items())
    return unshared(directory / "fence_virtd", path, f"mkdir -p /var/lib\n{binds}")


def unshared(wrapper, path, script):
    """Writes a program that runs a shell script in a mount namespace of its own and then becomes the one at `path`."""
    wrapper.write_text(f"""#!/bin/sh
if [ "$1" != unshared ]; then exec unshare --mount --propagation=private "$0" unshared "$@"; fi
shift
{script}
exec {shlex.quote(str(path))} "$@"
""")
    wrapper.chmod(0o755)
    return str(wrapper)


def audit_records(path):
    """The records in an audit file so far, oldest first; none before there is one."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def config_text(listener="multicast", backend="libvirt", listener_options=None, backend_options=None,
                groups=None, daemon_options=None, extra=""):
    """Text of a fence_virt.conf.

    Options are dicts; a list as value assigns the key several times. `groups`: list of dicts in the same form
    (`[]` writes an empty `groups { }`, None writes none). `extra` is appended as it is.
    """
    virtd = {"listener": listener, "backend": backend, "module_path": MODULE_PATH, **(daemon_options or {})}
    out = _block("fence_virtd", _assignments(virtd))
    out += _block("listeners", _block(listener, _assignments(listener_options or {})))
    out += _block("backends", _block(backend, _assignments(backend_options or {})))
    if groups is not None:
        out += _block("groups", "".join(_block("group", _assignments(g)) for g in groups))
    return out + extra


def write_config(path, text=None, peers="none", **kw):
    """Writes `text`, or `config_text(**kw)`, with mode 0600 and returns the path.

    `peers` goes into the block fence_virtd unless the text sets that key: daemons of one test hear each other, and are asked for
    each other's domains, only where the test is about that. None: nothing is added, and the daemon looks for other hosts.
    """
    path = pathlib.Path(path)
    text = config_text(**kw) if text is None else text
    if peers is not None and not re.search(r"(?im)^[^#\n]*\bpeers\s*=", text):
        text = re.sub(r"(?i)(\bfence_virtd\s*\{)", rf'\1 peers = "{peers}";', text, count=1)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", newline="") as f:
        f.write(text)
    return path


def _assignments(options):
    out = ""
    for key, value in options.items():
        if value is None:
            continue
        for v in value if isinstance(value, (list, tuple)) else [value]:
            out += f'{key} = "{v}";\n'
    return out


def _block(name, body):
    return name + " {\n" + "".join(f"\t{line}\n" for line in body.splitlines()) + "}\n"


class Daemon:
    """fence_virtd in the foreground, in a node's namespace.

    `ready`: what to wait for: "udp", "tcp", None (nothing), or a function of the daemon. With `ready` set, a
    daemon that ends or does not bind within `wait` seconds raises RuntimeError with its log.
    `lines` holds the log so far (stdout and stderr together), one string a line, and `times` when each was read. What it
    remembers across restarts is in `state`, a directory beside the config file unless `env` names another: a daemon that is started anew with
    the same config file has the same memory, and none finds that of another test.
    """

    def __init__(self, node, config, *args, port=1229, ready="udp", wait=60, debug=0, program=None, env=None,
                 pidfile=None):
        self.node, self.config, self.port = node, pathlib.Path(config), port
        program = program or FENCE_VIRTD
        self.program = pathlib.Path(program)
        self.pidfile = pathlib.Path(pidfile or f"{config}.pid")
        env = {"STATE_DIRECTORY": f"{config}.state", **(env or {})}
        self.state = pathlib.Path(env["STATE_DIRECTORY"])
        argv = [program, "-F", "-f", config, "-p", self.pidfile]
        if debug:
            argv += ["-d", debug]
        self.lines, self.times, self._news = [], [], threading.Condition()
        self.started = time.monotonic()
        self.process = node.popen([*argv, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, env=_environment(program, env))
        # On a machine with a PID namespace of its own the process that was started is only the program's parent.
        self.pid = node.pid_of(self.process) if hasattr(node, "pid_of") else self.process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if ready:
            try:
                self._wait_ready(ready, wait)
            except BaseException:
                self.stop(signal.SIGKILL)
                raise

    def alive(self):
        """Whether the process still runs."""
        return self.process.poll() is None

    @property
    def log(self):
        """The log so far as one text."""
        with self._news:
            return "\n".join(self.lines)

    def wait_log(self, pattern, timeout=60.0, since=0):
        """Waits for a log line that matches (`re.search`) at or after line number `since`; returns the match."""
        end = time.monotonic() + timeout
        with self._news:
            while True:
                for line in self.lines[since:]:
                    m = re.search(pattern, line)
                    if m:
                        return m
                left = end - time.monotonic()
                if left <= 0 or (not self._reader.is_alive() and not self._news.wait(0.05)):
                    raise TimeoutError(f"no {pattern!r} in the log:\n" + "\n".join(self.lines[-40:]))
                self._news.wait(left)

    def wait_serving(self, timeout=60.0):
        """Returns when ours serves: a socket is bound before it has joined its group, and before all of them are."""
        return self.wait_log(r"run: serving ", timeout)

    def wait_exit(self, timeout=60.0):
        """Waits until the daemon ends by itself; returns the exit code (negative: signal)."""
        code = self.process.wait(timeout)
        self._reader.join(2)
        return code

    def send_signal(self, number):
        """Sends a signal to the daemon."""
        if self.alive():
            os.kill(self.pid, number)

    def stop(self, number=signal.SIGTERM, timeout=10.0):
        """Ends the daemon; returns its exit code, or "killed" when it had to be killed."""
        code = self.process.poll()
        if code is None:
            self.send_signal(number)
            try:
                # A kill also ends what stands still.
                code = self._reap() if number == signal.SIGKILL else self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.send_signal(signal.SIGKILL)
                self._reap()
                code = "killed"
        self._reader.join(2)
        self.process.stdout.close()
        return code

    def end(self, codes=(0,)):
        """Ends the daemon, which must not have ended by itself, and must end with one of these codes."""
        died = not self.alive()
        code = self.stop()
        assert not died, f"fence_virtd ended by itself with {code}:\n{self.log[-4000:]}"
        assert code in codes, f"fence_virtd ended with {code}:\n{self.log[-4000:]}"

    def bound(self, kind="udp", port=None):
        """Whether the daemon itself (not its namespace) has the port bound, by inode."""
        return bound(self.pid, kind, port or self.port)

    def rss_kib(self):
        """Resident memory in KiB."""
        with open(f"/proc/{self.pid}/status") as f:
            return int(re.search(r"VmRSS:\s+(\d+)", f.read())[1])

    def descriptors(self):
        """Number of open file descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def _reap(self):
        """Waits for what was killed. nsenter stops together with its child, and stopped would not see its end."""
        while True:
            self.process.send_signal(signal.SIGCONT)
            try:
                return self.process.wait(0.2)
            except subprocess.TimeoutExpired:
                pass

    def _read(self):
        for raw in self.process.stdout:
            with self._news:
                self.lines.append(raw.decode("utf-8", "backslashreplace").rstrip("\n"))
                self.times.append(time.monotonic())
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def _wait_ready(self, ready, wait):
        end = time.monotonic() + wait
        while True:
            if not self.alive():
                self._reader.join(2)
                raise RuntimeError(f"fence_virtd ended with {self.process.returncode}:\n{self.log}")
            if ready(self) if callable(ready) else self.bound(ready):
                break
            if time.monotonic() > end:
                raise RuntimeError(f"fence_virtd not ready within {wait} s:\n{self.log}")
            time.sleep(0.005)
        # The socket is bound a moment before it has joined its group: one datagram in between would be lost. Nothing joins where
        # the group is that of a socket which was there before.
        end = time.monotonic() + 1
        while ready == "udp" and self.alive() and not self._is_in_group() and time.monotonic() < end:
            time.sleep(0.002)
        # The one socket is there before the others of the same daemon: ours says when all of them are.
        if self.program.parent == OURS_DIR and not callable(ready):
            with contextlib.suppress(TimeoutError):
                self.wait_serving(3)

    def _is_in_group(self):
        """Whether its network namespace is in a multicast group other than those of the kernel."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            with open(f"/proc/{self.pid}/net/igmp") as f:
                groups = re.findall(r"^\s+([0-9A-F]{8})\s", f.read(), re.M)
            with open(f"/proc/{self.pid}/net/igmp6") as f:
                return any(it != "010000E0" for it in groups) or re.search(r" ff[01][^12]", f.read()) is not None
        return False


@dataclasses.dataclass
class Result:
    """What a program did. `rc` is None when it had to be killed at `timeout`."""

    rc: int | None
    out: str
    err: str
    seconds: float


def own_run(node, directory, *argv):
    """Arguments of unshare(1) for a node's program that sees this directory in place of /run: machines don't share theirs, but
    namespaces of one machine do."""
    if not directory.exists():
        directory.mkdir()
        node.know_ports(directory)
    return ["--mount", "--propagation=private", "sh", "-c", 'mount --bind "$1" /run; shift; exec "$@"', "sh", directory, *argv]


class Agent:
    """An agent that runs in the background; `finish` waits for it."""

    def __init__(self, node, *args, program=None, stdin=None, env=None):
        program = program or FENCE_XVM
        self._stdin = stdin
        self.started = time.monotonic()
        self.process = node.popen(
            [program, *args], stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **(env or {})})

    def finish(self, timeout=60.0):
        """Waits for the end and returns the Result; kills the agent at the time-out (rc None)."""
        data = self._stdin.encode() if isinstance(self._stdin, str) else self._stdin
        try:
            out, err = self.process.communicate(data, timeout)
            rc = self.process.returncode
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            rc = None
        seconds = time.monotonic() - self.started
        return Result(rc, out.decode("utf-8", "backslashreplace"), err.decode("utf-8", "backslashreplace"), seconds)


def run_agent(node, *args, program=None, stdin=None, timeout=60.0, env=None):
    """Runs an agent to its end. `stdin` None: /dev/null. Returns a Result."""
    return Agent(node, *args, program=program, stdin=stdin, env=env).finish(timeout)


def run_daemon(node, *args, timeout=20.0, program=None, stdin="", env=None):
    """Runs fence_virtd with the arguments as they are, to the end of the process that was started."""
    program = program or FENCE_VIRTD
    with tempfile.TemporaryDirectory(prefix="fvlab-") as state:
        env = {"STATE_DIRECTORY": f"{state}/state", **(env or {})}
        return Agent(node, *args, program=program, stdin=stdin, env=_environment(program, env)).finish(timeout)


def bound(pid, kind, port):
    """Whether process `pid` has a UDP socket bound to, or a TCP socket listening on, `port`."""
    mine = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            # Others are opened and closed meanwhile.
            with contextlib.suppress(FileNotFoundError):
                mine.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    for table in (kind, kind + "6"):
        try:
            with open(f"/proc/{pid}/net/{table}") as f:
                rows = [line.split() for line in f][1:]
        except (FileNotFoundError, ProcessLookupError, OSError):
            continue
        for row in rows:
            listening = kind == "udp" or row[3] == "0A"
            if listening and int(row[1].rsplit(":", 1)[1], 16) == port and f"socket:[{row[9]}]" in mine:
                return True
    return False


def _environment(program, env):
    out = {**os.environ, **(env or {})}
    stdbuf = "/usr/libexec/coreutils/libstdbuf.so"
    if pathlib.Path(program).parent in [it / "usr/sbin" for it in REFERENCES.values()] and os.path.exists(stdbuf):
        # The C programs log through stdio: without this their lines come in blocks, or never.
        out.update(_STDBUF_O="L", LD_PRELOAD=stdbuf)
    return out
