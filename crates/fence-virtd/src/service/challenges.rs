// SPDX-License-Identifier: GPL-2.0-or-later
//! The challenges that this daemon has sent and that were not answered yet.
//!
//! A peer that sends one of them back wants this daemon to answer it in its place.

use std::collections::HashSet;
use std::sync::Mutex;

use fence_wire::{CallRole, Challenge, ClientRun, Key, draw_challenge, draw_named_challenge};
use rand::TryRng as _;
use rand::rngs::{SysError, SysRng};

use crate::util::locks::lock;

/// All outstanding challenges of all listeners.
#[derive(Default)]
pub(crate) struct Challenges(Mutex<HashSet<Challenge>>);

/// A challenge that counts as outstanding as long as this value lives.
pub(crate) struct OutstandingChallenge<'a> {
    challenges: &'a Challenges,
    pub(crate) challenge: Challenge,
}

impl Challenges {
    /// Draws a challenge that is about to be sent.
    pub(crate) fn draw(&self) -> Result<OutstandingChallenge<'_>, SysError> {
        Ok(self.keep(draw_challenge(|bytes| SysRng.try_fill_bytes(bytes))?))
    }

    /// Draws a challenge that tells the client which of its requests this host speaks of.
    pub(crate) fn draw_named(&self, key: &Key, run: ClientRun) -> Result<OutstandingChallenge<'_>, SysError> {
        let fill = |bytes: &mut [u8]| SysRng.try_fill_bytes(bytes);
        Ok(self.keep(draw_named_challenge(key, CallRole::Host, run, fill)?))
    }

    fn keep(&self, challenge: Challenge) -> OutstandingChallenge<'_> {
        lock(&self.0).insert(challenge);
        OutstandingChallenge { challenges: self, challenge }
    }

    /// Returns whether a peer's challenge is an outstanding one of this daemon.
    pub(crate) fn is_reflected(&self, theirs: &Challenge) -> bool {
        lock(&self.0).contains(theirs)
    }

    /// Returns once the lock is free.
    pub(crate) fn check_responsive(&self) {
        drop(lock(&self.0));
    }
}

impl Drop for OutstandingChallenge<'_> {
    fn drop(&mut self) {
        lock(&self.challenges.0).remove(&self.challenge);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_reflected_as_long_as_it_is_outstanding() {
        let challenges = Challenges::default();
        let (first, second) = (challenges.draw().unwrap(), challenges.draw().unwrap());
        let (first_bytes, second_bytes) = (first.challenge, second.challenge);
        assert!(challenges.is_reflected(&first_bytes) && challenges.is_reflected(&second_bytes));
        drop(first);
        assert!(!challenges.is_reflected(&first_bytes) && challenges.is_reflected(&second_bytes));
    }
}
