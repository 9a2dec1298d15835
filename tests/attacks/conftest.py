# SPDX-License-Identifier: GPL-2.0-or-later
"""The attack suite.

Run: SIDE=reference /usr/bin/python3 -m pytest tests/attacks; SIDE=ours OURS_DIR=… /usr/bin/python3 -m pytest tests/attacks

After each test all output of all programs of ours that it started is searched for secrets (leaks.py).
"""

import os

import pytest

from lab import programs
from lab.programs import SIDE

from .scene import OURS, REFERENCE, Scene, program


def pytest_report_header():
    return [f"attacked: {SIDE} ({program(SIDE, 'fence_virtd')}, {program(SIDE, 'fence_xvm')})"]


def pytest_configure(config):
    config.addinivalue_line("markers", "ours: about what only our programs have")
    config.addinivalue_line("markers", "reference: about what only the C programs have")
    config.addinivalue_line("markers", "sealed: needs programs that know the sealed protocol")
    config.addinivalue_line("markers", "leaks: the test looks for secrets itself")


def pytest_collection_modifyitems(items):
    wanted = {OURS: "reference", REFERENCE: "ours"}[SIDE]
    items[:] = [item for item in items if not item.get_closest_marker(wanted)]


class Outputs:
    """What programs have printed: every Daemon and Agent of the lab that is made while this is installed."""

    def __init__(self):
        self._daemons, self._texts = [], []

    def install(self, monkeypatch):
        """Hooks into the lab: no test can forget it."""
        daemon_init, agent_init, finish = programs.Daemon.__init__, programs.Agent.__init__, programs.Agent.finish
        outputs = self

        def started(self, *args, program=None, **kw):
            outputs._daemons.append((programs.side_of(program or programs.FENCE_VIRTD), self))
            daemon_init(self, *args, program=program, **kw)

        def begun(self, *args, program=None, **kw):
            self.side = programs.side_of(program or programs.FENCE_XVM)
            agent_init(self, *args, program=program, **kw)

        def finished(self, *args, **kw):
            result = finish(self, *args, **kw)
            outputs._texts += [(self.side, result.out), (self.side, result.err)]
            return result

        monkeypatch.setattr(programs.Daemon, "__init__", started)
        monkeypatch.setattr(programs.Agent, "__init__", begun)
        monkeypatch.setattr(programs.Agent, "finish", finished)

    def add_file(self, side, path):
        """A file that a program of that side writes."""
        if os.path.exists(path):
            with open(path, "rb") as f:
                self._texts.append((side, f.read()))

    def of(self, side):
        """All of that side, each as bytes."""
        texts = [(which, daemon.log) for which, daemon in self._daemons if hasattr(daemon, "lines")] + self._texts
        return [it if isinstance(it, bytes) else it.encode("utf-8", "backslashreplace")
                for which, it in texts if which == side]


@pytest.fixture(scope="session")
def stage(tmp_path_factory):
    """The session's Scene; tests take `scene`."""
    for name in ("fence_virtd", "fence_xvm", "fence_virt"):
        assert os.access(program(SIDE, name), os.X_OK), f"not there: {program(SIDE, name)}"
    scene = Scene(tmp_path_factory.mktemp("attacks"))
    yield scene
    scene.close()


@pytest.fixture
def outputs(monkeypatch):
    """The Outputs of this test."""
    it = Outputs()
    it.install(monkeypatch)
    return it


@pytest.fixture
def scene(stage, outputs, request, monkeypatch):
    """The Scene. At the end of the test its daemons are ended, and nothing that was printed holds a secret."""
    started = []
    host, owner = stage.host, stage.owner

    def start(*args, **kw):
        started.append(host(*args, **kw))
        return started[-1]

    monkeypatch.setattr(stage, "host", start)
    stage.wiretap.begin()
    yield stage
    stage.owner = owner
    for it in started:
        it.stop()
        outputs.add_file(it.side, it.audit_file)
    if not request.node.get_closest_marker("leaks"):
        leaks = [leak for text in outputs.of(OURS) for leak in stage.secrets.find(text)]
        assert not leaks, leaks
