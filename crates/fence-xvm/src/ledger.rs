// SPDX-License-Identifier: GPL-2.0-or-later
//! Ledger of a call-back port: how many call-backs may still come that belong to other requests.
//!
//! A call-back of a C host does not name its request. But each datagram that was sent makes a host call back
//! at most once, at the address that the datagram names. So the ledger has the datagrams of each run of an
//! agent, and how many of them are known to be over at which host. After a host has called back as often as
//! the datagrams that were left when we took the turn, its next call-back is for one of ours. Then all that
//! was sent before is over at that host, which serves in order. At other hosts it is not, whoever gave the
//! answer.
//!
//! ```text
//! calls BOOT                     id of the boot
//! UNTIL OWNER HOST NUMBERS       second of the boot's clock at which the run ends; "unknown", or "waiting:",
//!                                "answered:" or "left:" and six bytes in hex of the run; the host that it is
//!                                about, or *; TO=N datagrams that name this address, or *; FROM>TO=N of them
//!                                over at a host
//! end                            without it the ledger is damaged
//! ```
//!
//! A host may still call back for a request that no ledger has: one of the boot before, or of an agent whose
//! ledger somebody removed. So a ledger that begins where there was none, or a damaged one, has
//! [`UNKNOWN_CALLS`] datagrams from the start, to any address.
//!
//! A call-back that is refused makes one datagram fewer at that host, whichever it was for. So a run leaves
//! at most one datagram more than it found at a host, and one for each repetition: it sends its request anew
//! only after it refused a call-back. What the ledger has of datagrams that never arrived, or that the host
//! served while nobody listened, costs a run as many call-backs.
//!
//! Pure; time is a parameter.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use fence_wire::ClientRun;

/// Seconds after the end of a run in which a host may still call it back.
pub(crate) const QUARANTINE_SECONDS: u64 = 300;
/// Seconds in which a host that has answered a run may still call back for further datagrams of it.
const LEFT_SECONDS: u64 = 60;
/// Call-backs that may come where nothing is known.
pub(crate) const UNKNOWN_CALLS: u32 = 64;
/// Most ways whose call-backs are counted. On further ones all are refused where there is something to count.
const PATHS_MAX: usize = 256;
/// Most datagrams that a host keeps: no more fit into a socket's buffer as Linux makes it.
const QUEUE_MAX: u32 = 300;
/// Most entries that a ledger has; the oldest two become one when there are more.
const ENTRIES_MAX: usize = 64;
/// Largest number of bytes of a ledger: one page, which is written as a whole or not at all.
pub(crate) const LEDGER_MAX: u64 = 4096;

/// Way of a call-back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct CallPath {
    /// Address of the host.
    pub(crate) from: IpAddr,
    /// Our address, which the datagram named.
    pub(crate) to: IpAddr,
}

/// Datagrams by the address that they name.
pub(crate) type SentDatagrams = BTreeMap<IpAddr, u32>;

/// Call-backs to a run while it had the turn at a port, where nobody else sends meanwhile.
#[derive(Debug)]
pub(crate) struct SeenCalls {
    /// Datagrams of before the turn, those of this run too: they came to the host among those of others.
    before: PortLedger,
    /// Call-backs that were refused, since they may be for what was sent before.
    refused: BTreeMap<CallPath, u32>,
    /// Ways on which a host has called for what was sent in this turn.
    own: BTreeSet<CallPath>,
}

impl SeenCalls {
    /// Returns a turn that begins with this ledger.
    pub(crate) fn new(before: PortLedger) -> Self {
        Self { before, refused: BTreeMap::new(), own: BTreeSet::new() }
    }

    /// Decides whether it is sure that a call-back is for what was sent in this turn. Counts one that is not.
    pub(crate) fn admits(&mut self, path: CallPath) -> bool {
        let refused = self.refused.get(&path).copied().unwrap_or_default();
        // A host that serves in order has served all of before when it has called as often as its queue is
        // long.
        if refused >= self.before.calls(path).min(QUEUE_MAX) {
            self.own.insert(path);
            return true;
        }
        if refused > 0 || self.refused.len() < PATHS_MAX {
            self.refused.insert(path, refused + 1);
        }
        false
    }
}

/// Whose datagrams an entry has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum EntryOwner {
    /// Nobody knows.
    Unknown,
    /// A run that has no answer, or not yet.
    Waiting(ClientRun),
    /// A run that has its answer, of one host.
    Answered(ClientRun),
    /// The same run, at the host that answered it.
    Left(ClientRun),
}

impl EntryOwner {
    /// Returns whether this is the same run, at a later time.
    fn continues(self, earlier: Self) -> bool {
        match (self, earlier) {
            (Self::Answered(run), Self::Waiting(before)) => run == before,
            _ => self == earlier,
        }
    }
}

/// Datagrams that were sent.
#[derive(Clone, PartialEq, Eq, Debug)]
struct LedgerEntry {
    until: u64,
    owner: EntryOwner,
    /// Host that they may make call back; none for any.
    host: Option<IpAddr>,
    /// Datagrams by the address that they name; none for any.
    sent: BTreeMap<Option<IpAddr>, u32>,
    /// Datagrams that are over.
    over: BTreeMap<CallPath, u32>,
}

impl LedgerEntry {
    fn new(until: u64, owner: EntryOwner, sent: BTreeMap<Option<IpAddr>, u32>) -> Self {
        Self { until, owner, host: None, sent, over: BTreeMap::new() }
    }

    fn unknown(until: u64) -> Self {
        Self::new(until, EntryOwner::Unknown, [(None, UNKNOWN_CALLS)].into())
    }

    fn is_of(&self, run: ClientRun) -> bool {
        self.owner == EntryOwner::Waiting(run)
    }

    fn sent(&self, to: IpAddr) -> u32 {
        let unknown = self.sent.get(&None).copied().unwrap_or_default();
        // An address that no datagram names is one that somebody has translated.
        let most = || self.sent.iter().filter(|(it, _)| it.is_some()).map(|(_, number)| *number).max();
        let named = self.sent.get(&Some(to)).copied().or_else(most).unwrap_or_default();
        unknown.saturating_add(named)
    }

    /// Returns how many of the datagrams may still make the host call back.
    fn left(&self, path: CallPath) -> u32 {
        if self.host.is_some_and(|it| it != path.from) {
            return 0;
        }
        self.sent(path.to).saturating_sub(self.over.get(&path).copied().unwrap_or_default())
    }

    /// Notes that so many datagrams are over, and returns the number of those that are too many.
    fn take(&mut self, path: CallPath, number: u32) -> u32 {
        let taken = number.min(self.left(path));
        if taken > 0 {
            *self.over.entry(path).or_default() += taken;
        }
        number - taken
    }

    /// Takes in an older entry. What is left at any host stays so, or becomes more; but no host keeps more
    /// than [`QUEUE_MAX`] datagrams.
    fn merge(&mut self, older: Self) {
        self.until = self.until.max(older.until);
        if self.owner != older.owner {
            self.owner = EntryOwner::Unknown;
        }
        if self.host != older.host {
            // Over at the host of one says nothing about the other.
            self.host = None;
        }
        for (to, number) in older.sent {
            let sum = self.sent.entry(to).or_default();
            *sum = sum.saturating_add(number);
        }
        for (path, number) in older.over {
            let sum = self.over.entry(path).or_default();
            *sum = sum.saturating_add(number);
        }
        for (to, number) in &mut self.sent {
            let excess = number.saturating_sub(QUEUE_MAX);
            *number -= excess;
            for (path, over) in &mut self.over {
                if to.is_none_or(|it| it == path.to) {
                    *over = over.saturating_sub(excess);
                }
            }
        }
        self.over.retain(|_, number| *number > 0);
    }

    fn write(&self, text: &mut String) {
        let _ = write!(text, "{} ", self.until);
        let (word, run) = match self.owner {
            EntryOwner::Unknown => ("unknown", None),
            EntryOwner::Waiting(run) => ("waiting:", Some(run)),
            EntryOwner::Answered(run) => ("answered:", Some(run)),
            EntryOwner::Left(run) => ("left:", Some(run)),
        };
        text.push_str(word);
        for byte in run.iter().flat_map(|it| it.bytes()) {
            let _ = write!(text, "{byte:02x}");
        }
        let word = |address: &Option<IpAddr>| address.map_or_else(|| "*".to_owned(), |it| it.to_string());
        let _ = write!(text, " {}", word(&self.host));
        for (to, number) in &self.sent {
            let _ = write!(text, " {}={number}", word(to));
        }
        for (CallPath { from, to }, number) in &self.over {
            let _ = write!(text, " {from}>{to}={number}");
        }
        text.push('\n');
    }

    /// Returns none for a line without a meaning.
    fn read(line: &str, now: u64) -> Option<Self> {
        let address = |word: &str| match word {
            "*" => Some(None),
            word => word.parse().ok().map(Some),
        };
        let mut words = line.split_whitespace();
        let until = words.next()?.parse::<u64>().ok()?.min(now.saturating_add(LONGEST_RUN));
        let word = words.next()?;
        let owner = match word.split_once(':') {
            None if word == "unknown" => EntryOwner::Unknown,
            Some(("waiting", run)) => EntryOwner::Waiting(parse_run(run)?),
            Some(("answered", run)) => EntryOwner::Answered(parse_run(run)?),
            Some(("left", run)) => EntryOwner::Left(parse_run(run)?),
            _ => return None,
        };
        let mut entry = Self::new(until, owner, BTreeMap::new());
        entry.host = address(words.next()?)?;
        for word in words {
            let (place, number) = word.split_once('=')?;
            let number = number.parse().ok()?;
            match place.split_once('>') {
                Some((from, to)) => {
                    let path = CallPath { from: from.parse().ok()?, to: to.parse().ok()? };
                    entry.over.insert(path, number);
                }
                None => drop(entry.sent.insert(address(place)?, number)),
            }
        }
        Some(entry)
    }
}

/// Datagrams of all runs that wait, or waited, for a call-back on one port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PortLedger {
    /// In the order of the last datagram of each.
    entries: Vec<LedgerEntry>,
}

impl PortLedger {
    /// Reads a ledger at this second of this boot. Entries that are over are left out. A text that is
    /// missing, or has no meaning, is a ledger that begins now.
    pub(crate) fn read(text: &[u8], boot: &str, now: u64) -> Self {
        let mut entries = Self::parse(text, boot, now).unwrap_or_else(|| vec![LedgerEntry::unknown(now)]);
        entries.retain(|it| now < it.until.saturating_add(QUARANTINE_SECONDS));
        Self { entries }
    }

    /// Returns none for a text without a meaning.
    fn parse(text: &[u8], boot: &str, now: u64) -> Option<Vec<LedgerEntry>> {
        let text = std::str::from_utf8(text).ok()?;
        let mut lines = text.lines();
        // A file that an earlier boot or version left has been there since this boot began.
        let of_last_boot = LedgerEntry::unknown(0);
        let mut entries = match lines.next()?.split_whitespace().collect::<Vec<_>>()[..] {
            ["calls", of_boot] if of_boot == boot => Vec::new(),
            // Only /tmp can hold a ledger of an earlier boot.
            ["calls", _] | ["free"] => return Some(vec![of_last_boot]),
            ["ledger", of_boot] if of_boot != boot => return Some(vec![of_last_boot]),
            ["ledger", _] => return Self::parse_counts(lines, of_last_boot, now),
            _ => return None,
        };
        for line in lines {
            if line == "end" {
                return Some(entries);
            }
            entries.push(LedgerEntry::read(line, now)?);
        }
        None
    }

    /// Reads the lines of a ledger of an earlier version: UNTIL COUNT RUN.
    fn parse_counts(lines: std::str::Lines<'_>, first: LedgerEntry, now: u64) -> Option<Vec<LedgerEntry>> {
        let mut entries = vec![first];
        for line in lines {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["end"] => return Some(entries),
                [until, count, run] => entries.push(LedgerEntry::new(
                    until.parse::<u64>().ok()?.min(now.saturating_add(LONGEST_RUN)),
                    EntryOwner::Waiting(parse_run(run)?),
                    [(None, count.parse().ok()?)].into(),
                )),
                _ => return None,
            }
        }
        None
    }

    /// Returns the text of the ledger.
    pub(crate) fn to_text(&self, boot: &str) -> String {
        let mut text = format!("calls {boot}\n");
        self.entries.iter().for_each(|it| it.write(&mut text));
        text.push_str("end\n");
        text
    }

    /// Returns how often a host may still call back for what was sent so far.
    pub(crate) fn calls(&self, path: CallPath) -> u32 {
        self.entries.iter().fold(0, |sum, it| sum.saturating_add(it.left(path)))
    }

    /// Returns whether a host that acts unasked may call back for another run. Nothing helps against what a
    /// removed ledger had: whoever waits for five minutes where there was no ledger would never be the first.
    pub(crate) fn has_open_calls(&self, run: ClientRun) -> bool {
        self.entries.iter().any(|it| match it.owner {
            EntryOwner::Unknown => it.until == 0,
            EntryOwner::Waiting(other) => other != run,
            EntryOwner::Answered(_) | EntryOwner::Left(_) => false,
        })
    }

    /// Returns the runs that wait, with what they have sent.
    pub(crate) fn waiting(&self) -> Vec<(ClientRun, u32)> {
        let waiting = |it: &LedgerEntry| match it.owner {
            EntryOwner::Waiting(run) => Some((run, it.sent.values().sum())),
            EntryOwner::Unknown | EntryOwner::Answered(_) | EntryOwner::Left(_) => None,
        };
        self.entries.iter().filter_map(waiting).collect()
    }

    /// Enters the datagrams that a run has sent so far.
    pub(crate) fn enter(&mut self, run: ClientRun, until: u64, sent: &SentDatagrams) {
        let sent = sent.iter().map(|(to, number)| (Some(*to), *number)).collect();
        let mut entry = match self.entries.iter().position(|it| it.is_of(run)) {
            Some(index) => self.entries.remove(index),
            None => LedgerEntry::new(until, EntryOwner::Waiting(run), BTreeMap::new()),
        };
        (entry.until, entry.sent) = (until, sent);
        // The newest, also where the run has sent before: what is refused counts as sent before this turn.
        self.entries.push(entry);
        self.shrink();
    }

    /// Removes a run: it has sent nothing, or nothing that can be mistaken.
    pub(crate) fn remove(&mut self, run: ClientRun) {
        self.entries.retain(|it| !it.is_of(run));
    }

    /// Notes a call-back that was refused: one datagram fewer is left at that host, whichever it was. Whoever
    /// comes later goes by the sum, also if this run is killed now. It counts as the oldest one: as one of
    /// those before the turn, as long as there are any. If it counted as one of the turn, and
    /// [`PortLedger::note_admitted`] then takes all from before for over, it would count twice.
    pub(crate) fn note_refused(&mut self, path: CallPath) {
        self.entries.iter_mut().fold(1, |number, it| it.take(path, number));
        self.shrink();
    }

    /// Notes a call-back that is for what was sent in this turn: all that was sent before is over at that
    /// host, also if there will be no answer.
    pub(crate) fn note_admitted(&mut self, path: CallPath, turn: &SeenCalls) {
        self.note_served(path, &turn.before);
        self.shrink();
    }

    /// Enters the end of a run that has its answer, with the call-backs of all its turns.
    pub(crate) fn settle(&mut self, run: ClientRun, turns: &[SeenCalls], now: u64) {
        for turn in turns {
            turn.own.iter().for_each(|path| self.note_served(*path, &turn.before));
        }
        let own = turns.iter().flat_map(|it| &it.own).copied().collect();
        self.note_answer(run, &own, now);
    }

    /// Notes that a host, which serves in order, has served all that was sent before.
    fn note_served(&mut self, path: CallPath, before: &Self) {
        for entry in &mut self.entries {
            let same = |it: &&LedgerEntry| {
                (entry.owner.continues(it.owner) && entry.host == it.host)
                    && (entry.owner != EntryOwner::Unknown || entry.until == it.until)
            };
            let Some(known) = before.entries.iter().find(same) else { continue };
            let over = known.sent(path.to).min(entry.sent(path.to));
            let noted = entry.over.entry(path).or_default();
            *noted = over.max(*noted);
        }
    }

    /// Notes that the run has its answer. Hosts that served it (`own`) may still call back for all but one of
    /// its datagrams, and soon; others for each, and as late as for a run without an answer.
    fn note_answer(&mut self, run: ClientRun, own: &BTreeSet<CallPath>, now: u64) {
        let Some(index) = self.entries.iter().position(|it| it.is_of(run)) else { return };
        let entry = &mut self.entries[index];
        (entry.owner, entry.until) = (EntryOwner::Answered(run), entry.until.min(now));
        let until = now.saturating_sub(QUARANTINE_SECONDS - LEFT_SECONDS);
        let mut left = Vec::new();
        for path in own {
            let number = entry.left(*path);
            entry.take(*path, number);
            if number > 1 {
                let sent = [(Some(path.to), number - 1)].into();
                let new = LedgerEntry::new(until, EntryOwner::Left(run), sent);
                left.push(LedgerEntry { host: Some(path.from), ..new });
            }
        }
        // In the run's place: others may have sent since.
        self.entries.splice(index..index, left);
        self.shrink();
    }

    /// Makes one entry of the oldest two until the ledger is small enough.
    fn shrink(&mut self) {
        let is_large = |it: &Self| {
            it.entries.len() > ENTRIES_MAX || it.to_text(&"b".repeat(64)).len() as u64 > LEDGER_MAX
        };
        while self.entries.len() > 1 && is_large(self) {
            let oldest = self.entries.remove(0);
            self.entries[0].merge(oldest);
        }
        if is_large(self) {
            self.entries.iter_mut().for_each(|it| it.over.clear());
        }
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
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const BOOT: &str = "b0071d";
    const HOST: CallPath = path(1);

    const fn path(host: u8) -> CallPath {
        use std::net::Ipv4Addr;
        let to = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));
        CallPath { from: IpAddr::V4(Ipv4Addr::new(10, 0, 0, host)), to }
    }

    fn run(n: u8) -> ClientRun {
        ClientRun::new([n, 0, 0, 0, 0, n])
    }

    fn sent(count: u32) -> SentDatagrams {
        [(HOST.to, count)].into()
    }

    fn calls(text: &str, now: u64) -> u32 {
        PortLedger::read(text.as_bytes(), BOOT, now).calls(HOST)
    }

    #[test]
    fn ledgers_of_earlier_versions_and_boots_are_read() {
        for (text, number) in [
            ("free                    \n", 0),
            ("ledger another\n1 1 0\n", 0),
            ("calls another\nnonsense\n", 0),
            ("ledger b0071d\n100 3 000000000001\nend\nrest of a longer one", 3),
        ] {
            assert_eq!(calls(text, 350), number, "{text}");
            // A host may still call for a request of the boot before.
            assert_eq!(calls(text, 299), number + UNKNOWN_CALLS, "{text}");
        }
    }

    /// A missing ledger, or a damaged one, may have been removed: five minutes long nothing is known.
    #[test]
    fn a_new_ledger_knows_nothing_of_before() {
        let cut = "calls b0071d\n100 waiting:000000000001 * *=3\n";
        for text in ["", "nonsense", cut, "calls b0071d\n1 x * *=1\nend\n", "busy b0071d 100\n", "\n"] {
            let mut ledger = PortLedger::read(text.as_bytes(), BOOT, 1000);
            assert_eq!(ledger.calls(HOST), UNKNOWN_CALLS, "{text}");
            // Such an agent would never be the first.
            assert!(!ledger.has_open_calls(run(9)), "{text}");
            ledger.enter(run(1), 1030, &sent(2));
            let text = ledger.to_text(BOOT);
            assert_eq!((calls(&text, 1299), calls(&text, 1300)), (UNKNOWN_CALLS + 2, 2), "{text}");
            assert!(PortLedger::read(text.as_bytes(), BOOT, 1299).has_open_calls(run(9)), "{text}");
        }
    }

    /// The answer of one host says nothing about another, which may call back late for the same request.
    /// A guest that asks often leaves more datagrams in five minutes than a silent host can have kept.
    #[test]
    fn no_more_is_refused_than_a_host_can_have_kept() {
        let mut ledger = PortLedger::read(b"calls b0071d\nend\n", BOOT, 10);
        ledger.enter(run(1), 20, &sent(5000));
        let mut turn = SeenCalls::new(ledger);
        let refused = (0..1000_u32).find(|_| turn.admits(HOST));
        assert_eq!(refused, Some(QUEUE_MAX));
    }

    #[test]
    fn an_answered_run_is_over_at_the_host_that_answered() {
        let mut ledger = PortLedger::read(b"free", BOOT, 1000);
        let mut seen = SeenCalls::new(ledger.clone());
        ledger.enter(run(1), 1030, &sent(1));
        assert!(seen.admits(HOST));
        ledger.settle(run(1), &[seen], 1001);
        let text = ledger.to_text(BOOT);
        let read = |now| PortLedger::read(text.as_bytes(), BOOT, now);
        let left = |host, now| read(now).calls(path(host));
        assert_eq!((left(1, 1002), left(2, 1002), left(2, 1300), left(2, 1301)), (0, 1, 1, 0));
        assert!(!ledger.has_open_calls(run(9)));
    }

    /// A refused call-back counts as an older run's, also after the older one has its answer: when that is
    /// over, the host may still have all of the newer one.
    #[test]
    fn a_refused_call_counts_as_the_oldest_datagram() {
        let mut ledger = PortLedger::read(b"free", BOOT, 1000);
        let mut seen = SeenCalls::new(ledger.clone());
        ledger.enter(run(1), 1030, &sent(3));
        assert!(seen.admits(HOST));
        ledger.enter(run(2), 1030, &sent(2));
        ledger.settle(run(1), &[seen], 1001);
        assert_eq!(ledger.calls(HOST), 4);
        (0..2).for_each(|_| ledger.note_refused(HOST));
        let text = ledger.to_text(BOOT);
        assert_eq!((calls(&text, 1002), calls(&text, 1001 + LEFT_SECONDS)), (2, 2), "{text}");
        // Sends again: now run 1 is the one that was sent to before.
        let mut ledger = PortLedger::read(b"calls b0071d\nend\n", BOOT, 1000);
        ledger.enter(run(1), 1030, &sent(2));
        ledger.enter(run(2), 1030, &sent(3));
        let mut turn = SeenCalls::new(ledger.clone());
        for number in 3..8 {
            ledger.enter(run(1), 1030, &sent(number));
            assert!(!turn.admits(HOST));
            ledger.note_refused(HOST);
        }
        assert!(turn.admits(HOST));
        ledger.note_admitted(HOST, &turn);
        // Five of this turn, and the host has served one of them for sure.
        assert_eq!(ledger.calls(HOST), 5);
        ledger.settle(run(1), &[turn], 1001);
        assert_eq!(ledger.calls(HOST), 4);
    }

    /// A ledger that did not fit would be read as a damaged one, which knows nothing.
    #[test]
    fn call_backs_of_many_hosts_leave_a_ledger_that_can_be_read() {
        let mut ledger = PortLedger::read(b"calls b0071d\nend\n", BOOT, 1000);
        ledger.enter(run(1), 1030, &sent(100));
        (0..=255).for_each(|host| ledger.note_refused(path(host)));
        let text = ledger.to_text(BOOT);
        assert!(text.len() as u64 <= LEDGER_MAX, "{}", text.len());
        assert!((99..=100).contains(&calls(&text, 1001)));
    }

    /// Datagram in the queue of a host.
    #[derive(Clone, Copy, Debug)]
    struct QueuedRequest {
        run: ClientRun,
        sequence: u32,
    }

    /// C host: serves in order, and drops what it has just answered.
    #[derive(Default, Debug)]
    struct ModelHost {
        queue: VecDeque<QueuedRequest>,
        answered: Vec<u32>,
    }

    /// Agent: its turns so far. The last one lasts while it is the one that listens.
    #[derive(Debug)]
    struct ModelAgent {
        run: ClientRun,
        sequence: u32,
        sent: u32,
        turns: Vec<SeenCalls>,
    }

    /// Agents of one guest, hosts that they ask, and the ledger between them.
    struct LedgerModel {
        now: u64,
        text: String,
        hosts: [ModelHost; 2],
        agents: Vec<ModelAgent>,
        listener: Option<usize>,
        runs: u8,
        sequences: u32,
        admitted: u32,
    }

    impl LedgerModel {
        fn new() -> Self {
            let hosts = [ModelHost::default(), ModelHost::default()];
            let (agents, text) = (Vec::new(), "free\n".to_owned());
            Self { now: 1000, text, hosts, agents, listener: None, runs: 0, sequences: 0, admitted: 0 }
        }

        fn change<T>(&mut self, work: impl FnOnce(&mut PortLedger) -> T) -> T {
            let mut ledger = PortLedger::read(self.text.as_bytes(), BOOT, self.now);
            let result = work(&mut ledger);
            self.text = ledger.to_text(BOOT);
            assert!(self.text.len() as u64 <= LEDGER_MAX);
            result
        }

        /// Lets an agent, or a new one, take the turn and send.
        fn listen(&mut self, who: u8, reaches: u8) {
            let who = usize::from(who);
            if who >= self.agents.len() && self.runs < 250 {
                self.runs += 1;
                let run = run(self.runs);
                self.agents.push(ModelAgent { run, sequence: 0, sent: 0, turns: Vec::new() });
            }
            let Some(index) = self.agents.len().checked_sub(1).map(|it| it.min(who)) else { return };
            let before = self.change(|it| it.clone());
            self.agents[index].turns.push(SeenCalls::new(before));
            self.listener = Some(index);
            self.send(true, reaches);
        }

        /// Sends a datagram, which reaches some hosts.
        fn send(&mut self, is_new: bool, reaches: u8) {
            let Some(index) = self.listener else { return };
            let agent = &mut self.agents[index];
            agent.sent += 1;
            if is_new {
                self.sequences += 1;
                agent.sequence = self.sequences;
            }
            let (run, sequence, number) = (agent.run, agent.sequence, agent.sent);
            let until = self.now + 30;
            self.change(|it| it.enter(run, until, &sent(number)));
            for (host, _) in self.hosts.iter_mut().zip(0..).filter(|(_, n)| reaches & 1 << n != 0) {
                host.queue.push_back(QueuedRequest { run, sequence });
            }
        }

        /// Lets a host serve one datagram. `answers`: it answers who believes it, and that run ends.
        fn serve(&mut self, host: u8, answers: bool, sends_anew: bool) -> Result<(), TestCaseError> {
            let place = &mut self.hosts[usize::from(host)];
            let Some(request) = place.queue.pop_front() else { return Ok(()) };
            let Some(index) = self.listener.filter(|_| !place.answered.contains(&request.sequence)) else {
                return Ok(());
            };
            let agent = &mut self.agents[index];
            if !agent.turns.last_mut().is_some_and(|it| it.admits(path(host))) {
                self.change(|it| it.note_refused(path(host)));
                if sends_anew {
                    self.send(true, 3);
                }
                return Ok(());
            }
            prop_assert_eq!(request.run, agent.run, "the answer to another request");
            self.admitted += 1;
            let Some(turn) = self.agents[index].turns.pop() else { return Ok(()) };
            self.change(|it| it.note_admitted(path(host), &turn));
            self.agents[index].turns.push(turn);
            if answers {
                self.hosts[usize::from(host)].answered.push(request.sequence);
                let agent = self.agents.remove(index);
                let now = self.now;
                self.change(|it| it.settle(agent.run, &agent.turns, now));
                self.listener = None;
            }
            Ok(())
        }

        fn step(&mut self, what: u8, a: u8, b: u8) -> Result<(), TestCaseError> {
            match what {
                0..4 => self.listen(a % 4, b % 4),
                4 | 5 => self.send(a.is_multiple_of(2), b % 4),
                6..18 => self.serve(a % 2, b & 3 > 0, b & 12 > 0)?,
                // Killed, or out of time.
                18 if !self.agents.is_empty() => {
                    let index = usize::from(a) % self.agents.len();
                    drop(self.agents.remove(index));
                    self.listener = None;
                }
                19 => self.listener = None,
                20 if b < 8 => self.text.clear(),
                21 => self.now += u64::from(a & 1),
                22 if b < 32 => {
                    // Hosts do not wait for ever; nor do agents.
                    self.hosts.iter_mut().for_each(|it| it.queue.clear());
                    (self.agents, self.listener) = (Vec::new(), None);
                    self.now += 50 * u64::from(a % 8);
                }
                _ => {}
            }
            Ok(())
        }
    }

    /// Run 1 sends before run 2 and again after it, and refuses as often as the host has datagrams of before.
    /// These counted as datagrams of run 1's last turn, and those of run 2 as over as well. So the ledger had
    /// none left while the host still had one of run 1, and run 2 took its call-back.
    #[test]
    fn refused_call_backs_do_not_count_twice() {
        const SENT_TO_NONE: (u8, u8, u8) = (0, 1, 0);
        const REFUSED: (u8, u8, u8) = (6, 1, 4);
        let mut steps = vec![(0, 0, 0), (0, 0, 0), (0, 1, 1)];
        // Host 0 calls run 2 back, which sends anew to both hosts.
        steps.extend([(6, 0, 4), (6, 0, 4), (6, 0, 0)]);
        steps.extend([SENT_TO_NONE, (0, 1, 3), (4, 0, 0), SENT_TO_NONE]);
        // Run 1 again, at host 1: as often as there are datagrams of before, and one more.
        steps.extend([(0, 0, 2), REFUSED, (6, 1, 0), REFUSED, (4, 0, 2), REFUSED, REFUSED, (6, 0, 4)]);
        steps.extend([REFUSED, (6, 1, 0), (6, 1, 0), (6, 1, 0), (6, 1, 1)]);
        // Run 2: host 1 still has a datagram of run 1.
        steps.extend([(0, 0, 0), (6, 1, 0)]);
        let mut model = LedgerModel::new();
        for (what, a, b) in steps {
            model.step(what, a, b).unwrap();
        }
        assert_eq!(model.admitted, 2);
    }

    /// One host as the C program: a queue with room for some datagrams, served in order, one after the other.
    /// Agents as ours: they send anew after they refused a call-back, and again when nothing came.
    #[derive(Default)]
    struct ModelSite {
        ledger: Option<PortLedger>,
        queue: VecDeque<u8>,
        runs: u8,
    }

    /// End of a run in the model, and the datagrams that it sent.
    #[derive(Clone, Copy, Debug)]
    struct ModelRunEnd {
        is_answered: bool,
        sent: u32,
    }

    impl ModelSite {
        const ROOM: usize = 40;

        /// An agent asks. The host serves one datagram at a time; `patience` are the moments that the agent
        /// has, each with whether the host works, and whether a repetition is due.
        fn ask(&mut self, patience: impl Iterator<Item = (bool, bool)>, is_heard: bool) -> ModelRunEnd {
            self.runs += 1;
            let number = self.runs;
            let ledger = self.ledger.get_or_insert_with(|| PortLedger::read(b"free", BOOT, 1000));
            let mut turn = SeenCalls::new(ledger.clone());
            let mut count = 0;
            let mut send = |ledger: &mut PortLedger, queue: &mut VecDeque<u8>| {
                count += 1;
                ledger.enter(run(number), 1030, &sent(count));
                if is_heard && queue.len() < Self::ROOM {
                    queue.push_back(number);
                }
                count
            };
            let mut sent = send(ledger, &mut self.queue);
            for (works, is_due) in patience {
                let call = if works { self.queue.pop_front() } else { None };
                match call {
                    None if is_due => sent = send(ledger, &mut self.queue),
                    None => {}
                    Some(whose) if turn.admits(HOST) => {
                        assert_eq!(whose, number, "the answer to another request");
                        ledger.note_admitted(HOST, &turn);
                        ledger.settle(run(number), &[turn], 1000);
                        return ModelRunEnd { is_answered: true, sent };
                    }
                    Some(_) => {
                        ledger.note_refused(HOST);
                        sent = send(ledger, &mut self.queue);
                    }
                }
            }
            ModelRunEnd { is_answered: false, sent }
        }

        fn debt(&self) -> u32 {
            self.ledger.as_ref().map_or(0, |it| it.calls(HOST))
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        /// Time-outs, lost datagrams and a host that stands still do not feed themselves. No run leaves more
        /// than it found, but for its first datagram and its repetitions. As soon as the host is well each
        /// run is answered, with as many datagrams as were left, and one.
        #[test]
        fn debts_do_not_grow_by_hanging_up(
            runs in prop::collection::vec(
                (prop::collection::vec((any::<bool>(), 0..8_u8), 0..60), any::<bool>(), 0..4_u8), 0..30)
        ) {
            let mut site = ModelSite::default();
            let mut allowed = 0;
            for (patience, is_heard, unheard) in runs {
                let repetitions = patience.iter().filter(|it| it.1 == 0).count();
                site.ask(patience.into_iter().map(|(works, due)| (works, due == 0)), is_heard);
                allowed += 1 + u32::try_from(repetitions).unwrap();
                prop_assert!(site.debt() <= allowed, "{} > {}", site.debt(), allowed);
                // Served while nobody listens.
                for _ in 0..unheard {
                    site.queue.pop_front();
                }
            }
            for _ in 0..8 {
                let debt = site.debt();
                let end = site.ask(std::iter::repeat_n((true, true), 4000), true);
                prop_assert!(end.is_answered, "lost, with {debt} left");
                prop_assert!(end.sent <= debt + 1, "{} sent, {} left", end.sent, debt);
                prop_assert!(site.debt() <= debt, "{} left of {}", site.debt(), debt);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        /// A call-back that is taken is for the own request, whatever agents and hosts do.
        #[test]
        fn no_answer_is_another_requests(
            steps in prop::collection::vec((0..23_u8, any::<u8>(), any::<u8>()), 0..300)
        ) {
            let mut model = LedgerModel::new();
            for (what, a, b) in steps {
                model.step(what, a, b)?;
            }
        }

        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>, now in 0..u64::MAX) {
            let ledger = PortLedger::read(&bytes, BOOT, now);
            prop_assert_eq!(PortLedger::read(ledger.to_text(BOOT).as_bytes(), BOOT, now), ledger);
        }
    }
}
