// SPDX-License-Identifier: GPL-2.0-or-later
//! Starts at a hypervisor whose end nobody has seen: each may still take effect.
//!
//! A hypervisor that was told to start a domain may wait for other work on that domain (a managed save), and
//! the daemon that gave the order may end meanwhile. Until the start has come, or can't come any more, the
//! domain must not be called off. Owns the rule when such an order is over. Pure; time is a parameter.

use std::time::{Duration, Instant};

use crate::intent::HYPERVISOR_START_MS;
use crate::unseen_power_off::LaterLook;

/// Start at one hypervisor that may still take effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UnseenStart {
    /// Moment of the hypervisor's first answer.
    answered: Option<Instant>,
    /// Instance that was seen, and the beginning of the first of the looks that all showed it.
    seen: Option<(Option<u32>, Instant)>,
}

impl UnseenStart {
    /// Longest time for which the order may take effect after the hypervisor has answered.
    pub const LIMIT: Duration = Duration::from_millis(HYPERVISOR_START_MS);
    /// Time for which one instance must be seen: an order that waited beside the one which was carried out
    /// finds the domain on by then, and fails.
    pub const SETTLED: Duration = Duration::from_secs(1);

    /// Takes a look that began at this moment. Returns whether the order can take effect no more.
    ///
    /// "Off" ends nothing: the order waits for other work. A hypervisor that stands still takes the order up
    /// when it goes on, so the time begins with its first answer.
    pub fn look(&mut self, began: Instant, look: LaterLook) -> bool {
        let instance = match look {
            LaterLook::Silent | LaterLook::Gone => {
                self.seen = None;
                return false;
            }
            LaterLook::On(instance) => Some(instance),
            LaterLook::Untold | LaterLook::Off | LaterLook::Elsewhere => None,
        };
        self.seen = match (self.seen, instance) {
            (Some((seen, since)), Some(now)) if seen == now => Some((seen, since)),
            (_, now) => now.map(|it| (it, began)),
        };
        let answered = *self.answered.get_or_insert(began);
        let is_there = self.seen.is_some_and(|(_, since)| began >= since + Self::SETTLED);
        is_there || began >= answered + Self::LIMIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over_at(looks: &[(u64, LaterLook)]) -> Option<u64> {
        let (start, mut order) = (Instant::now(), UnseenStart::default());
        let at = |ms| start + Duration::from_millis(ms);
        looks.iter().find(|(ms, look)| order.look(at(*ms), *look)).map(|(ms, _)| *ms)
    }

    #[test]
    fn an_order_is_over_once_its_machine_stays_on_or_its_time_is_over() {
        use LaterLook::{Elsewhere, Off, On, Silent, Untold};
        // Off is what is seen of an order that waits.
        for look in [Off, Untold, Elsewhere] {
            assert_eq!(over_at(&[(0, look), (34_999, look), (35_000, look)]), Some(35_000), "{look:?}");
        }
        // A hypervisor that stands still takes the order up when it goes on.
        let late = [(0, Silent), (90_000, Silent), (90_001, Off), (125_000, Off), (125_001, Off)];
        assert_eq!(over_at(&late), Some(125_001));
        assert_eq!(over_at(&[(0, On(Some(3))), (999, On(Some(3))), (1_000, On(Some(3)))]), Some(1_000));
        // What was seen is another instance, or not there any more.
        let other = [(0, On(Some(3))), (1_000, On(Some(4))), (1_500, Off), (2_000, On(Some(5)))];
        assert_eq!(over_at(&other), None);
        assert_eq!(over_at(&[(0, On(None)), (500, Silent), (1_000, On(None))]), None);
    }
}
