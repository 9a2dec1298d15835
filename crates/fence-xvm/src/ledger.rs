// SPDX-License-Identifier: GPL-2.0-or-later
//! Ledger of a call-back port: how many call-backs may still come that belong to other requests.
//!
//! A call-back of a C host does not name its request. But each datagram that was sent makes a host call back
//! at most once. So the ledger has the number of datagrams of each run of an agent that has no answer. After
//! a host has called back as often as the others' datagrams, its next call-back is for our own.
//!
//! ```text
//! ledger BOOT              id of the boot; a ledger of an earlier boot is empty
//! UNTIL COUNT RUN          second of the boot's clock at which the run ends, its datagrams, six bytes in hex
//! end                      without it the ledger is damaged
//! ```
//!
//! A host may still call back for a request of the boot before, which no ledger has. So for
//! [`QUARANTINE_SECONDS`] after a boot [`UNKNOWN_CALLS`] count as well.
//!
//! Pure; time is a parameter. A damaged ledger counts as [`UNKNOWN_CALLS`] call-backs.

use std::fmt::Write as _;

use fence_wire::ClientRun;

/// Seconds after the end of a run in which a host may still call it back.
pub(crate) const QUARANTINE_SECONDS: u64 = 300;
/// Call-backs that may come where nothing is known.
pub(crate) const UNKNOWN_CALLS: u32 = 64;
/// Most runs that a ledger has; the oldest two become one when there are more.
const RUNS_MAX: usize = 64;
/// Largest number of bytes of a ledger.
pub(crate) const LEDGER_MAX: u64 = 8192;

/// Datagrams of one run that were sent and not answered.
#[derive(Clone, PartialEq, Eq, Debug)]
struct LedgerEntry {
    until: u64,
    count: u32,
    run: ClientRun,
}

/// Datagrams of all runs that wait, or waited, for a call-back on one port.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct PortLedger {
    /// In the order in which they were entered.
    entries: Vec<LedgerEntry>,
    /// Call-backs for requests of the boot before.
    of_last_boot: u32,
}

impl PortLedger {
    /// Reads a ledger at this second of this boot. Entries that are over are left out.
    pub(crate) fn read(text: &[u8], boot: &str, now: u64) -> Self {
        let mut ledger = Self::parse(text, boot, now).unwrap_or_else(|| Self {
            entries: vec![LedgerEntry { until: now, count: UNKNOWN_CALLS, run: ClientRun::new([0; 6]) }],
            of_last_boot: 0,
        });
        ledger.of_last_boot = if now < QUARANTINE_SECONDS { UNKNOWN_CALLS } else { 0 };
        ledger.entries.retain(|it| now < it.until.saturating_add(QUARANTINE_SECONDS));
        ledger
    }

    /// Returns none for a text without a meaning.
    fn parse(text: &[u8], boot: &str, now: u64) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut lines = text.lines();
        let Some(first) = lines.next() else { return Some(Self::default()) };
        match first.split_whitespace().collect::<Vec<_>>()[..] {
            // Records of earlier versions have one line.
            [] | ["free"] => return Some(Self::default()),
            ["busy", of_boot, until] => {
                let until = until.parse::<u64>().ok()?.min(now.saturating_add(LONGEST_RUN));
                let entry = LedgerEntry { until, count: UNKNOWN_CALLS, run: ClientRun::new([0; 6]) };
                let entries = if of_boot == boot { vec![entry] } else { Vec::new() };
                return Some(Self { entries, of_last_boot: 0 });
            }
            // Only /tmp can hold a ledger of an earlier boot.
            ["ledger", of_boot] if of_boot != boot => return Some(Self::default()),
            ["ledger", _] => {}
            _ => return None,
        }
        let mut entries = Vec::new();
        for line in lines {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["end"] => return Some(Self { entries, of_last_boot: 0 }),
                [until, count, run] if entries.len() <= RUNS_MAX => entries.push(LedgerEntry {
                    until: until.parse::<u64>().ok()?.min(now.saturating_add(LONGEST_RUN)),
                    count: count.parse().ok()?,
                    run: parse_run(run)?,
                }),
                _ => return None,
            }
        }
        None
    }

    /// Returns the text of the ledger.
    pub(crate) fn to_text(&self, boot: &str) -> String {
        let mut text = format!("ledger {boot}\n");
        for LedgerEntry { until, count, run } in &self.entries {
            let _ = write!(text, "{until} {count} ");
            for byte in run.bytes() {
                let _ = write!(text, "{byte:02x}");
            }
            text.push('\n');
        }
        text.push_str("end\n");
        text
    }

    /// Returns how often a host may still call back for other runs than this one.
    pub(crate) fn calls_for_others(&self, run: ClientRun) -> u32 {
        let others = self.entries.iter().filter(|it| it.run != run);
        others.fold(self.of_last_boot, |sum, it| sum.saturating_add(it.count))
    }

    /// Enters the number of datagrams that a run has sent so far.
    pub(crate) fn enter(&mut self, run: ClientRun, until: u64, count: u32) {
        match self.entries.iter_mut().find(|it| it.run == run) {
            Some(entry) => (entry.until, entry.count) = (until, count),
            None => self.entries.push(LedgerEntry { until, count, run }),
        }
        if self.entries.len() > RUNS_MAX {
            let oldest = self.entries.remove(0);
            let next = &mut self.entries[0];
            next.count = next.count.saturating_add(oldest.count);
            next.until = next.until.max(oldest.until);
        }
    }

    /// Removes a run: it was answered, or has sent nothing.
    pub(crate) fn remove(&mut self, run: ClientRun) {
        self.entries.retain(|it| it.run != run);
    }
}

/// Longest run of an agent that is believed, in seconds: a damaged number must not close a port for ever.
const LONGEST_RUN: u64 = 24 * 3600;

fn parse_run(text: &str) -> Option<ClientRun> {
    let mut bytes = [0; 6];
    if text.len() != 12 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(ClientRun::new(bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOOT: &str = "b0071d";

    fn run(n: u8) -> ClientRun {
        ClientRun::new([n, 0, 0, 0, 0, n])
    }

    #[test]
    fn records_of_earlier_versions_are_read() {
        for (text, calls) in [
            ("", 0),
            ("free                    \n", 0),
            ("busy b0071d 100         \n", UNKNOWN_CALLS),
            ("busy another 100        \n", 0),
            ("ledger another\n1 1 0\n", 0),
            ("nonsense", UNKNOWN_CALLS),
            ("ledger b0071d\n100 3 000000000001\n", UNKNOWN_CALLS),
            ("ledger b0071d\n100 3 000000000001\nend\nrest of a longer one", 3),
        ] {
            let calls_at = |now| PortLedger::read(text.as_bytes(), BOOT, now).calls_for_others(run(9));
            assert_eq!(calls_at(350), calls, "{text}");
            // A host may still call for a request of the boot before.
            assert_eq!(calls_at(299), calls + UNKNOWN_CALLS, "{text}");
        }
    }

    proptest! {
        /// No datagram is forgotten before its time, however many runs there are.
        #[test]
        fn nothing_is_forgotten(
            steps in prop::collection::vec((0..100_u8, 0..50_u64, 1..20_u32, any::<bool>()), 0..200)
        ) {
            let mut ledger = PortLedger::default();
            let mut model: Vec<(u8, u64, u32)> = Vec::new();
            let mut now = 1000;
            for (who, later, count, is_answered) in steps {
                now += later;
                ledger = PortLedger::read(ledger.to_text(BOOT).as_bytes(), BOOT, now);
                model.retain(|(_, until, _)| now < until + QUARANTINE_SECONDS);
                let until = now + 30;
                match (is_answered, model.iter_mut().find(|it| it.0 == who)) {
                    (true, _) => {
                        ledger.remove(run(who));
                        model.retain(|it| it.0 != who);
                    }
                    (false, Some(known)) => {
                        *known = (who, until, count);
                        ledger.enter(run(who), until, count);
                    }
                    (false, None) => {
                        model.push((who, until, count));
                        ledger.enter(run(who), until, count);
                    }
                }
                let expected: u32 = model.iter().map(|it| it.2).sum();
                let read = ledger.calls_for_others(run(200));
                // Runs that became one are not told apart any more: never fewer.
                prop_assert!(read >= expected, "{} < {}", read, expected);
                if model.len() < 60 && ledger.entries.len() == model.len() {
                    prop_assert_eq!(read, expected);
                }
                prop_assert!(ledger.to_text(BOOT).len() as u64 <= LEDGER_MAX);
            }
        }

        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>, now in 0..u64::MAX) {
            let _ = PortLedger::read(&bytes, BOOT, now);
        }
    }
}
