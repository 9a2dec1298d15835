# SPDX-License-Identifier: GPL-2.0-or-later
"""A pool of XenServer or XCP-ng hosts, as far as fence agents see one: XML-RPC over HTTP and HTTPS.

    with Pool([net.node("xen1"), net.node("xen2")], [Vm("web1"), Vm("web2")]) as pool:
        pool.members[0].url                     # "http://10.77.0.5": the master, to begin with
        pool.move_master(pool.members[1])       # sessions are gone, the old master says HOST_IS_SLAVE
        pool.when("VM.hard_shutdown", lambda: pool.move_master(pool.members[0]))     # in the middle of a request
        pool.members[0].stop()                  # refuses connections; start() undoes it
        pool.members[0].hang()                  # takes requests and never answers
        pool["web1"].deaf = True                # says that it has shut the VM down, and has not
        pool["web1"].events                     # the truth: ["off", "on", …]

A member is anything with `ip` and `socket()`, such as a node of `lab.net`. All members serve one state; as with xapi only the
master takes logins and calls. What a VM does (`running`) and what the pool says of it (`power_state`) are kept apart.
Must know nothing of the daemon under test.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import pathlib
import shutil
import socket
import socketserver
import ssl
import subprocess
import tempfile
import threading
import time
import uuid
import xmlrpc.server

USER, PASSWORD = "fencing", "Tr0ub4dor & 3 <ünlike>"

HALTED, PAUSED, RUNNING, SUSPENDED = "Halted", "Paused", "Running", "Suspended"


class Failure(Exception):
    """What a call is refused with: a code of xapi's and its details."""

    def __init__(self, *details):
        super().__init__(*details)
        self.details = [str(it) for it in details]


class _Gone(Exception):
    """The member was restarted under the call: its connection ends without an answer."""


@dataclasses.dataclass
class Vm:
    """One VM. How it misbehaves can be changed at any time:

    `deaf`: a shutdown is answered with success and not done. `claims`: the state that the pool says, whatever is true.
    `slow`: seconds that a shutdown takes, which its caller waits for. `late`: seconds after which a shutdown that was
    answered at once is done. `refuses`: details of the Failure that `start` gets, such as ("HOST_OFFLINE", "OpaqueRef:…").
    """

    name: str
    power: str = RUNNING
    uuid: str = ""
    is_a_template: bool = False
    is_control_domain: bool = False
    deaf: bool = False
    claims: str | None = None
    slow: float = 0
    late: float = 0
    refuses: tuple = ()

    def __post_init__(self):
        self.uuid = self.uuid or str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{self.name}.xen"))
        self.ref = f"OpaqueRef:{uuid.uuid4()}"
        self.events = []        # "off" and "on", as they happened
        self.on_off = []        # called when it is off, in the moment that it is

    @property
    def running(self):
        """Whether it is powered, in truth."""
        return self.power != HALTED

    def record(self):
        """Its record as `VM.get_record` gives it, as far as agents look."""
        return {"uuid": self.uuid, "name_label": self.name, "name_description": "", "power_state": self.claims or self.power,
                "is_a_template": self.is_a_template, "is_control_domain": self.is_control_domain,
                "is_a_snapshot": False, "is_default_template": False, "other_config": {}, "tags": []}


class Pool:
    """See the module's head. `members[0]` is the master, to begin with."""

    def __init__(self, places, vms, password=PASSWORD):
        self.password = password
        self.vms = list(vms)
        self.lock = threading.RLock()
        self.closed = threading.Event()
        self.calls = []                 # (name of the member, method, parameters without the session)
        self._sessions, self._tasks, self._hooks = set(), {}, []
        self._scratch = pathlib.Path(tempfile.mkdtemp(prefix="xen-pool-"))
        self.certificate = self._certificate([place.ip for place in places])
        self.members = [Member(self, place, f"xen{n}") for n, place in enumerate(places, 1)]
        self.master = self.members[0]
        for member in self.members:
            member.start()

    def __getitem__(self, name):
        """The VM of that name, or of that UUID."""
        (vm,) = [vm for vm in self.vms if name in (vm.name, vm.uuid)]
        return vm

    def move_master(self, to):
        """`to` is the master from now on. What both were doing is cut short, and sessions are gone."""
        with self.lock:
            old, self.master = self.master, to
            self._sessions.clear()
            self._tasks.clear()
            for member in {old, to}:
                member.restart()

    def when(self, method, action, *, after=False, times=1):
        """Calls `action` when that method is called next, before it is carried out, or after that and before the answer."""
        with self.lock:
            self._hooks.append([method, action, after, times])

    def forget_sessions(self):
        """As when xapi was restarted: who is logged in must do so again."""
        with self.lock:
            self._sessions.clear()

    def asked(self, method):
        """Members that were called with the method so far, by name, oldest first."""
        with self.lock:
            return [member for member, called, _ in self.calls if called == method]

    def close(self):
        """Ends everything. May be called twice."""
        self.closed.set()
        for member in self.members:
            member.stop()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # -- calls -------------------------------------------------------------------------------------------

    def call(self, member, method, parameters):
        """What a member answers, as a structure of xapi's."""
        asynchronous = method.startswith("Async.")
        name = method.removeprefix("Async.")
        with self.lock:
            born = member.births
            self.calls.append((member.name, method, parameters if name.startswith("session.") else parameters[1:]))
        self._run_hooks(method, False)
        try:
            with self.lock:
                if member.births != born:
                    raise _Gone
                work = functools.partial(self._carry_out, member, name, parameters)
                value = self._task(work) if asynchronous else None
            if not asynchronous:
                value = work()
            answer = {"Status": "Success", "Value": value}
        except Failure as refused:
            answer = {"Status": "Failure", "ErrorDescription": refused.details}
        self._run_hooks(method, True)
        with self.lock:
            if member.births != born:
                raise _Gone
        return answer

    def _run_hooks(self, method, after):
        with self.lock:
            due = [hook for hook in self._hooks if hook[0] == method and hook[2] == after and hook[3]]
            for hook in due:
                hook[3] -= 1
        for hook in due:
            hook[1]()

    def _carry_out(self, member, method, parameters):
        if method.startswith("session."):
            return self._session(member, method, parameters)
        if member is not self.master:
            raise Failure("HOST_IS_SLAVE", self.master.address)
        if not parameters or parameters[0] not in self._sessions:
            raise Failure("SESSION_INVALID", *parameters[:1])
        kind, _, verb = method.partition(".")
        handler = {"VM": self._vm, "task": self._task_call, "pool": self._pool, "host": self._host}.get(kind)
        if not handler:
            raise Failure("MESSAGE_METHOD_UNKNOWN", method)
        try:
            return handler(verb, *parameters[1:])
        except TypeError as error:
            raise Failure("MESSAGE_PARAMETER_COUNT_MISMATCH", method, "?", len(parameters)) from error

    def _session(self, member, method, parameters):
        match method:
            case "session.login_with_password" | "session.slave_local_login_with_password":
                local = "slave" in method
                if member is not self.master and not local:
                    raise Failure("HOST_IS_SLAVE", self.master.address)
                if tuple(parameters[:2]) != (USER, self.password):
                    raise Failure("SESSION_AUTHENTICATION_FAILED", parameters[0], "Authentication failure")
                reference = f"OpaqueRef:{uuid.uuid4()}"
                with self.lock:
                    self._sessions.add(reference)
                return reference
            case "session.logout" | "session.local_logout":
                with self.lock:
                    self._sessions.discard(parameters[0])
                return ""
        raise Failure("MESSAGE_METHOD_UNKNOWN", method)

    def _vm(self, verb, *parameters):
        with self.lock:
            match verb:
                case "get_all":
                    return [vm.ref for vm in self.vms]
                case "get_all_records":
                    return {vm.ref: vm.record() for vm in self.vms}
                case "get_by_uuid":
                    found = [vm.ref for vm in self.vms if vm.uuid == parameters[0]]
                    if not found:
                        raise Failure("UUID_INVALID", "VM", parameters[0])
                    return found[0]
                case "get_by_name_label":
                    return [vm.ref for vm in self.vms if vm.name == parameters[0]]
        vm = next((vm for vm in self.vms if vm.ref == parameters[0]), None)
        if not vm:
            raise Failure("HANDLE_INVALID", "VM", parameters[0])
        if verb == "get_record":
            return vm.record()
        if verb.startswith("get_"):
            if verb[4:] not in vm.record():
                raise Failure("MESSAGE_METHOD_UNKNOWN", f"VM.{verb}")
            return vm.record()[verb[4:]]
        match verb:
            case "hard_shutdown":
                return self._shut_down(vm)
            case "hard_reboot":
                self._shut_down(vm)
                return self._start(vm)
            case "start":
                _start_paused, _force = parameters[1:]
                return self._start(vm)
        raise Failure("MESSAGE_METHOD_UNKNOWN", f"VM.{verb}")

    def _shut_down(self, vm):
        if vm.deaf:
            return ""
        if not vm.running:
            raise Failure("VM_BAD_POWER_STATE", vm.ref, "running", "halted")
        if vm.late:
            threading.Thread(target=self._later, args=(vm,), daemon=True).start()
            return ""
        if vm.slow:
            self.closed.wait(vm.slow)
        self._off(vm)
        return ""

    def _later(self, vm):
        if not self.closed.wait(vm.late):
            self._off(vm)

    def _off(self, vm):
        with self.lock:
            if not vm.running:
                return
            vm.power = HALTED
            vm.events.append("off")
            for action in vm.on_off:
                action()

    def _start(self, vm):
        with self.lock:
            if vm.running:
                raise Failure("VM_BAD_POWER_STATE", vm.ref, "halted", vm.power.lower())
            if vm.refuses:
                raise Failure(*vm.refuses)
            vm.power = RUNNING
            vm.events.append("on")
        return ""

    def power_on(self, vm):
        """The VM runs, by nobody's call: between two cases."""
        with self.lock:
            vm.power = RUNNING

    # -- tasks, the pool itself ---------------------------------------------------------------------------

    def _task(self, work):
        reference = f"OpaqueRef:{uuid.uuid4()}"
        task = self._tasks[reference] = {"status": "pending", "error_info": [], "result": "", "progress": 0.0}

        def run():
            try:
                task["result"] = f"<value>{work()}</value>"
                task["status"] = "success"
            except Failure as refused:
                task["error_info"], task["status"] = refused.details, "failure"
            task["progress"] = 1.0
        threading.Thread(target=run, daemon=True).start()
        return reference

    def _task_call(self, verb, reference):
        if reference not in self._tasks:
            raise Failure("HANDLE_INVALID", "task", reference)
        task = dict(self._tasks[reference])
        if verb == "destroy":
            self._tasks.pop(reference, None)
            return ""
        if verb == "get_record":
            return task
        if verb.removeprefix("get_") in task:
            return task[verb.removeprefix("get_")]
        raise Failure("MESSAGE_METHOD_UNKNOWN", f"task.{verb}")

    def _pool(self, verb, *_):
        match verb:
            case "get_all":
                return ["OpaqueRef:pool"]
            case "get_master":
                return self.master.ref
        raise Failure("MESSAGE_METHOD_UNKNOWN", f"pool.{verb}")

    def _host(self, verb, *parameters):
        if verb == "get_all":
            return [member.ref for member in self.members]
        host = next((it for it in self.members if it.ref == parameters[0]), None)
        if not host:
            raise Failure("HANDLE_INVALID", "host", parameters[0])
        values = {"get_address": host.address, "get_name_label": host.name, "get_API_version_major": "2",
                  "get_API_version_minor": "21"}
        if verb not in values:
            raise Failure("MESSAGE_METHOD_UNKNOWN", f"host.{verb}")
        return values[verb]

    def _certificate(self, addresses):
        """A self-signed certificate for all members: (its file, its key's file)."""
        files = self._scratch / "pool.pem", self._scratch / "pool.key"
        names = ",".join(f"IP:{address}" for address in addresses)
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                        "-subj", "/CN=pool", "-addext", f"subjectAltName={names}", "-days", "30",
                        "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)
        return files


class Member:
    """One host of a pool: its own addresses, the state that all share."""

    def __init__(self, pool, place, name):
        self.pool, self.place, self.name = pool, place, name
        self.address, self.ref = place.ip, f"OpaqueRef:{uuid.uuid4()}"
        self.url, self.secure_url = f"http://{self.address}", f"https://{self.address}"
        #: How often it was started: a call that began before the last time gets no answer.
        self.births = 0
        self._servers = []
        self._answers = threading.Event()
        self._answers.set()

    def start(self):
        """Takes calls, as before `stop`."""
        self.births += 1
        self._answers.set()
        if not self._servers:
            for secure in (False, True):
                server = _Server(self, secure)
                threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
                self._servers.append(server)

    def stop(self):
        """Refuses connections, and those that there are end. Calls that are being carried out are, unanswered."""
        self.births += 1
        self._answers.set()
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()

    def restart(self):
        """Calls that are being carried out get no answer."""
        self.births += 1
        for server in self._servers:
            server.drop_connections()

    def hang(self):
        """Takes calls and leaves them without an answer, until `start` or `stop`."""
        self._answers.clear()

    def call(self, method, parameters):
        """What it answers."""
        self._answers.wait()
        if not self._servers:
            raise _Gone
        return self.pool.call(self, method, parameters)


class _Server(socketserver.ThreadingMixIn, xmlrpc.server.SimpleXMLRPCServer):
    """One port of a member."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, member, secure):
        super().__init__((member.address, 0), requestHandler=_Handler, logRequests=False, allow_none=True,
                         bind_and_activate=False)
        self.member = member
        self.socket.close()
        self.socket = member.place.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((member.address, 443 if secure else 80))
        self.socket.listen(64)
        self._context = None
        if secure:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*member.pool.certificate)
        self._connections, self._lock = set(), threading.Lock()

    def get_request(self):
        connection, address = super().get_request()
        if self._context:
            # The handshake is the connection's own thread's affair: it may take for ever.
            connection = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request):
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        """A client that hangs up, and a call that ends without an answer, are nothing to tell."""

    def drop_connections(self):
        """Those that there are end."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                # Not the TLS way: nothing more is said.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def close(self):
        """Takes none any more either."""
        self.shutdown()
        self.server_close()
        self.drop_connections()

    def _dispatch(self, method, parameters):
        return self.member.call(method, parameters)


class _Handler(xmlrpc.server.SimpleXMLRPCRequestHandler):
    rpc_paths = ()

    def do_POST(self):      # noqa: N802
        """One call. The base turns every exception into an answer; a member that is gone gives none."""
        length = int(self.headers.get("content-length", 0))
        data = self.rfile.read(length)
        parameters, method = xmlrpc.client.loads(data, use_builtin_types=True)
        try:
            answer = self.server.member.call(method, list(parameters))
        except _Gone:
            self.close_connection = True
            return
        body = xmlrpc.client.dumps((answer,), methodresponse=True, allow_none=True).encode()
        self.send_response(200)
        self.send_header("Content-type", "text/xml")
        self.send_header("Content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Loopback:
    """A place for a member on the machine itself, for trials by hand."""

    def __init__(self, ip):
        self.ip = ip

    def socket(self):
        """A TCP socket."""
        return socket.socket()


def _main():
    parser = argparse.ArgumentParser(description="A pool on 127.0.0.11, 127.0.0.12, …: for trials by hand.")
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--move", type=float, help="seconds after which the master moves on, again and again")
    parser.add_argument("vm", nargs="*", default=["web1", "web2"])
    args = parser.parse_args()
    places = [_Loopback(f"127.0.0.{11 + n}") for n in range(args.members)]
    with Pool(places, [Vm(name) for name in args.vm] + [Vm("Control domain", is_control_domain=True)]) as pool:
        print(f"master {pool.master.url}, user {USER}, password {PASSWORD}", flush=True)
        for member in itertools.cycle(pool.members[1:] + pool.members[:1]):
            time.sleep(args.move or 1e6)
            pool.move_master(member)
            print(f"master {member.url}; {[(vm.name, vm.power, vm.events) for vm in pool.vms]}", flush=True)


if __name__ == "__main__":
    _main()
