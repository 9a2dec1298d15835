// SPDX-License-Identifier: GPL-2.0-or-later
//! Choice of the port for the call-back, so that no agent takes the answer to another agent's request.
//!
//! A call-back does not name its request, and a busy host may call long after the agent gave up. So a port on
//! which a request was abandoned (time-out, SIGKILL) is not used for some minutes, as TCP does with
//! TIME-WAIT. Another port is used instead. Each port of each network namespace has its [`UseRecord`].
//!
//! Owns the listener of a reserved port. Runs on the agent's only thread. Must never listen on a port in
//! quarantine.

use std::io;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use fence_net::{Family, call_back_listener};

use crate::records::{UseRecord, UseRecords};

/// Number of ports that are tried in order, the wanted one first, before the kernel chooses one. A firewall
/// that lets these in lets every call-back in.
const NEIGHBOURS: u16 = 16;

/// Ports of this network namespace.
#[derive(Debug)]
pub(crate) struct CallBackPorts {
    records: UseRecords,
    /// Inode of the namespace: agents of containers that share /run do not share ports.
    namespace: u64,
}

/// Port that the agent listens on, and that no abandoned request belongs to.
#[derive(Debug)]
pub(crate) struct PortReservation {
    /// Listener on the port.
    pub(crate) listener: TcpListener,
    /// Number of the port.
    pub(crate) port: u16,
    /// Record of the port; none when there is nowhere to keep one.
    record: Option<UseRecord>,
}

impl CallBackPorts {
    /// Opens the records of the ports that this process can listen on.
    ///
    /// # Errors
    /// When there is nowhere to keep records.
    pub(crate) fn open() -> io::Result<Self> {
        Self::with_records(UseRecords::open()?)
    }

    fn with_records(records: UseRecords) -> io::Result<Self> {
        Ok(Self { records, namespace: network_namespace()? })
    }

    /// Listens on `wanted`, or on another port when `wanted` is in use or in quarantine, and records the use.
    /// The record stays until [`PortReservation::release`], or else until its quarantine is over, which
    /// begins `lifetime` from now.
    ///
    /// # Errors
    /// When there is no port, or the use cannot be recorded.
    pub(crate) fn reserve(
        &self,
        family: Family,
        wanted: u16,
        lifetime: Duration,
    ) -> io::Result<PortReservation> {
        const ANY: [u16; 16] = [0; 16];
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for port in (wanted..=wanted.saturating_add(NEIGHBOURS - 1)).chain(ANY) {
            match self.reserve_port(family, port, lifetime) {
                Ok(Some(reservation)) => return Ok(reservation),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Reserves this port; none when an agent uses it or its quarantine is not over.
    fn reserve_port(
        &self,
        family: Family,
        port: u16,
        lifetime: Duration,
    ) -> io::Result<Option<PortReservation>> {
        // A port that the kernel chooses is known only after listening. Other ports are looked up first, so
        // that a call-back never reaches a port in quarantine.
        let chosen = if port == 0 { Some(call_back_listener(family, 0)?) } else { None };
        let port = chosen.as_ref().map_or(Ok(port), |it| it.local_addr().map(|address| address.port()))?;
        let Some(mut record) = self.records.lock(&self.record_name(port))?.filter(|it| !it.is_abandoned())
        else {
            return Ok(None);
        };
        let listener = chosen.map_or_else(|| call_back_listener(family, port), Ok)?;
        record.mark_busy(lifetime)?;
        Ok(Some(PortReservation { listener, port, record: Some(record) }))
    }

    fn record_name(&self, port: u16) -> String {
        format!("{port}-{}", self.namespace)
    }
}

impl PortReservation {
    /// Reserves a port without a record: one that the kernel chooses, because no other is known to be clean.
    ///
    /// # Errors
    /// Error of the kernel.
    pub(crate) fn without_record(family: Family) -> io::Result<Self> {
        let listener = call_back_listener(family, 0)?;
        let port = listener.local_addr()?.port();
        Ok(Self { listener, port, record: None })
    }

    /// Releases the port as clean, because the request was answered or never sent.
    pub(crate) fn release(self) {
        if let Some(record) = self.record {
            record.mark_free();
        }
    }
}

/// Returns the inode of this process's network namespace.
pub(crate) fn network_namespace() -> io::Result<u64> {
    Ok(std::fs::metadata("/proc/self/ns/net")?.ino())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

    use super::*;
    use crate::records::{QUARANTINE, boot_seconds, busy_text, read_boot_id};

    const LIFETIME: Duration = Duration::from_secs(30);

    struct PortLab {
        directory: tempfile::TempDir,
        wanted: u16,
    }

    impl PortLab {
        fn new() -> Self {
            // Ports of this lab alone, below those that the kernel hands out.
            static NEXT: AtomicU16 = AtomicU16::new(9_000);
            let is_free = |port: &u16| call_back_listener(Family::V4, *port).is_ok();
            let wanted = (0..500).map(|_| NEXT.fetch_add(20, Relaxed)).find(is_free).unwrap();
            Self { directory: tempfile::tempdir().unwrap(), wanted }
        }

        fn ports(&self) -> CallBackPorts {
            CallBackPorts::with_records(UseRecords::at(&self.directory.path().join("ports")).unwrap())
                .unwrap()
        }

        fn reserve(&self) -> PortReservation {
            self.ports().reserve(Family::V4, self.wanted, LIFETIME).unwrap()
        }

        fn record(&self) -> std::path::PathBuf {
            let name = format!("ports/{}-{}.lock", self.wanted, network_namespace().unwrap());
            self.directory.path().join(name)
        }

        fn write_busy(&self, boot: &str, until: u64) {
            drop(self.ports());
            fs::write(self.record(), busy_text(boot, until)).unwrap();
            fs::set_permissions(self.record(), fs::Permissions::from_mode(0o600)).unwrap();
        }
    }

    #[test]
    fn an_answered_port_is_used_again() {
        let lab = PortLab::new();
        for _ in 0..3 {
            let reservation = lab.reserve();
            assert_eq!(reservation.port, lab.wanted);
            reservation.release();
        }
    }

    #[test]
    fn an_abandoned_port_is_not_used() {
        let lab = PortLab::new();
        let abandoned = lab.reserve();
        assert_eq!(abandoned.port, lab.wanted);
        drop(abandoned);
        let next = lab.reserve();
        assert_ne!(next.port, lab.wanted);
    }

    #[test]
    fn two_at_once_have_two_ports() {
        let lab = PortLab::new();
        let (first, second) = (lab.reserve(), lab.reserve());
        assert_ne!(first.port, second.port);
        assert_eq!(first.listener.local_addr().unwrap().port(), first.port);
        assert_eq!(second.listener.local_addr().unwrap().port(), second.port);
    }

    #[test]
    fn a_port_with_another_listener_is_not_used() {
        let lab = PortLab::new();
        let other = call_back_listener(Family::V4, lab.wanted).unwrap();
        assert_ne!(lab.reserve().port, lab.wanted);
        drop(other);
        assert_eq!(lab.reserve().port, lab.wanted);
    }

    #[test]
    fn quarantine_ends() {
        let lab = PortLab::new();
        let now = boot_seconds().unwrap();
        lab.write_busy(&read_boot_id(), now);
        assert_ne!(lab.reserve().port, lab.wanted);
        lab.write_busy(&read_boot_id(), now.saturating_sub(QUARANTINE.as_secs()));
        assert_eq!(lab.reserve().port, lab.wanted);
        lab.write_busy("another-boot", now + 1000);
        assert_eq!(lab.reserve().port, lab.wanted);
    }

    #[test]
    fn nonsense_in_a_file_counts_as_abandoned() {
        let lab = PortLab::new();
        lab.write_busy("x", 1);
        fs::write(lab.record(), "\u{1}nonsense").unwrap();
        assert_ne!(lab.reserve().port, lab.wanted);
        let text = fs::read_to_string(lab.record()).unwrap();
        assert!(text.starts_with(&format!("busy {} ", read_boot_id())), "heals by time: {text}");
    }

    #[test]
    fn links_and_open_directories_are_refused() {
        let lab = PortLab::new();
        let directory = lab.directory.path();
        symlink("/tmp", directory.join("link")).unwrap();
        assert!(UseRecords::at(&directory.join("link")).is_err());
        fs::create_dir(directory.join("open")).unwrap();
        fs::set_permissions(directory.join("open"), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(UseRecords::at(&directory.join("open")).is_err());
        let ports = lab.ports();
        let victim = directory.join("victim");
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, lab.record()).unwrap();
        assert!(ports.reserve(Family::V4, lab.wanted, LIFETIME).is_err());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    }

    #[test]
    fn another_namespace_has_ports_of_its_own() {
        let lab = PortLab::new();
        let mut elsewhere = lab.ports();
        elsewhere.namespace += 1;
        let reservation = elsewhere.reserve(Family::V4, lab.wanted, LIFETIME).unwrap();
        assert_eq!(reservation.port, lab.wanted);
        // The port is abandoned in the other namespace, and clean in this one.
        drop(reservation);
        assert_eq!(lab.reserve().port, lab.wanted);
    }
}
