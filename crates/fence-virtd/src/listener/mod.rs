// SPDX-License-Identifier: GPL-2.0-or-later
//! The ways in. A listener owns its sockets, speaks its transport, and knows nothing of domains.

use std::path::PathBuf;
use std::sync::Arc;

use fence_config::{HashName, PacketHash};
use fence_wire::HashType;
use tracing::warn;

use crate::conversation::Auth;
use crate::keys::Keys;

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
    Key(#[from] fence_cli::key_file::KeyFileError),
    #[error("{0}")]
    Socket(String),
    #[cfg(feature = "libvirt")]
    #[error("{0}; -w waits for it")]
    Hypervisor(String),
    #[cfg(not(feature = "libvirt"))]
    #[error("is not part of this build: it needs libvirt")]
    Missing,
    #[error("hash = \"{0}\" asks for the sealed protocol, which this version does not speak")]
    Sealed(PacketHash),
}

/// The weakest packet hash that is accepted, and how streams are authenticated.
fn proof(hash: PacketHash, auth: HashName, key_files: &[PathBuf]) -> Result<(HashType, Auth), StartError> {
    let (minimum, hash) = (minimum(hash)?, challenge(auth));
    let keys = Arc::new(keys(key_files, minimum, hash)?);
    Ok((minimum, Auth { hash, keys }))
}

fn warn_unproved(minimum: HashType, auth: HashType) {
    if minimum == HashType::None || auth == HashType::None {
        warn!(hash = %minimum, %auth, "this listener asks for no proof of the key: whoever reaches it may fence");
    }
}

/// The packet hash of the configuration.
fn minimum(hash: PacketHash) -> Result<HashType, StartError> {
    Ok(match hash {
        PacketHash::None => HashType::None,
        PacketHash::Sha1 => HashType::Sha1,
        PacketHash::Sha256 => HashType::Sha256,
        PacketHash::Sha512 => HashType::Sha512,
        PacketHash::HmacSha256 | PacketHash::HmacSha512 => return Err(StartError::Sealed(hash)),
    })
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
fn keys(files: &[PathBuf], hash: HashType, auth: HashType) -> Result<Keys, StartError> {
    if hash == HashType::None && auth == HashType::None {
        return Ok(Keys::load(files).unwrap_or_default());
    }
    Ok(Keys::load(files)?)
}
