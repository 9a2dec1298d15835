# SPDX-License-Identifier: GPL-2.0-or-later
"""What --check and --status say of the daemon that runs: what it has taken up, and whether it answers."""

import re
import signal

import pytest

from lab import net, programs

from conftest import VIRTD


@pytest.fixture
def daemon(stage, setup):
    """Ours on the host, with metrics."""
    setup.state.mkdir(mode=0o700)
    setup.write(options=f'metrics = "unix:{setup.directory}/m"; state_dir = "{setup.state}";')
    daemon = programs.Daemon(stage.host, setup.file, program=VIRTD, ready="udp")
    net.wait_until((setup.state / "in-use").exists)
    yield daemon
    daemon.process.send_signal(signal.SIGCONT)
    daemon.stop()


def of_daemon(setup):
    """The exit code, and the findings of the running daemon."""
    rc, found = setup.check()
    return rc, [it for (check, _), it in found.items() if check == "daemon"]


def reload_and_wait(daemon, word):
    before = daemon.log.count(word)
    daemon.process.send_signal(signal.SIGHUP)
    net.wait_until(lambda: daemon.log.count(word) > before)


def test_what_the_daemon_has_taken_up(setup, daemon):
    rc, [ok] = of_daemon(setup)
    assert rc == 0 and ok["result"] == "ok" and "uses this configuration and these keys" in ok["text"]
    programs.write_key(setup.key, b"another" * 100)
    rc, [it] = of_daemon(setup)
    assert rc == 0 and it["result"] == "warning" and it["subject"] == str(setup.key) and "older key" in it["text"]
    assert it["next"].startswith("systemctl reload fence_virtd")
    if "still uses the older /" in it["text"]:
        assert "a restart is needed too (as for each key of `backends`)" in it["next"]
    reload_and_wait(daemon, "the new configuration is in force")
    net.wait_until(lambda: of_daemon(setup)[1][0]["result"] == "ok")
    # A configuration that the daemon refuses.
    good = setup.file.read_text()
    setup.file.write_text(good.replace('metrics = "unix:', 'strict_keys = "yes"; metrics = "unix:'))
    rc, [it] = of_daemon(setup)
    assert rc == 0 and it["result"] == "warning" and f"still uses the older {setup.file}" in it["text"]
    setup.key.rename(setup.directory / "aside")
    reload_and_wait(daemon, "is refused")
    (setup.directory / "aside").rename(setup.key)
    assert "still uses the older" in of_daemon(setup)[1][0]["text"]
    # One of which it takes up a part.
    setup.file.write_text(good.replace('backends { libvirt {', 'backends { libvirt { uri1 = "test:///default";'))
    reload_and_wait(daemon, "the backends changed")
    net.wait_until(lambda: "does not use all of it" in of_daemon(setup)[1][0]["text"])


def test_a_daemon_that_stands_still(setup, daemon):
    daemon.process.send_signal(signal.SIGSTOP)
    rc, found = setup.check()
    [it] = [it for (check, _), it in found.items() if check == "daemon"]
    assert rc == 1 and it["result"] == "failed" and "is stopped" in it["text"] and "kill -CONT" in it["next"]
    port = found["port", "tcp 0.0.0.0:1229"]
    assert port["result"] == "failed" and "is stopped" in port["text"], port
    status = setup.run("--status", "-f", setup.file)
    assert status.rc == 1 and "does not answer within" in status.err and "os error" not in status.err
    assert re.search(r"fence_virtd --check", status.err)


def test_a_daemon_that_told_nothing_and_none_at_all(setup, daemon):
    """As one that was started on a full disk, and one that was killed."""
    (setup.state / "in-use").unlink()
    rc, [it] = of_daemon(setup)
    assert rc == 0 and it["result"] == "warning" and it["subject"] == f"pid {daemon.pid}", it
    assert "which configuration it uses is not known" in it["text"]
    daemon.process.kill()
    daemon.process.wait()
    rc, [it] = of_daemon(setup)
    assert rc == 0 and it["result"] == "warning" and "none runs with this state_dir" in it["text"], it
    assert it["next"].startswith("systemctl start fence_virtd")
