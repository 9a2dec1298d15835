// SPDX-License-Identifier: GPL-2.0-or-later
//! Challenges of call-backs that name the request which they belong to.
//!
//! A classic call-back does not name its request, and all agents of a guest wait on one port. So both sides
//! hide a name in the 64 bytes of their challenge. For a peer that does not know of it these are random
//! bytes.
//!
//! ```text
//!  0  16  random
//! 16  16  HMAC(key, "fence_virt named\0" ‖ role ‖ random)           it is a name
//! 32  32  HMAC(key, "fence_virt run\0" ‖ role ‖ random ‖ run)       of this run of a client
//! ```
//!
//! Both are HMACs with SHA-256, the first one cut. The role is one byte, 1 for the client's challenge, 2 for
//! the host's. A run of a client is known by six bytes that are equal in all its packets: see [`ClientRun`].
//!
//! A name proves nothing of its peer: the mutual challenge does.

use crate::key::{Key, SealedHash};
use crate::layout::{CHALLENGE_LEN, Challenge};
use crate::request::begins_request;

const NAMED_LABEL: &[u8] = b"fence_virt named\0";
const RUN_LABEL: &[u8] = b"fence_virt run\0";
const RANDOM_LEN: usize = 16;
const MARK_END: usize = 32;

/// Run of a client: one process that asks for one thing. Equal in all packets of the run, whatever their
/// sequence number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ClientRun([u8; 6]);

impl ClientRun {
    /// Makes a run of random bytes.
    #[must_use]
    pub fn new(random: [u8; 6]) -> Self {
        Self(random)
    }

    /// Returns the run of a packet with this sequence number and these random bytes.
    #[must_use]
    pub fn of(sequence: u32, nonce: [u8; 6]) -> Self {
        let [_, s1, s2, s3] = sequence.to_le_bytes();
        Self([s1, s2, s3, nonce[0], nonce[1], nonce[2]])
    }

    /// Returns the sequence number of the run's attempt with this number.
    #[must_use]
    pub fn sequence(self, attempt: u8) -> u32 {
        u32::from_le_bytes([attempt, self.0[0], self.0[1], self.0[2]])
    }

    /// Returns the random bytes of a packet of this run. `rest` makes the packet unlike any other.
    #[must_use]
    pub fn nonce(self, rest: [u8; 3]) -> [u8; 6] {
        [self.0[3], self.0[4], self.0[5], rest[0], rest[1], rest[2]]
    }

    /// Returns the bytes.
    #[must_use]
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

/// Side that sends a challenge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum CallRole {
    /// The client that is called back.
    Client = 1,
    /// The host that calls back.
    Host = 2,
}

/// Name that a challenge bears.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallName {
    /// The run that was looked for.
    Own,
    /// Another run of a client.
    Other,
    /// None: its sender knows of no names.
    Unnamed,
}

/// Draws a challenge that names a run. `fill` writes random bytes of the system.
///
/// # Errors
/// Errors of `fill`.
pub fn draw_named_challenge<E>(
    key: &Key,
    role: CallRole,
    run: ClientRun,
    mut fill: impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<Challenge, E> {
    loop {
        let mut challenge = [0; CHALLENGE_LEN];
        fill(&mut challenge[..RANDOM_LEN])?;
        let (mark, name) = tags(key, role, run, &challenge[..RANDOM_LEN]);
        challenge[RANDOM_LEN..MARK_END].copy_from_slice(&mark);
        challenge[MARK_END..].copy_from_slice(&name);
        // A careful peer would refuse it.
        if !begins_request(&challenge) {
            return Ok(challenge);
        }
    }
}

/// Returns the name that a peer's challenge bears.
#[must_use]
pub fn call_name(key: &Key, role: CallRole, run: ClientRun, challenge: &Challenge) -> CallName {
    let (mark, name) = tags(key, role, run, &challenge[..RANDOM_LEN]);
    if !constant_time_eq(&mark, &challenge[RANDOM_LEN..MARK_END]) {
        return CallName::Unnamed;
    }
    if constant_time_eq(&name, &challenge[MARK_END..]) { CallName::Own } else { CallName::Other }
}

/// Returns mark and name for these random bytes.
fn tags(key: &Key, role: CallRole, run: ClientRun, random: &[u8]) -> ([u8; 16], [u8; 32]) {
    let role = [role as u8];
    let hash = SealedHash::HmacSha256;
    let mark = key.mac(hash, NAMED_LABEL).with(&role).with(random).finish();
    let name = key.mac(hash, RUN_LABEL).with(&role).with(random).with(&run.0).finish();
    (core::array::from_fn(|i| mark[i]), core::array::from_fn(|i| name[i]))
}

fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    use subtle::ConstantTimeEq as _;
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drawn(key: &Key, role: CallRole, run: ClientRun, seed: u64) -> Challenge {
        let mut state = seed;
        draw_named_challenge(key, role, run, |bytes| {
            for byte in bytes {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = state.to_be_bytes()[0];
            }
            Ok::<_, ()>(())
        })
        .unwrap()
    }

    proptest! {
        /// A run keeps its six bytes through sequence number and nonce, whatever the attempt.
        #[test]
        fn a_packet_tells_its_run(bytes: [u8; 6], attempt: u8, rest: [u8; 3]) {
            let run = ClientRun::new(bytes);
            prop_assert_eq!(ClientRun::of(run.sequence(attempt), run.nonce(rest)), run);
        }

        /// A name is read by who holds the key, for its run and its role alone.
        #[test]
        fn a_name_is_of_one_run(a: [u8; 6], b: [u8; 6], seed: u64, host: bool, random: [[u8; 32]; 2]) {
            let key = Key::new(b"a key of the tests").unwrap();
            let roles = [CallRole::Client, CallRole::Host];
            let (mine, theirs) = (roles[usize::from(host)], roles[usize::from(!host)]);
            let (a, b) = (ClientRun::new(a), ClientRun::new(b));
            let challenge = drawn(&key, mine, a, seed);
            prop_assert_eq!(call_name(&key, mine, a, &challenge), CallName::Own);
            let other = if a == b { CallName::Own } else { CallName::Other };
            prop_assert_eq!(call_name(&key, mine, b, &challenge), other);
            prop_assert_eq!(call_name(&key, theirs, a, &challenge), CallName::Unnamed);
            let stranger = Key::new(b"another key").unwrap();
            prop_assert_eq!(call_name(&stranger, mine, a, &challenge), CallName::Unnamed);
            let mut bare = [0; CHALLENGE_LEN];
            bare[..32].copy_from_slice(&random[0]);
            bare[32..].copy_from_slice(&random[1]);
            prop_assert_eq!(call_name(&key, mine, a, &bare), CallName::Unnamed);
        }
    }
}
