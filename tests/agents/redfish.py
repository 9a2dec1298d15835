# SPDX-License-Identifier: GPL-2.0-or-later
"""Redfish services: OpenStack's emulator (sushy-tools) on a node of its own, over TLS and with a password; and what may
stand in front of a service, so that it lies or is slow.

    with Emulator(site, "bmc", directory, libvirt=site.hypervisor.uri) as bmc:
        device("bmc", "fence_redfish", "vm1", options=bmc.options(vm1.uuid))

Must never change the emulator: what it can't do by its settings is done by a `Front`, which swallows or holds back the
reset and passes on all else.
"""

import base64
import contextlib
import http.client
import http.server
import itertools
import json
import os
import ssl
import subprocess
import threading

from lab.endpoint import Endpoint

from .rig import venv

PORT = 8443
USER, PASSWORD = "fencing", "redfish-hunter2-b51f"


class Emulator(Endpoint):
    """sushy-emulator on a node. `libvirt`: the URI of the hypervisor under it; else its own fake systems, `systems`: uuid
    to "On" or "Off". `settings`: further settings by name, as SUSHY_EMULATOR_DISABLE_POWER_OFF."""

    def __init__(self, site, name, directory, *, libvirt=None, systems=None, settings=None):
        super().__init__(site.place(name), directory)
        self.site = site
        certificate, key = certify(directory, self.node.ip)
        (directory / "users").write_text(f"{USER}:{_hashed(PASSWORD)}\n")
        self._config = {
            "SUSHY_EMULATOR_LISTEN_IP": self.node.ip, "SUSHY_EMULATOR_LISTEN_PORT": PORT,
            "SUSHY_EMULATOR_SSL_CERT": str(certificate), "SUSHY_EMULATOR_SSL_KEY": str(key),
            "SUSHY_EMULATOR_AUTH_FILE": str(directory / "users"), "SUSHY_EMULATOR_STATE_DIR": str(directory / "state"),
            "SUSHY_EMULATOR_LIBVIRT_URI": libvirt, "SUSHY_EMULATOR_FAKE_DRIVER": libvirt is None,
            "SUSHY_EMULATOR_FAKE_SYSTEMS": [{"uuid": uuid, "name": uuid[:8], "power_state": state, "nics": []}
                                            for uuid, state in (systems or {}).items()],
            **(settings or {})}
        self.start()

    def start(self):
        """Runs, and answers when this returns."""
        config = self.directory / "emulator.conf"
        config.write_text("".join(f"{key} = {value!r}\n" for key, value in self._config.items()))
        return self.run([_program("sushy-emulator"), "--config", config], PORT, stdout=subprocess.STDOUT,
                        env={**os.environ, "TMPDIR": str(self.directory)})

    def options(self, system=None, *, ip=None, **more):
        """Options of a device for it. `system`: the machine's number in its service."""
        options = {"ip": ip or self.node.ip, "ipport": PORT, "ssl_insecure": 1, "username": USER,
                   "password_file": self.site.secret(PASSWORD)}
        if system:
            options["systems_uri"] = f"/redfish/v1/Systems/{system}"
        return {**options, **more}

    def power(self, system):
        """"On" or "Off", by its own word."""
        status, answer = self._request("GET", f"/redfish/v1/Systems/{system}")
        assert status == 200, (status, answer)
        return json.loads(answer)["PowerState"]

    def resets(self):
        """The resets that it was asked for and answered: HTTP status codes, oldest first."""
        return [int(line.split('" ')[1].split()[0]) for line in self.log().splitlines()
                if "POST" in line and "ComputerSystem.Reset" in line]

    def _request(self, method, path, body=None):
        return request(self.node, self.node.ip, method, path, body, {"Authorization": _basic()})


class Front:
    """What stands before a service, on another address of its node: passes everything on, but for resets.

    `mode`: "pass"; "swallow" (answers 204 and does nothing); "hold" (answers 204 at once, and passes the reset on after as
    many further looks at the machine as `release_after` says); "hang" (takes the reset and answers nothing until `let_go`,
    and then nothing either)."""

    _numbers = itertools.count(1)

    def __init__(self, emulator, mode="pass", release_after=0):
        self.emulator, self.mode, self.release_after = emulator, mode, release_after
        self.resets = []
        self._held, self._gone, self._lock = [], threading.Event(), threading.Lock()
        node = emulator.node
        self.ip = f"10.77.200.{next(Front._numbers)}"
        node.add_address(self.ip)
        certificate, key = certify(emulator.directory, self.ip)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        with node.entered():
            self._server = http.server.ThreadingHTTPServer((self.ip, PORT), self._handler(), bind_and_activate=True)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def let_go(self):
        """Who hangs is hung up on."""
        self._gone.set()

    def close(self):
        """Ends it."""
        self._gone.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _hold(self, reset):
        with self._lock:
            self._held.append([self.release_after, reset])

    def _looked(self):
        with self._lock:
            for held in self._held:
                held[0] -= 1
            due = [reset for left, reset in self._held if left < 0]
            self._held = [held for held in self._held if held[0] >= 0]
        for reset in due:
            request(self.emulator.node, self.emulator.node.ip, *reset)

    def _handler(front):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                front._looked()
                self._pass_on("GET", None)

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if not self.path.endswith("ComputerSystem.Reset"):
                    return self._pass_on("POST", body)
                front.resets.append(json.loads(body)["ResetType"])
                if front.mode == "pass":
                    return self._pass_on("POST", body)
                if front.mode == "hold":
                    front._hold(("POST", self.path, body, self._kept()))
                if front.mode == "hang":
                    front._gone.wait()
                    return None
                self._answer(204, b"")

            def _pass_on(self, method, body):
                self._answer(*request(front.emulator.node, front.emulator.node.ip, method, self.path, body, self._kept()))

            def _kept(self):
                return {name: self.headers[name] for name in ("Authorization", "Content-Type", "Accept") if name in self.headers}

            def _answer(self, status, body):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                """Nothing."""
        return Handler


def request(node, ip, method, path, body=None, headers=None):
    """One request from a node, whatever the certificate: status and body."""
    connection = http.client.HTTPSConnection(ip, PORT, timeout=60, context=ssl._create_unverified_context())
    with node.entered():
        connection.connect()
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()


def certify(directory, ip):
    """A self-signed certificate for an address, and its key: two paths."""
    certificate, key = directory / f"{ip}.crt", directory / f"{ip}.key"
    if not certificate.exists():
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={ip}",
                        "-addext", f"subjectAltName=IP:{ip}", "-out", certificate, "-keyout", key],
                       check=True, capture_output=True)
    return certificate, key


def _basic():
    return "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def _hashed(password):
    # Few rounds: each request is checked anew.
    script = "import bcrypt, sys; print(bcrypt.hashpw(sys.stdin.read().encode(), bcrypt.gensalt(4)).decode())"
    return subprocess.run([_program("python"), "-c", script], input=password, capture_output=True, text=True,
                          check=True).stdout.strip()


def _program(name):
    return venv() / "bin" / name
