// SPDX-License-Identifier: GPL-2.0-or-later
//! Which port a host calls back on, so that nobody takes the answer to somebody else's request.
//!
//! A call-back does not say which request it answers, and a busy host may call long after the asker gave up. So a
//! port on which a request was abandoned (time-out, SIGKILL) is left alone for some minutes, as TCP does with
//! TIME-WAIT, and another one is used. Each port of each network namespace has its [`Record`].

use std::io;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use fence_net::{Family, call_back_listener};

use crate::records::{Record, Records};

/// Ports that are tried one after the other, the wanted one first, before any free one is taken. A firewall that
/// lets these in lets every call-back in.
const NEIGHBOURS: u16 = 16;

/// The ports of this network namespace.
#[derive(Debug)]
pub(crate) struct Ports {
    records: Records,
    /// The namespace's inode: agents of containers that share /run don't share ports.
    namespace: u64,
}

/// A port that is listened on and that no abandoned request belongs to.
#[derive(Debug)]
pub(crate) struct Claim {
    /// Its listener.
    pub(crate) listener: TcpListener,
    /// Its number.
    pub(crate) port: u16,
    /// Its record; none when there is nowhere to keep one.
    record: Option<Record>,
}

impl Ports {
    /// The ports that this process can listen on.
    ///
    /// # Errors
    /// When there is nowhere to keep records.
    pub(crate) fn open() -> io::Result<Self> {
        Self::of(Records::open()?)
    }

    fn of(records: Records) -> io::Result<Self> {
        Ok(Self { records, namespace: network_namespace()? })
    }

    /// Listens on `wanted`, or on another port when that one is in use or was abandoned, and records the use. The
    /// record stands until [`Claim::release`], at the longest until its quarantine after `lifetime` from now is over.
    ///
    /// # Errors
    /// When there is no port, or the use cannot be recorded.
    pub(crate) fn claim(&self, family: Family, wanted: u16, lifetime: Duration) -> io::Result<Claim> {
        const ANY: [u16; 16] = [0; 16];
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for port in (wanted..=wanted.saturating_add(NEIGHBOURS - 1)).chain(ANY) {
            match self.claim_port(family, port, lifetime) {
                Ok(Some(claim)) => return Ok(claim),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// None when an agent uses the port or its quarantine lasts.
    fn claim_port(&self, family: Family, port: u16, lifetime: Duration) -> io::Result<Option<Claim>> {
        // A port that the kernel chooses is known only when it is listened on; others are looked up first, so that
        // nobody is called on a port in quarantine.
        let chosen = if port == 0 { Some(call_back_listener(family, 0)?) } else { None };
        let port = chosen.as_ref().map_or(Ok(port), |it| it.local_addr().map(|it| it.port()))?;
        let Some(mut record) = self.records.lock(&self.name(port))?.filter(|it| !it.is_abandoned()) else {
            return Ok(None);
        };
        let listener = chosen.map_or_else(|| call_back_listener(family, port), Ok)?;
        record.begin(lifetime)?;
        Ok(Some(Claim { listener, port, record: Some(record) }))
    }

    fn name(&self, port: u16) -> String {
        format!("{port}-{}", self.namespace)
    }
}

impl Claim {
    /// A port for a user who has nowhere to keep a record: one that the kernel chooses, because no other can be
    /// known to be clean.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn unrecorded(family: Family) -> io::Result<Self> {
        let listener = call_back_listener(family, 0)?;
        let port = listener.local_addr()?.port();
        Ok(Self { listener, port, record: None })
    }

    /// The request has its answer, or was never sent: the port is clean.
    pub(crate) fn release(self) {
        if let Some(record) = self.record {
            record.end();
        }
    }
}

/// The inode of the network namespace that this process is in.
pub(crate) fn network_namespace() -> io::Result<u64> {
    Ok(std::fs::metadata("/proc/self/ns/net")?.ino())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

    use super::*;
    use crate::records::{QUARANTINE, boot_id, busy, now};

    const LIFETIME: Duration = Duration::from_secs(30);

    struct Lab {
        directory: tempfile::TempDir,
        wanted: u16,
    }

    impl Lab {
        fn new() -> Self {
            // Ports of its own, below those that the kernel hands out.
            static NEXT: AtomicU16 = AtomicU16::new(9_000);
            let is_free = |port: &u16| call_back_listener(Family::V4, *port).is_ok();
            let wanted = (0..500).map(|_| NEXT.fetch_add(20, Relaxed)).find(is_free).unwrap();
            Self { directory: tempfile::tempdir().unwrap(), wanted }
        }

        fn ports(&self) -> Ports {
            Ports::of(Records::at(&self.directory.path().join("ports")).unwrap()).unwrap()
        }

        fn claim(&self) -> Claim {
            self.ports().claim(Family::V4, self.wanted, LIFETIME).unwrap()
        }

        fn record(&self) -> std::path::PathBuf {
            let name = format!("ports/{}-{}.lock", self.wanted, network_namespace().unwrap());
            self.directory.path().join(name)
        }

        fn busy(&self, boot: &str, until: u64) {
            drop(self.ports());
            fs::write(self.record(), busy(boot, until)).unwrap();
            fs::set_permissions(self.record(), fs::Permissions::from_mode(0o600)).unwrap();
        }
    }

    #[test]
    fn an_answered_port_is_used_again() {
        let lab = Lab::new();
        for _ in 0..3 {
            let claim = lab.claim();
            assert_eq!(claim.port, lab.wanted);
            claim.release();
        }
    }

    #[test]
    fn an_abandoned_port_is_not() {
        let lab = Lab::new();
        let abandoned = lab.claim();
        assert_eq!(abandoned.port, lab.wanted);
        drop(abandoned);
        let next = lab.claim();
        assert_ne!(next.port, lab.wanted);
    }

    #[test]
    fn two_at_once_have_two_ports() {
        let lab = Lab::new();
        let (first, second) = (lab.claim(), lab.claim());
        assert_ne!(first.port, second.port);
        assert_eq!(first.listener.local_addr().unwrap().port(), first.port);
        assert_eq!(second.listener.local_addr().unwrap().port(), second.port);
    }

    #[test]
    fn a_port_that_somebody_else_listens_on_is_left() {
        let lab = Lab::new();
        let other = call_back_listener(Family::V4, lab.wanted).unwrap();
        assert_ne!(lab.claim().port, lab.wanted);
        drop(other);
        assert_eq!(lab.claim().port, lab.wanted);
    }

    #[test]
    fn quarantine_ends() {
        let lab = Lab::new();
        let now = now().unwrap();
        lab.busy(&boot_id(), now);
        assert_ne!(lab.claim().port, lab.wanted);
        lab.busy(&boot_id(), now.saturating_sub(QUARANTINE.as_secs()));
        assert_eq!(lab.claim().port, lab.wanted);
        lab.busy("another-boot", now + 1000);
        assert_eq!(lab.claim().port, lab.wanted);
    }

    #[test]
    fn nonsense_in_a_file_counts_as_abandoned() {
        let lab = Lab::new();
        lab.busy("x", 1);
        fs::write(lab.record(), "\u{1}nonsense").unwrap();
        assert_ne!(lab.claim().port, lab.wanted);
        let text = fs::read_to_string(lab.record()).unwrap();
        assert!(text.starts_with(&format!("busy {} ", boot_id())), "heals by time: {text}");
    }

    #[test]
    fn links_and_open_directories_are_refused() {
        let lab = Lab::new();
        let directory = lab.directory.path();
        symlink("/tmp", directory.join("link")).unwrap();
        assert!(Records::at(&directory.join("link")).is_err());
        fs::create_dir(directory.join("open")).unwrap();
        fs::set_permissions(directory.join("open"), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Records::at(&directory.join("open")).is_err());
        let ports = lab.ports();
        let victim = directory.join("victim");
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, lab.record()).unwrap();
        assert!(ports.claim(Family::V4, lab.wanted, LIFETIME).is_err());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    }

    #[test]
    fn another_namespace_has_ports_of_its_own() {
        let lab = Lab::new();
        let mut elsewhere = lab.ports();
        elsewhere.namespace += 1;
        let claim = elsewhere.claim(Family::V4, lab.wanted, LIFETIME).unwrap();
        assert_eq!(claim.port, lab.wanted);
        // Abandoned there: clean here.
        drop(claim);
        assert_eq!(lab.claim().port, lab.wanted);
    }
}
