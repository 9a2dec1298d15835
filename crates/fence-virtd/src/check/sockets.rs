// SPDX-License-Identifier: GPL-2.0-or-later
//! Check of the listeners' ports: free, held by a running fence_virtd, or held by another program. Runs in
//! the process of `--check`. Must never listen or join a group.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use fence_config::{Config, Listener, MetricsAddress};
use fence_wire::escaped;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, bind, socket};
use socket2::{Domain, Socket, Type};

use super::finding::Finding;
use super::processes::{OURS, SocketHolder, processes, stop_other};
use crate::daemon::in_use::is_stopped;

const CHECK: &str = "port";
/// State of listening sockets in /proc/net/tcp.
const LISTENING: &str = "0A";

/// Checks the port of each listener that has one, and that of the metrics. `is_other`: this fence_virtd is
/// not the one of this configuration.
pub(super) fn ports(config: &Config, is_other: impl Fn(u32) -> bool) -> Vec<Finding> {
    let inet = |kind, address, port| inet(kind, address, port, &is_other);
    let look = |it: &Listener| match it {
        Listener::Multicast(it) => Some(inet("udp", it.address, it.port)),
        Listener::Tcp(it) => Some(inet("tcp", it.address, it.port)),
        Listener::Vsock(it) => Some(vsock(it.port)),
        Listener::Serial(_) => None,
    };
    let metrics = config.daemon.metrics.as_ref().and_then(|it| match it {
        MetricsAddress::Tcp(it) => Some(inet("tcp", it.ip(), it.port())),
        MetricsAddress::Unix(_) => None,
    });
    let mut found: Vec<Finding> = config.listeners.iter().filter_map(look).chain(metrics).collect();
    // Several multicast blocks may have one group and port.
    let mut seen = BTreeSet::new();
    found.retain(|it| seen.insert(it.subject.clone()));
    found
}

fn inet(kind: &'static str, address: IpAddr, port: u16, is_other: impl Fn(u32) -> bool) -> Finding {
    let subject = format!("{kind} {}", SocketAddr::new(address, port));
    let sockets: Vec<u64> = ["", "6"]
        .iter()
        .filter_map(|family| fs::read_to_string(format!("/proc/net/{kind}{family}")).ok())
        .flat_map(|it| inodes(&it, kind, port))
        .collect();
    let holders = holders(&sockets);
    if let Some(it) = holders.iter().find(|it| it.name == OURS) {
        if is_other(it.pid) && try_bind(kind, address, port).is_err() {
            let text = format!("held by another {OURS} (pid {}), most probably a C daemon", it.pid);
            return Finding::failed(CHECK, subject, text, stop_other(it.pid));
        }
        if is_stopped(it.pid) {
            let text = format!("held by {OURS} (pid {}), which is stopped and answers nobody", it.pid);
            let next = format!("kill -CONT {}; or systemctl restart {OURS}", it.pid);
            return Finding::failed(CHECK, subject, text, next);
        }
        return Finding::ok(CHECK, subject, format!("held by a running {OURS} (pid {})", it.pid));
    }
    match try_bind(kind, address, port) {
        Ok(()) if sockets.is_empty() => Finding::ok(CHECK, subject, "free"),
        Ok(()) => {
            Finding::ok(CHECK, subject, format!("free; at other addresses it is held by {}", names(&holders)))
        }
        Err(error) => refused(subject, &error, &names(&holders)),
    }
}

/// Binds as the daemon does, for a moment. Neither listens nor joins a group, so nothing can arrive.
fn try_bind(kind: &str, address: IpAddr, port: u16) -> std::io::Result<()> {
    let to = SocketAddr::new(address, port);
    let socket =
        Socket::new(Domain::for_address(to), if kind == "udp" { Type::DGRAM } else { Type::STREAM }, None)?;
    socket.set_reuse_address(true)?;
    let to = match address {
        // A group with a scope; the daemon binds to no group then.
        IpAddr::V6(group) if kind == "udp" => {
            socket.set_only_v6(true)?;
            let scoped = matches!(group.octets()[1] & 0x0f, 1 | 2);
            if scoped { SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)) } else { to }
        }
        IpAddr::V4(_) | IpAddr::V6(_) => to,
    };
    socket.bind(&to.into())
}

fn vsock(port: u16) -> Finding {
    let subject = format!("vsock {port}");
    let bound = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).and_then(|it| {
        use std::os::fd::AsRawFd;
        bind(it.as_raw_fd(), &VsockAddr::new(nix::libc::VMADDR_CID_ANY, port.into()))
    });
    match bound {
        Ok(()) => Finding::ok(CHECK, subject, "free"),
        Err(Errno::EADDRINUSE) => {
            // The kernel does not tell the owner of a vsock socket.
            match processes().find(|it| it.name == OURS && it.pid != std::process::id()) {
                Some(it) => Finding::ok(CHECK, subject, format!("held, and {OURS} runs (pid {})", it.pid)),
                None => refused(subject, &Errno::EADDRINUSE.into(), "an unknown program"),
            }
        }
        Err(error) => refused(subject, &error.into(), ""),
    }
}

fn refused(subject: String, error: &std::io::Error, names: &str) -> Finding {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            let next = "end that program, or give the daemon (and all agents) another port";
            Finding::failed(CHECK, subject, format!("held by {names}"), next)
        }
        std::io::ErrorKind::PermissionDenied => {
            Finding::warning(CHECK, subject, "only root may take it", "run this as root")
        }
        // Said of the interface already.
        std::io::ErrorKind::AddrNotAvailable => Finding::warning(
            CHECK,
            subject,
            "can't be tried: the address is not there",
            "see the interface above",
        ),
        _ => {
            let next = "see the interface above";
            Finding::warning(CHECK, subject, format!("can't be tried: {error}"), next)
        }
    }
}

fn names(holders: &[SocketHolder]) -> String {
    if holders.is_empty() {
        return "a program that this user can't see".to_owned();
    }
    holders.iter().map(|it| format!("{} (pid {})", escaped(&it.name), it.pid)).collect::<Vec<_>>().join(", ")
}

/// Returns the inodes of the sockets at `port`, from a table of /proc/net; of TCP those that listen.
fn inodes(table: &str, kind: &str, port: u16) -> Vec<u64> {
    let socket = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (local, state) = (words.next()?, words.nth(1)?);
        let here = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        let inode = words.nth(5)?.parse().ok()?;
        (here == port && (kind == "udp" || state == LISTENING)).then_some(inode)
    };
    table.lines().skip(1).filter_map(socket).collect()
}

/// Returns the processes that have one of these sockets, as far as this user may see.
fn holders(sockets: &[u64]) -> Vec<SocketHolder> {
    if sockets.is_empty() {
        return Vec::new();
    }
    let links: Vec<_> = sockets.iter().map(|it| format!("socket:[{it}]")).collect();
    let mut found = BTreeMap::new();
    for process in processes() {
        let files = fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten().flatten();
        let mut targets = files.filter_map(|it| fs::read_link(it.path()).ok());
        if targets.any(|it| links.iter().any(|link| it.as_os_str() == link.as_str())) {
            found.insert(process.pid, process);
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::super::processes::{is_other_program, other_daemon};
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:04CD 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 \
   10 0
   1: 0100007F:04CD 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 20 4 30 \
   10 -1
   2: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 \
   10 0
";

    #[test]
    fn sockets_of_a_table() {
        assert_eq!(inodes(TCP, "tcp", 1229), [4711]);
        assert_eq!(inodes(TCP, "udp", 1229), [4711, 4712]);
        assert!(inodes(TCP, "tcp", 1230).is_empty());
        assert!(inodes("", "tcp", 1229).is_empty());
    }

    #[test]
    fn a_listening_socket_is_somebodys() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let found = inet("tcp", address.ip(), address.port(), |_| true);
        assert!(found.text.contains(&format!("(pid {})", std::process::id())), "{}", found.text);
        drop(socket);
    }

    /// The C daemon has the same name.
    #[test]
    fn a_port_of_another_daemon_is_a_fault() {
        use std::os::fd::OwnedFd;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join(OURS);
        std::os::unix::fs::symlink("/usr/bin/sleep", &program).unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let mut child = std::process::Command::new(&program).arg("60").stdin(OwnedFd::from(socket)).spawn();
        let child = child.as_mut().unwrap();
        let pid = child.id();
        // Its name is there once it runs the program.
        while !processes().any(|it| it.pid == pid && it.name == OURS) {
            std::thread::yield_now();
        }
        let look = |is_other| inet("tcp", address.ip(), address.port(), |it| is_other && it == pid).lines();
        let (other, own) = (look(true), look(false));
        let is_seen = (is_other_program(pid), is_other_program(std::process::id()), other_daemon().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(other.starts_with("failed") && other.contains("another fence_virtd (pid"), "{other}");
        assert!(other.contains(&format!("kill {pid}. Then systemctl start")), "{other}");
        assert!(own.contains("held by a running fence_virtd"), "{own}");
        assert_eq!(is_seen, (true, false, true));
    }
}
