// SPDX-License-Identifier: GPL-2.0-or-later
//! Power-offs at a hypervisor whose end this daemon has not seen: each may still take effect.
//!
//! A hypervisor that was told to end an instance and was then lost, or took longer than the client waited,
//! may have signalled the instance. That one ends when it can. Until then what conflicts with the order must
//! not run: both nodes would go down. Owns the rule when such an order is over, and when it hangs: nothing
//! bounds the orders of a hypervisor that stands still. Pure; time is a parameter.

use std::time::{Duration, Instant};

use crate::intent::HYPERVISOR_EFFECT_MS;

/// Power-off at one hypervisor that may still take effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnseenPowerOff {
    /// Number of the instance that was to end, if it has one.
    instance: Option<u32>,
    /// End of the time in which the order can take effect, by the first answer of the hypervisor.
    answered: Option<Instant>,
    /// The same by the end of the process that had the order: nobody takes it up later.
    gone: Option<Instant>,
}

/// Look at the domain that began after the call with the order had ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LaterLook {
    /// The hypervisor did not answer: it may stand still, or be cut off.
    Silent,
    /// Nobody listens at the hypervisor's socket on this host, or there is none: the process that had the
    /// order has ended, or has come to its end and takes up nothing more.
    Gone,
    /// The hypervisor answered, and did not tell the state.
    Untold,
    /// An instance is there, with its number if it has one.
    On(Option<u32>),
    /// No instance is there.
    Off,
    /// The instance is at another place.
    Elsewhere,
}

/// State of a power-off after a look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PowerOffEnd {
    /// The order may still take effect.
    Open,
    /// The order can take effect no more.
    Over,
    /// The same, and the domain was seen off.
    SeenOff,
}

impl UnseenPowerOff {
    /// Longest time for which the order may take effect after the hypervisor has answered again, or its
    /// process was found gone.
    pub const LIMIT: Duration = Duration::from_millis(HYPERVISOR_EFFECT_MS);

    /// Begins with an order whose call has ended.
    pub fn new(instance: Option<u32>) -> Self {
        Self { instance, answered: None, gone: None }
    }

    /// Returns the end of the time in which the order can take effect, once it is known.
    pub fn until(&self) -> Option<Instant> {
        self.answered.into_iter().chain(self.gone).min()
    }

    /// Returns the moment from which an order hangs whose end is not known by then. A hypervisor that lives
    /// has carried it out: that takes [`Self::LIMIT`] at most from the latest moment at which it was sent. It
    /// can be sent once more until its lease ends.
    pub fn hangs_from(sent: Instant, lease_end: Instant) -> Instant {
        lease_end.max(sent + Self::LIMIT)
    }

    /// Takes a look that began and ended at these moments.
    ///
    /// A hypervisor that stands still, or that is cut off, may take the order up when it goes on. So the time
    /// begins with its first answer. One whose process has ended takes nothing up, and a later one knows
    /// nothing of the order: only what was signalled before may still end. A look may take long, and what it
    /// shows may have happened at its end.
    pub fn look(&mut self, (began, ended): (Instant, Instant), look: LaterLook) -> PowerOffEnd {
        let mut limit = self.until();
        match look {
            // After an answer it may have stood still again in the middle of the order.
            LaterLook::Silent => limit = self.gone,
            LaterLook::Gone => _ = self.gone.get_or_insert(ended + Self::LIMIT),
            LaterLook::Off => return PowerOffEnd::SeenOff,
            LaterLook::Elsewhere => return PowerOffEnd::Over,
            // The instance that the order was for has ended.
            LaterLook::On(Some(other)) if self.instance.is_some_and(|it| it != other) => {
                return PowerOffEnd::Over;
            }
            LaterLook::On(_) | LaterLook::Untold => _ = self.answered.get_or_insert(ended + Self::LIMIT),
        }
        if limit.is_some_and(|it| began >= it) { PowerOffEnd::Over } else { PowerOffEnd::Open }
    }
}

#[cfg(test)]
mod tests;
