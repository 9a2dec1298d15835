# SPDX-License-Identifier: GPL-2.0-or-later
"""`fence_virtd -c` driven by a script or through a terminal, and what came out of it."""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import termios
import time

from lab import programs

REFERENCE = str(programs.REFERENCE_DIR / "fence_virtd")
OURS = str(programs.OURS_DIR / "fence_virtd")
NAME = "x.conf"

_ASKED = "|".join([*map(re.escape, [
    "Module search path", "Listener module", "Multicast IP Address", "Multicast IP Port", "Interface", "Key File",
    "TCP Listen IP Address", "TCP Listen Port", "VSOCK Listen Port", "Libvirt URI", "Socket directory",
    "Mode (serial or vmchannel)", "Backend module", "VM naming/tracking mode (name or uuid)",
    "Weakest hash of a request (none, sha1, sha256, sha512, hmac-sha256, hmac-sha512)",
    "Device", "Fence agent (its name or path)", "Domains", "Option"]),
    r"Value of [\w-]+(?:, which will be seen)?", r"File of [\w-]+"])
_CONFIRMED = (r"Start from scratch|Replace \S+ with the above|Use this value anyway|Use name mode anyway|Use anyway"
              r"|Make a new key in \S+ now|Write [\w-]+ itself into this file")
PROMPT = re.compile(rf"(?:{_ASKED}) \[[^\]]*\]: |(?:{_CONFIRMED}) \[[yYnN]/[yYnN]\]\? ")
TOKEN = re.compile(r'#[^\n]*|"([^"]*)"|([{};=])|([^\s{};="]+)|\s+')


@dataclasses.dataclass
class Run:
    """How a run ended. `prompts` are those on standard output, in order; `file` is None when there is none."""

    rc: int
    prompts: list
    file: bytes | None
    out: str
    err: str

    @property
    def tree(self):
        """The file's keys and values, without order between different names; None without a file."""
        return None if self.file is None else parse(self.file.decode())

    @property
    def shown(self):
        """The keys and values between the two marks."""
        found = re.search(r"=== Begin Configuration ===\n(.*)=== End Configuration ===\n", self.out, re.DOTALL)
        return found and parse(found[1])


def run(program, directory, answers, existing=None, name=NAME):
    """Answers from a pipe, one line each; what is after the last is the end of the input."""
    directory = pathlib.Path(directory)
    path = directory / name
    if existing is not None:
        path.write_bytes(existing.encode())
    text = "".join(f"{answer}\n" for answer in answers)
    done = subprocess.run([program, "-c", "-f", name], cwd=directory, input=text.encode(), capture_output=True,
                          timeout=60)
    out, err = done.stdout.decode(), done.stderr.decode()
    return Run(done.returncode, PROMPT.findall(out), path.read_bytes() if path.exists() else None, out, err)


def parse(text):
    """Keys and values of a configuration as nested lists, sorted by name; None when it does not parse."""
    tokens, at = [], 0
    while at < len(text):
        found = TOKEN.match(text, at)
        if not found:
            return None
        at = found.end()
        value, sign, word = found.groups()
        if value is not None:
            tokens.append(("value", value))
        elif sign or word:
            tokens.append((sign or "id", word))
    tokens.reverse()

    def block(closing):
        items = []
        while tokens and tokens[-1][0] != "}":
            kind, name = tokens.pop()
            assert kind == "id", (kind, name)
            value = None
            if tokens[-1][0] == "=":
                tokens.pop()
                value = tokens.pop()[1]
            if tokens[-1][0] == "{":
                tokens.pop()
                items.append([name.lower(), value, block(True)])
            else:
                assert tokens.pop()[0] == ";"
                items.append([name.lower(), value])
        if closing:
            assert tokens.pop()[0] == "}"
        # The reference turns the order round at each writing.
        return sorted(items, key=str)

    return block(False)


def value(tree, path):
    """The value of a path such as listeners/tcp/port, None when there is none."""
    *blocks, key = path.split("/")
    for name in blocks:
        tree = next((item[2] for item in tree or [] if item[0] == name and len(item) == 3), None)
    return next((item[1] for item in tree or [] if item[0] == key and len(item) == 2), None)


class Terminal:
    """Our configurator with somebody at a terminal."""

    def __init__(self, directory, *, name=NAME, existing=None):
        self.directory = pathlib.Path(directory)
        self.path = self.directory / name
        if existing is not None:
            self.path.write_text(existing)
        self.master, slave = pty.openpty()
        self.text, self._seen = "", 0

        def take_the_terminal():
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            # A shell starts what runs in the background with it ignored, and that is handed on.
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        self.process = subprocess.Popen(
            [OURS, "-c", "-f", name], cwd=directory, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=take_the_terminal)
        os.close(slave)

    def expect(self, text, timeout=30, exact=True):
        """Waits until `text` (a regular expression where not `exact`) comes behind what was expected before."""
        end = time.monotonic() + timeout
        pattern = re.compile(re.escape(text) if exact else text)
        while not (found := pattern.search(self.text, self._seen)):
            if not self._read(end):
                raise AssertionError(f"no {text!r} in:\n{self.text}")
        self._seen = found.end()

    def answer(self, *pairs):
        """Pairs of a prompt's beginning and the answer to it."""
        for prompt, answer in pairs:
            self.expect(prompt)
            self.expect(r"\[[^\]]*\](?:: |\? )$", exact=False)
            self.send(answer + "\n")

    def send(self, text):
        """Types."""
        os.write(self.master, text.encode())

    def finish(self, timeout=30):
        """Reads to the end; returns the exit code (negative: signal)."""
        end = time.monotonic() + timeout
        while self._read(end):
            pass
        return self.process.wait(timeout)

    def _read(self, end):
        ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            raise AssertionError(f"nothing more came after:\n{self.text}")
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: nobody has the other end any more
            return False
        self.text += data.decode().replace("\r\n", "\n")
        return bool(data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self.master)
