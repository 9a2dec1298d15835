// SPDX-License-Identifier: GPL-2.0-or-later
//! The ways in. A listener owns its sockets, speaks its transport, and knows nothing of domains.

use std::path::PathBuf;
use std::sync::Arc;

use fence_cli::key_file::KeyFileError;
use fence_config::{Group, HashName, PacketHash};
use fence_wire::HashType;
use tracing::{info, warn};

use crate::conversation::Auth;
use crate::keys::{Keys, KeysError};

pub(crate) mod multicast;
mod places;
#[cfg(feature = "libvirt")]
pub(crate) mod serial;
mod stream;
pub(crate) mod tcp;
pub(crate) mod vsock;

/// Why a listener can't start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Key(#[from] KeysError),
    #[error("{0}")]
    Socket(String),
    #[cfg(feature = "libvirt")]
    #[error("{0}; -w waits for it")]
    Hypervisor(String),
    #[cfg(not(feature = "libvirt"))]
    #[error("is not part of this build: it needs libvirt")]
    Missing,
}

/// The key files of a listener's block.
#[derive(Clone, Copy)]
struct KeyFiles<'a> {
    files: &'a [PathBuf],
    /// They stand in the block; otherwise it is the default.
    named: bool,
}

impl<'a> KeyFiles<'a> {
    fn new(files: &'a [PathBuf], named: bool) -> Self {
        Self { files, named }
    }
}

/// The weakest packet hash that is accepted, and how the streams of classic packets are authenticated.
fn proof(
    hash: PacketHash,
    auth: HashName,
    files: KeyFiles<'_>,
    groups: &[Group],
) -> Result<(HashType, Auth), StartError> {
    let (minimum, hash) = (minimum(hash), challenge(auth));
    let keys = keys(files, groups, minimum, hash)?;
    // A packet without a hash tells no key. Where the challenge needs one, and the listener has none that it could
    // take for that, such packets can't be served.
    let minimum =
        if hash != HashType::None && !keys.has_own() { minimum.max(HashType::Sha1) } else { minimum };
    Ok((minimum, Auth { hash, keys: Arc::new(keys) }))
}

fn warn_unproved(minimum: HashType, auth: HashType) {
    // Sealed streams are proved whatever `auth` says.
    if minimum == HashType::None || (auth == HashType::None && minimum.sealed().is_none()) {
        warn!(hash = %minimum, %auth, "this listener asks for no proof of the key: whoever reaches it may fence");
    }
}

/// The packet hash of the configuration.
fn minimum(hash: PacketHash) -> HashType {
    match hash {
        PacketHash::None => HashType::None,
        PacketHash::Sha1 => HashType::Sha1,
        PacketHash::Sha256 => HashType::Sha256,
        PacketHash::Sha512 => HashType::Sha512,
        PacketHash::HmacSha256 => HashType::HmacSha256,
        PacketHash::HmacSha512 => HashType::HmacSha512,
    }
}

/// The challenge hash of the configuration.
fn challenge(auth: HashName) -> HashType {
    match auth {
        HashName::None => HashType::None,
        HashName::Sha1 => HashType::Sha1,
        HashName::Sha256 => HashType::Sha256,
        HashName::Sha512 => HashType::Sha512,
    }
}

/// Loads the keys. Only a listener that was told by name to use neither hash nor challenge does without.
fn keys(files: KeyFiles<'_>, groups: &[Group], hash: HashType, auth: HashType) -> Result<Keys, KeysError> {
    let unproved = hash == HashType::None && auth == HashType::None;
    let load = |files| {
        let (keys, notices) = Keys::load(files, groups)?;
        for it in notices {
            warn!("{it}");
        }
        Ok(keys)
    };
    match load(files.files) {
        Err(KeysError::Listener(_)) if unproved => load(&[]),
        // Whoever has the key of no group could use nothing here.
        Err(KeysError::Listener(KeyFileError::Missing { .. })) if !files.named && have_keys(groups) => {
            let keys = load(&[])?;
            info!(file = %files.files[0].display(), "no such key file, and every group has keys of its own: only these count");
            Ok(keys)
        }
        loaded => loaded,
    }
}

fn have_keys(groups: &[Group]) -> bool {
    !groups.is_empty() && groups.iter().all(|it| !it.key_files.is_empty())
}
