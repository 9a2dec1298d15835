// SPDX-License-Identifier: GPL-2.0-or-later
//! The key pair by which the other hosts know this one.
//!
//! Owns the file `host.key` of the state directory: the private key in hex, readable by its owner alone, and
//! locked while a daemon uses it. Runs on the caller's thread, at the start. Must never show the private key,
//! and must never replace a key that can be read: the other hosts would wait for the old one for ever.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use fence_cli::shown;
use fence_wire::{HostId, HostNonce, PairKey};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

const FILE: &str = "host.key";
const MACHINE_ID: &str = "/etc/machine-id";
/// Bytes of the file: 64 hex digits and a line end.
const LENGTH: u64 = 65;

/// The key pair of this host.
pub(super) struct Identity {
    secret: StaticSecret,
    public: [u8; 32],
    id: HostId,
    /// The pair was there at the start.
    pub(super) is_old: bool,
    /// The file, locked; none for a pair that ends with the process.
    _held: Option<Flock<File>>,
}

/// Reason why the key pair can't be kept in the state directory.
#[derive(Debug, thiserror::Error)]
pub(super) enum IdentityError {
    #[error("{path}: {source}")]
    Io { path: String, source: io::Error },
    #[error("another fence_virtd uses {0}; give this one a state_dir of its own")]
    Held(String),
    #[error("{0} is damaged; remove it, and forget this host on the others: fence_virtd --forget HOST")]
    Damaged(String),
    #[error("no random bytes: {0}")]
    Random(#[from] rand::rngs::SysError),
}

impl Identity {
    /// Makes a pair that is kept nowhere.
    #[cfg(test)]
    pub(super) fn in_memory() -> Result<Self, rand::rngs::SysError> {
        Ok(Self::of(&drawn()?, None))
    }

    /// Returns the pair of a host without a state directory: the same after a restart, or the others would
    /// wait for the one before for ever. It is made of what no guest knows: the machine's id. Two daemons of
    /// one machine that look at the same hypervisors may have the same.
    pub(super) fn of_machine(hypervisors: &[String]) -> Result<Self, rand::rngs::SysError> {
        let Ok(machine) = std::fs::read(MACHINE_ID).map(Zeroizing::new) else {
            return Ok(Self::of(&drawn()?, None));
        };
        let mut sum = Sha256::new_with_prefix(b"fence_virt host without a state directory\0");
        sum.update(&*machine);
        for uri in hypervisors {
            sum.update(uri.as_bytes());
            sum.update([0]);
        }
        Ok(Self::of(&Zeroizing::new(sum.finalize().into()), None))
    }

    /// Reads the pair of the state directory, or makes it.
    pub(super) fn open(directory: &Path) -> Result<Self, IdentityError> {
        let path = directory.join(FILE);
        let failed = |source| IdentityError::Io { path: shown(&path), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| IdentityError::Held(shown(&path)))?;
        let mut text = Zeroizing::new(String::new());
        (&*file).take(LENGTH + 1).read_to_string(&mut text).map_err(failed)?;
        if text.is_empty() {
            let secret = drawn()?;
            file.write_all(written(&secret).as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
            // Without this the file itself could be gone after a crash, and others would know its key.
            File::open(directory).and_then(|it| it.sync_all()).map_err(failed)?;
            return Ok(Self::of(&secret, Some(file)));
        }
        let secret = read(&text).ok_or_else(|| IdentityError::Damaged(shown(&path)))?;
        Ok(Self { is_old: true, ..Self::of(&secret, Some(file)) })
    }

    /// Reads the pair of the state directory beside a daemon that uses it; none if there is none yet. The
    /// caller must not speak for the host: only the daemon does.
    pub(super) fn borrow(directory: &Path) -> Result<Option<Self>, IdentityError> {
        let path = directory.join(FILE);
        let failed = |source| IdentityError::Io { path: shown(&path), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut text = Zeroizing::new(String::new());
        file.take(LENGTH + 1).read_to_string(&mut text).map_err(failed)?;
        if text.is_empty() {
            return Ok(None);
        }
        let secret = read(&text).ok_or_else(|| IdentityError::Damaged(shown(&path)))?;
        Ok(Some(Self::of(&secret, None)))
    }

    fn of(secret: &Zeroizing<[u8; 32]>, held: Option<Flock<File>>) -> Self {
        let secret = StaticSecret::from(**secret);
        let public = PublicKey::from(&secret).to_bytes();
        Self { secret, public, id: HostId::of(&public), is_old: false, _held: held }
    }

    pub(super) fn id(&self) -> HostId {
        self.id
    }

    pub(super) fn public(&self) -> [u8; 32] {
        self.public
    }

    /// Returns the key of this host and of the one with this public key. None for a public key that was made
    /// so that everybody knows the secret.
    pub(super) fn pair_key(&self, public: &[u8; 32]) -> Option<PairKey> {
        let shared = self.secret.diffie_hellman(&PublicKey::from(*public));
        shared.was_contributory().then(|| PairKey::of(shared.as_bytes()))
    }
}

/// Returns fresh random bytes for a question.
pub(super) fn nonce() -> Result<HostNonce, rand::rngs::SysError> {
    let mut nonce = HostNonce::default();
    rand::TryRng::try_fill_bytes(&mut rand::rngs::SysRng, &mut nonce)?;
    Ok(nonce)
}

fn drawn() -> Result<Zeroizing<[u8; 32]>, rand::rngs::SysError> {
    let mut secret = Zeroizing::new([0; 32]);
    rand::TryRng::try_fill_bytes(&mut rand::rngs::SysRng, &mut *secret)?;
    Ok(secret)
}

fn written(secret: &[u8; 32]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(65));
    for byte in secret {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or_default());
        }
    }
    text.push('\n');
    text
}

fn read(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let digits = text.strip_suffix('\n')?.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut secret = Zeroizing::new([0; 32]);
    for (byte, pair) in secret.iter_mut().zip(digits.chunks(2)) {
        let digit = |it: u8| char::from(it).to_digit(16).and_then(|it| u8::try_from(it).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(secret)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_pair_outlives_a_restart_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::open(dir.path()).unwrap();
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(Identity::open(dir.path()), Err(IdentityError::Held(_))));
        let (id, public) = (first.id(), first.public());
        drop(first);
        let again = Identity::open(dir.path()).unwrap();
        assert_eq!((again.id(), again.public()), (id, public));
        assert_ne!(Identity::in_memory().unwrap().id(), id);
    }

    #[test]
    fn a_damaged_file_is_never_replaced() {
        for content in ["x", "00", &"0".repeat(65), &format!("{}\n", "g".repeat(64)), &"0\n".repeat(40)] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(FILE), content).unwrap();
            assert!(matches!(Identity::open(dir.path()), Err(IdentityError::Damaged(_))), "{content}");
            assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), content);
        }
    }

    #[test]
    fn two_hosts_have_one_key_and_a_third_has_another() {
        use fence_wire::{HostAnswer, HostBody, HostMessage, HostSight, HostsKey};
        let [a, b, c] = [(); 3].map(|()| Identity::in_memory().unwrap());
        let hosts = HostsKey::without_a_key();
        let answer = HostAnswer {
            uuid: [1; 16],
            sight: HostSight::Off,
            age_ms: None,
            reason: String::new(),
            namesakes: Vec::new(),
            memory: None,
        };
        let message = HostMessage {
            sender: a.id(),
            recipient: Some(b.id()),
            nonce: [1; 8],
            body: HostBody::Answer(answer),
        };
        let of_c = c.pair_key(&b.public()).unwrap();
        let bytes = message.encode_for(&hosts, &a.pair_key(&b.public()).unwrap());
        let received = HostMessage::decode(&bytes, &[hosts]).unwrap();
        assert!(received.proved_answer(&b.pair_key(&a.public()).unwrap()).is_some());
        assert!(received.proved_answer(&b.pair_key(&c.public()).unwrap()).is_none());
        assert!(received.proved_answer(&of_c).is_none());
        // Points whose secret everybody knows.
        assert!(a.pair_key(&[0; 32]).is_none());
    }
}
