// SPDX-License-Identifier: GPL-2.0-or-later
//! Random bytes of the kernel, for challenges, nonces, sequence numbers and the questions that settle a line.
//!
//! Owns nothing. Runs on the agent's only thread. Must never fall back to another source: without random
//! bytes no request is sent.

use fence_wire::{CallRole, Challenge, ClientRun, Key, draw_challenge, draw_named_challenge};
use rand::TryRng;
use rand::rngs::{SysError, SysRng};

/// Returns fresh random bytes.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], SysError> {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes)?;
    Ok(bytes)
}

/// Returns a fresh challenge.
pub(crate) fn new_challenge() -> Result<Challenge, SysError> {
    draw_challenge(|bytes| SysRng.try_fill_bytes(bytes))
}

/// Returns a fresh challenge that tells a host which request this agent waits for.
pub(crate) fn new_named_challenge(key: &Key, run: ClientRun) -> Result<Challenge, SysError> {
    draw_named_challenge(key, CallRole::Client, run, |bytes| SysRng.try_fill_bytes(bytes))
}
