// SPDX-License-Identifier: GPL-2.0-or-later
//! Ports for the call-back, so that no agent takes the answer to another agent's request.
//!
//! Firewalls let one port in, so all agents of a guest use it, one after the other: who listens has the
//! turn. An agent that was called back passes the turn on while it waits for its answer. A call-back may
//! come for an agent that has gone, or has passed its turn on. Our hosts name the request in their
//! challenge. For others the [`PortLedger`] tells how many call-backs may come that are not for this agent.
//!
//! Where nothing is authenticated there is no challenge, and a host acts as soon as it is connected. There an
//! agent uses only a port whose ledger has no other runs.
//!
//! A port that another program holds, or whose turn does not come, has 15 neighbours: one of them is tried
//! as well. Owns records and listeners. Runs on the agent's only thread. Must never send a datagram that is
//! not in the ledger, unless there is nowhere to keep one, and never listen without the turn.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::thread::sleep;
use std::time::Duration;

use fence_net::{Family, call_back_listener};
use fence_wire::ClientRun;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl};
use nix::libc;

use crate::deadline::Deadline;
use crate::ledger::{LEDGER_MAX, PortLedger, SentDatagrams};
use crate::records::{UseRecords, boot_seconds, read_boot_id};

/// Number of ports that an agent may use, the wanted one first. A firewall that lets these in lets every
/// call-back in.
pub(crate) const PORTS: u16 = 16;
/// Time for which the ledger is locked at most.
const LEDGER_WAIT: Duration = Duration::from_secs(1);
/// Pause between two tries for a lock.
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// Sees to it that a ledger can be written to its file.
fn reserve(file: &File) -> io::Result<()> {
    let length = LEDGER_MAX.try_into().unwrap_or(i64::MAX);
    match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length) {
        // This file system has no such call.
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Ports of this network namespace that an agent may use.
#[derive(Debug)]
pub(crate) struct CallBackPorts {
    family: Family,
    boot: String,
    /// The wanted port first.
    ports: Vec<PortRecord>,
}

/// Port and its file, if there is one.
#[derive(Debug)]
struct PortRecord {
    port: u16,
    file: Option<File>,
}

/// Result of a try to listen on a port.
#[derive(Debug)]
pub(crate) enum PortTry {
    /// This agent listens, and has the turn.
    Open(OpenPort),
    /// Another agent has the turn: it passes it on.
    TakenByAgent,
    /// Another program listens there.
    TakenByProgram,
}

/// Port on which this agent listens, and has the turn.
#[derive(Debug)]
pub(crate) struct OpenPort {
    index: usize,
    /// Number of the port.
    pub(crate) port: u16,
    /// Listener.
    pub(crate) listener: TcpListener,
}

/// Bytes of the file that are locked, each for a purpose. They need not exist.
#[derive(Clone, Copy, Debug)]
#[repr(i64)]
enum LockedByte {
    /// The ledger is read or written.
    Ledger = 1 << 40,
    /// An agent listens.
    Turn,
    /// An agent waits for the turn. Shared by all that wait.
    Queue,
}

impl CallBackPorts {
    /// Opens the records of `wanted` and of its neighbours. Nothing else has to be opened later. Returns also
    /// the reason why there are no records, if there are none.
    pub(crate) fn open(family: Family, wanted: u16) -> (Self, Option<io::Error>) {
        let records = UseRecords::open().and_then(|records| Ok((records, network_namespace()?)));
        let (records, mut error) = match records {
            Ok(records) => (Some(records), None),
            Err(error) => (None, Some(error)),
        };
        let ports = (wanted..=wanted.saturating_add(PORTS - 1))
            .map(|port| {
                let opened = records.as_ref().map(|(it, namespace)| it.file(&format!("{port}-{namespace}")));
                // On a full disk the ledger could not be written later.
                let opened = opened.map(|it| it.and_then(|file| reserve(&file).map(|()| file)));
                let file = match opened {
                    Some(Ok(file)) => Some(file),
                    Some(Err(failure)) => {
                        error = Some(failure);
                        None
                    }
                    None => None,
                };
                PortRecord { port, file }
            })
            .collect();
        (Self { family, boot: read_boot_id(), ports }, error)
    }

    /// Returns the first and the last port.
    pub(crate) fn range(&self) -> (u16, u16) {
        (self.ports.first().map_or(0, |it| it.port), self.ports.last().map_or(0, |it| it.port))
    }

    /// Takes the turn at the wanted port and listens there.
    ///
    /// # Errors
    /// Error of the kernel.
    pub(crate) fn open_wanted(&self) -> io::Result<PortTry> {
        self.open_port(0)
    }

    /// Takes the turn at a neighbour of the wanted port; none while others have all of them.
    ///
    /// # Errors
    /// Error of the kernel.
    pub(crate) fn open_neighbour(&self) -> io::Result<Option<OpenPort>> {
        for index in 1..self.ports.len() {
            if let PortTry::Open(open) = self.open_port(index)? {
                return Ok(Some(open));
            }
        }
        Ok(None)
    }

    /// Takes the turn at a port to which no call-back for another run can come; none while there is none.
    ///
    /// # Errors
    /// Error of the kernel.
    pub(crate) fn open_clean(&self, run: ClientRun) -> io::Result<Option<OpenPort>> {
        for index in 0..self.ports.len() {
            // Looked up first: a host that calls back must not find a listener there.
            let read = self.with_ledger(index, |ledger| (ledger.has_open_calls(run), false));
            if self.ports[index].file.is_some() && read.ok().flatten() != Some(false) {
                continue;
            }
            if let PortTry::Open(open) = self.open_port(index)? {
                return Ok(Some(open));
            }
        }
        Ok(None)
    }

    fn open_port(&self, index: usize) -> io::Result<PortTry> {
        let Some(PortRecord { port, file }) = self.ports.get(index) else {
            return Ok(PortTry::TakenByProgram);
        };
        if let Some(file) = file
            && !try_lock(file, LockedByte::Turn, libc::F_WRLCK)?
        {
            return Ok(PortTry::TakenByAgent);
        }
        match call_back_listener(self.family, *port) {
            Ok(listener) => {
                listener.set_nonblocking(true)?;
                Ok(PortTry::Open(OpenPort { index, port: *port, listener }))
            }
            Err(error) => {
                self.unlock(index, LockedByte::Turn);
                let is_taken = error.kind() == io::ErrorKind::AddrInUse;
                if is_taken { Ok(PortTry::TakenByProgram) } else { Err(error) }
            }
        }
    }

    /// Ends listening and passes the turn on.
    pub(crate) fn close(&self, open: OpenPort) {
        let OpenPort { index, listener, .. } = open;
        drop(listener);
        self.unlock(index, LockedByte::Turn);
    }

    /// Says whether this agent waits for the turn at the wanted port.
    pub(crate) fn queue(&self, waits: bool) {
        match (waits, self.ports.first().and_then(|it| it.file.as_ref())) {
            // A holder that does not see us passes the turn on later, no more.
            (true, Some(file)) => drop(try_lock(file, LockedByte::Queue, libc::F_RDLCK)),
            (false, Some(_)) => self.unlock(0, LockedByte::Queue),
            (_, None) => {}
        }
    }

    /// Returns whether other agents wait for the turn at this port.
    pub(crate) fn is_wanted(&self, open: &OpenPort) -> bool {
        let Some(file) = self.ports.get(open.index).and_then(|it| it.file.as_ref()) else { return false };
        if open.index != 0 {
            return false;
        }
        match try_lock(file, LockedByte::Queue, libc::F_WRLCK) {
            Ok(true) => {
                self.unlock(open.index, LockedByte::Queue);
                false
            }
            Ok(false) => true,
            Err(_) => false,
        }
    }

    /// Returns the ledger of an open port. One that cannot be read knows nothing.
    pub(crate) fn ledger(&self, open: &OpenPort) -> PortLedger {
        let read = self.with_ledger(open.index, |ledger| (ledger.clone(), false));
        let now = boot_seconds().unwrap_or_default();
        read.ok().flatten().unwrap_or_else(|| PortLedger::read(b"", &self.boot, now))
    }

    /// Returns the runs that wait at the wanted port, with what they have sent; none without a ledger.
    pub(crate) fn wanted_runs(&self) -> Option<Vec<(ClientRun, u32)>> {
        self.with_ledger(0, |ledger| (ledger.waiting(), false)).ok().flatten()
    }

    /// Enters how many datagrams of this run name the port, before they are sent. Does nothing where there is
    /// nowhere to keep a ledger.
    ///
    /// # Errors
    /// When the ledger cannot be written: then nothing must be sent.
    pub(crate) fn enter(
        &self,
        open: &OpenPort,
        run: ClientRun,
        end: Deadline,
        sent: &SentDatagrams,
    ) -> io::Result<()> {
        let left = end.remaining().unwrap_or_default().as_secs() + 1;
        let until = boot_seconds()?.saturating_add(left);
        self.with_ledger(open.index, |ledger| {
            ledger.enter(run, until, sent);
            ((), true)
        })?;
        Ok(())
    }

    /// Writes in the ledger of a port what this agent has learnt. `note` gets the second of the boot's clock.
    pub(crate) fn note(&self, port: u16, note: impl FnOnce(&mut PortLedger, u64)) {
        let Some(index) = self.ports.iter().position(|it| it.port == port) else { return };
        // After an error others hang up on more call-backs for a few minutes, no more.
        let _ = boot_seconds().and_then(|now| {
            self.with_ledger(index, |ledger| {
                note(ledger, now);
                ((), true)
            })
        });
    }

    /// Removes a run that has sent nothing that can be mistaken from all ledgers.
    pub(crate) fn forget(&self, run: ClientRun) {
        for index in 0..self.ports.len() {
            // After an error others wait in vain for a few minutes, no more.
            let _ = self.with_ledger(index, |ledger| {
                let before = ledger.clone();
                ledger.remove(run);
                ((), before != *ledger)
            });
        }
    }

    /// Reads the ledger of a port, and writes it if `work` says so; none where there is none.
    fn with_ledger<T>(
        &self,
        index: usize,
        work: impl FnOnce(&mut PortLedger) -> (T, bool),
    ) -> io::Result<Option<T>> {
        let Some(mut file) = self.ports.get(index).and_then(|it| it.file.as_ref()) else { return Ok(None) };
        let patience = Deadline::after(LEDGER_WAIT);
        while !try_lock(file, LockedByte::Ledger, libc::F_WRLCK)? {
            patience.remaining_or_timed_out()?;
            sleep(LOCK_PAUSE);
        }
        let done = (|| {
            let mut text = Vec::new();
            file.rewind()?;
            file.take(LEDGER_MAX).read_to_end(&mut text)?;
            let mut ledger = PortLedger::read(&text, &self.boot, boot_seconds()?);
            let (result, is_changed) = work(&mut ledger);
            if is_changed {
                // One write, and its end says that it is whole.
                file.rewind()?;
                file.write_all(ledger.to_text(&self.boot).as_bytes())?;
            }
            Ok(Some(result))
        })();
        self.unlock(index, LockedByte::Ledger);
        done
    }

    fn unlock(&self, index: usize, byte: LockedByte) {
        if let Some(file) = self.ports.get(index).and_then(|it| it.file.as_ref()) {
            let _ = try_lock(file, byte, libc::F_UNLCK);
        }
    }
}

/// Takes or gives back the lock of a byte; false while another agent has it. The lock ends with the process.
fn try_lock(file: &File, byte: LockedByte, kind: libc::c_int) -> io::Result<bool> {
    let lock = libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: 0,
        l_start: byte as libc::off_t,
        l_len: 1,
        l_pid: 0,
    };
    match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Returns the inode of this process's network namespace.
pub(crate) fn network_namespace() -> io::Result<u64> {
    Ok(std::fs::metadata("/proc/self/ns/net")?.ino())
}
