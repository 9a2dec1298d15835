// SPDX-License-Identifier: GPL-2.0-or-later
//! Evidence that a domain is off: what each place showed after the request came, and the one judgement of it.
//!
//! Owns [`ProvedOff`], without which no layer can say "off". It can be made in three ways only: an instance
//! that ran at a place was ended there and the place was looked at again; every place where the domain can
//! be was looked at, twice where there are several, and none has it; or the devices of the domain said so. A
//! memory, an earlier answer or a silence is no [`Finding`]. Pure; time is a parameter.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use crate::domain_id::DomainId;

pub mod last_seen;
pub mod namesakes;
pub mod recall;

/// Part of a time by which two clocks may differ after it: 200 millionths, twice what a quartz differs.
pub(crate) const CLOCK_DRIFT: u32 = 5_000;

/// Sight of a domain at one place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sight {
    /// An instance is there: it runs, or is paused but not by a migration.
    On,
    /// An instance is there that comes or goes: a migration paused it, or it just starts. The machine may
    /// run at another place.
    Moving,
    /// No instance is there. One that ran there was seen to end for good, and nothing happened to the domain
    /// at this place since. The time between that end and the look; none where the place can't tell.
    Ended(Option<Duration>),
    /// A definition is there, and no instance.
    Off,
    /// The place does not know the domain.
    Absent,
    /// No instance is there, because the machine moved to another place. The time between the move and the
    /// look: the move is not younger than that.
    MovedAway(Duration),
    /// The place is a host that is down, with all that ran there. The text is the evidence, for people.
    Down(String),
    /// The place could not be looked at, for this reason.
    Unknown(String),
}

impl Sight {
    /// Returns the age of an end or a move in milliseconds, as other hosts are told. Between the look and the
    /// reading of an answer an end gets older by the time of the answer, which the asker counts.
    pub fn age_ms(&self) -> Option<u64> {
        let ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        match self {
            Self::Ended(age) => age.map(|it| ms(it).saturating_add(1)),
            Self::MovedAway(age) => Some(ms(*age)),
            _ => None,
        }
    }
}

/// Place where a domain can be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum DomainSite {
    /// A hypervisor of this host, by its URI.
    Hypervisor(String),
    /// Another host, by its name and address.
    Host(String),
    /// A device of the agent backend, by its name.
    Device(String),
}

impl fmt::Display for DomainSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hypervisor(uri) => write!(f, "libvirt at {uri}"),
            Self::Host(name) => write!(f, "host {name}"),
            Self::Device(name) => write!(f, "device {name}"),
        }
    }
}

/// Sight of a domain at one place, with the time of the look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Place that was looked at.
    pub place: DomainSite,
    /// Sight that it showed.
    pub sight: Sight,
    /// Moment when the look began: what it shows is not older.
    pub began: Instant,
    /// Moment when the look ended.
    pub ended: Instant,
    /// Other domains with the name of the one that was asked about, of which no instance is there because the
    /// machine moved away, or was saved to a file: each may be on at another place, under this name.
    pub namesakes: Vec<DomainId>,
}

impl Finding {
    /// Builds a finding of a place from which no other domain with the name moved away.
    pub fn without_namesakes(place: DomainSite, sight: Sight, began: Instant, ended: Instant) -> Self {
        Self { place, sight, began, ended, namesakes: Vec::new() }
    }
}

/// Looks of one device at a domain since the last order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceLooks {
    /// The last look.
    pub last: Finding,
    /// End of the first of the looks since which none showed an instance; that of the last look where it is
    /// the only one.
    pub quiet_since: Instant,
}

/// Reason why a domain can't be called off.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Doubt {
    /// On at this place.
    #[error("the domain is on at {0}")]
    On(DomainSite),
    /// An instance comes or goes at this place.
    #[error("an instance at {0} is being migrated or just starts")]
    Moving(DomainSite),
    /// A place can't tell, or none was looked at in time.
    #[error("can't tell whether the domain is off: {0}")]
    CantTell(String),
    /// Another domain with its name may be on.
    #[error("can't tell whether the domain is off: {0}")]
    Namesake(String),
}

/// Proof that a domain is off. The module's head says how it comes about.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub struct ProvedOff {
    since: Instant,
    /// Evidence for each host that said nothing itself, because it is down.
    down: Vec<String>,
    /// Places from which the machine had moved away before it ended at another one.
    moved_from: Vec<DomainSite>,
}

impl ProvedOff {
    /// Judges complete rounds of looks, one finding for each place and round. `asked` is the moment when the
    /// request came. With namesakes in the looks it is [`Namesakes::prove`](namesakes::Namesakes::prove) that
    /// judges.
    ///
    /// # Errors
    /// Reason why a domain with the name may be on. A place that has an instance comes before one that can't
    /// tell.
    pub fn from_rounds(asked: Instant, rounds: &[Vec<Finding>]) -> Result<Self, Doubt> {
        let proof = Self::of_one(asked, rounds)?;
        match first_namesake(rounds, |_| true) {
            Some((look, other)) => Err(Doubt::Namesake(namesake_moved_away(look, other))),
            None => Ok(proof),
        }
    }

    /// Judges rounds of looks for the domain that was asked about, whatever else has its name.
    fn of_one(asked: Instant, rounds: &[Vec<Finding>]) -> Result<Self, Doubt> {
        let all = || rounds.iter().flatten();
        let last = rounds.last().into_iter().flatten();
        if let Some(it) = last.clone().find(|it| it.sight == Sight::On) {
            return Err(Doubt::On(it.place.clone()));
        }
        let has_instance = |it: &&Finding| matches!(it.sight, Sight::On | Sight::Moving);
        if let Some(it) = last.clone().find(has_instance).or_else(|| all().find(has_instance)) {
            return Err(Doubt::Moving(it.place.clone()));
        }
        let unknown: Vec<String> = last
            .filter_map(|it| match &it.sight {
                // The reason names its place.
                Sight::Unknown(why) => Some(why.clone()),
                _ => None,
            })
            .collect();
        if !unknown.is_empty() {
            return Err(Doubt::CantTell(unknown.join("; ")));
        }
        if let Some(it) = all().find(|it| matches!(it.sight, Sight::Unknown(_))) {
            return Err(Doubt::CantTell(format!("{} could not be looked at twice", it.place)));
        }
        let since = newest_common_moment(asked, rounds)?;
        let down = last_evidence(rounds);
        match open_move(rounds) {
            Some(it) => Err(moved_away(it, &down)),
            None => Ok(Self { since, down, moved_from: left_places(rounds) }),
        }
    }

    /// Returns the proof by an instance that ran at a place (no migration had it there) and was ended: the
    /// place was looked at after that, and the instance is gone. A machine runs at one place, so no other one
    /// has to be looked at. It is for the caller to know of no second instance.
    ///
    /// # Errors
    /// The look does not show that, or is older than the request.
    pub fn from_end(asked: Instant, look: &Finding) -> Result<Self, Doubt> {
        match look.sight {
            Sight::On => Err(Doubt::On(look.place.clone())),
            Sight::Moving => Err(Doubt::Moving(look.place.clone())),
            Sight::Unknown(ref why) => Err(Doubt::CantTell(why.clone())),
            Sight::MovedAway(_) => Err(moved_away(look, &[])),
            Sight::Down(_) => Err(Doubt::CantTell(format!("{} was not looked at", look.place))),
            Sight::Ended(_) | Sight::Off | Sight::Absent if look.began < asked => Err(too_old(look)),
            Sight::Ended(_) | Sight::Off | Sight::Absent => Ok(Self::by_looks(look.began)),
        }
    }

    /// Judges the looks of a domain's devices. The devices are ways to one machine, so one that could not be
    /// asked in its time is left out; one that says "on" is not. A machine may also move from one to another:
    /// of each two that have no instance, each was looked at again after the other.
    ///
    /// # Errors
    /// A device says "on", none says "off" in a report that is not older than the request, or the machine may
    /// have moved between the looks.
    pub fn from_devices(asked: Instant, looks: &[DeviceLooks]) -> Result<Self, Doubt> {
        let last = || looks.iter().map(|it| &it.last);
        if let Some(it) = last().find(|it| matches!(it.sight, Sight::On | Sight::Moving)) {
            return Err(Doubt::On(it.place.clone()));
        }
        let off = last().filter(|it| matches!(it.sight, Sight::Off | Sight::Ended(_)));
        if let Some(old) = off.clone().find(|it| it.began < asked) {
            return Err(too_old(old));
        }
        let quiet = || looks.iter().filter(|it| is_quiet(&it.last.sight));
        let is_other = |it: &DeviceLooks, other: &DeviceLooks| it.last.place != other.last.place;
        let missed =
            |it: &DeviceLooks| quiet().any(|other| is_other(it, other) && it.last.began < other.quiet_since);
        if let Some(it) = quiet().find(|it| missed(it)) {
            return Err(Doubt::CantTell(format!("{} was not looked at again", it.last.place)));
        }
        let since = off.map(|it| it.began).min();
        since.map(Self::by_looks).ok_or_else(|| Doubt::CantTell("no device says so".to_owned()))
    }

    fn by_looks(since: Instant) -> Self {
        Self { since, down: Vec::new(), moved_from: Vec::new() }
    }

    /// Returns the places from which the machine had moved away, by the last look at each, before it was seen
    /// to end. Such a move says nothing of the machine any more: a later one comes after a start at a place
    /// that sees it.
    pub fn moved_from(&self) -> &[DomainSite] {
        &self.moved_from
    }

    /// Returns the evidence for the hosts that were not looked at, because they are down; none where all
    /// places were.
    pub fn down(&self) -> Option<String> {
        (!self.down.is_empty()).then(|| self.down.join("; "))
    }

    /// Returns the moment since which the looks were made: nothing in the proof is older.
    pub fn since(&self) -> Instant {
        self.since
    }
}

/// Returns whether a device that was looked at has no instance.
fn is_quiet(sight: &Sight) -> bool {
    matches!(sight, Sight::Off | Sight::Ended(_) | Sight::Absent)
}

/// Checks that all places were looked at after the request came, and that there is a moment between two looks
/// at each of them; one look is enough where there is one place. Returns the beginning of the looks.
fn newest_common_moment(asked: Instant, rounds: &[Vec<Finding>]) -> Result<Instant, Doubt> {
    let nobody = || Doubt::CantTell("no place was looked at".to_owned());
    let places = |round: &[Finding]| round.iter().map(|it| it.place.clone()).collect::<BTreeSet<_>>();
    if let Some(old) = rounds.iter().flatten().find(|it| it.began < asked) {
        return Err(too_old(old));
    }
    let (last, before) = rounds.split_last().ok_or_else(nobody)?;
    let known: BTreeSet<DomainSite> = rounds.iter().flat_map(|it| places(it)).collect();
    let began = |round: &[Finding]| round.iter().map(|it| it.began).min().ok_or_else(nobody);
    if known.len() == 1 && last.len() == 1 {
        return began(last);
    }
    let twice = || Doubt::CantTell("not every place was looked at twice".to_owned());
    let first = before.last().ok_or_else(twice)?;
    if places(first) != known || places(last) != known {
        return Err(twice());
    }
    let first_ended = first.iter().map(|it| it.ended).max().ok_or_else(nobody)?;
    if first_ended > began(last)? {
        return Err(Doubt::CantTell("the looks at the places overlap".to_owned()));
    }
    began(first)
}

/// Returns a look that shows a move after which no look shows an end.
fn open_move(rounds: &[Vec<Finding>]) -> Option<&Finding> {
    let all = || rounds.iter().flatten();
    let mut moves = all().filter(|it| matches!(it.sight, Sight::MovedAway(_)));
    moves.find(|moved| !all().any(|end| ended_after(end, moved)))
}

/// Returns whether a place could not be looked at.
fn has_silence(rounds: &[Vec<Finding>]) -> bool {
    rounds.iter().flatten().any(|it| matches!(it.sight, Sight::Unknown(_)))
}

/// Returns the places where the last round shows a move.
fn left_places(rounds: &[Vec<Finding>]) -> Vec<DomainSite> {
    let moved = |it: &&Finding| matches!(it.sight, Sight::MovedAway(_));
    rounds.last().into_iter().flatten().filter(moved).map(|it| it.place.clone()).collect()
}

/// Returns what the last round says of hosts that are down.
fn last_evidence(rounds: &[Vec<Finding>]) -> Vec<String> {
    let of = |it: &Finding| match &it.sight {
        Sight::Down(evidence) => Some(format!("{} is down: {evidence}", it.place)),
        _ => None,
    };
    rounds.last().into_iter().flatten().filter_map(of).collect()
}

/// Returns the other domains with the name that looks tell of, each with a look that does.
pub fn namesakes_in(looks: &[Finding]) -> BTreeMap<DomainId, &Finding> {
    looks.iter().flat_map(|it| it.namesakes.iter().map(move |other| (*other, it))).collect()
}

/// Returns whether rounds of looks at every place show that the machine moved away from one, and nothing of
/// it since: no instance, no end, and no place that can't tell.
pub fn is_out_of_sight(rounds: &[Vec<Finding>]) -> bool {
    let has_instance = |it: &Finding| matches!(it.sight, Sight::On | Sight::Moving);
    !has_silence(rounds) && !rounds.iter().flatten().any(has_instance) && open_move(rounds).is_some()
}

/// Returns whether one round of looks, at every place, shows no sign of an instance. That is no proof: the
/// domain may move between two looks. Namesakes in the looks are for the caller to ask about.
pub fn seems_off(round: &[Finding]) -> bool {
    let is_off = |it: &Finding| match it.sight {
        Sight::On | Sight::Moving | Sight::Unknown(_) => false,
        Sight::MovedAway(_) => round.iter().any(|end| ended_after(end, it)),
        Sight::Ended(_) | Sight::Off | Sight::Absent | Sight::Down(_) => true,
    };
    !round.is_empty() && round.iter().all(is_off)
}

/// Returns what one host tells of all looks at its hypervisors: whatever speaks most against "off". Nothing
/// seen at all is no sight. An age is the one with which the sight says least.
pub fn strongest(looks: &[Finding]) -> Sight {
    let find = |wanted: fn(&Sight) -> bool| looks.iter().find(|it| wanted(&it.sight));
    let instance = find(|it| *it == Sight::On).or_else(|| find(|it| *it == Sight::Moving));
    let silence = || find(|it| matches!(it, Sight::Unknown(_) | Sight::Down(_)));
    if let Some(it) = instance.or_else(silence) {
        return it.sight.clone();
    }
    let Some(ended) = looks.iter().map(|it| it.ended).max() else {
        return Sight::Unknown("the hypervisors of this host were not looked at".to_owned());
    };
    let is_moved = |it: &&Finding| matches!(it.sight, Sight::MovedAway(_));
    // One that ended here after it came from another hypervisor of this host: where it is, is known.
    let open = looks.iter().filter(is_moved).filter(|moved| !looks.iter().any(|end| ended_after(end, moved)));
    let moves = open.filter_map(|it| match it.sight {
        Sight::MovedAway(age) => Some(age),
        _ => None,
    });
    if let Some(age) = moves.min() {
        return Sight::MovedAway(age);
    }
    let ends = looks.iter().filter_map(|it| match it.sight {
        Sight::Ended(age) => Some(age.map(|age| age + ended.saturating_duration_since(it.began))),
        _ => None,
    });
    // The youngest, as far as they are known.
    if let Some(age) = ends.min_by_key(|it| it.unwrap_or(Duration::MAX)) {
        return Sight::Ended(age);
    }
    find(|it| *it == Sight::Off).map_or(Sight::Absent, |it| it.sight.clone())
}

/// Returns whether the one look shows an end that came after the move that the other look shows. Then the
/// machine was back, or where it went to, and has ended there. An end of unknown age may be older.
fn ended_after(end: &Finding, moved: &Finding) -> bool {
    let (Sight::Ended(Some(end_age)), Sight::MovedAway(move_age)) = (&end.sight, &moved.sight) else {
        return false;
    };
    let is_own = |it: &Finding| matches!(it.place, DomainSite::Hypervisor(_));
    // Each host measures with its own clock.
    let drift = if is_own(end) && is_own(moved) { Duration::ZERO } else { *move_age / CLOCK_DRIFT };
    // The end came at `end.began - end_age` at the earliest, and the move at `moved.ended - move_age` at the
    // latest. All is added up, since no moment before the boot of this host can be told.
    let end = end.began.checked_add(*move_age);
    let moved = end_age.checked_add(drift).and_then(|it| moved.ended.checked_add(it));
    matches!((end, moved), (Some(end), Some(moved)) if end >= moved)
}

/// Returns whether a look shows an end that came after this moment by the clock of this host.
pub fn ended_since(look: &Finding, since: Instant) -> bool {
    let Sight::Ended(Some(age)) = look.sight else { return false };
    let age = age.checked_add(age / CLOCK_DRIFT);
    let until_look = look.began.checked_duration_since(since);
    matches!((age, until_look), (Some(age), Some(time)) if age <= time)
}

/// Returns why a domain that moved away is in doubt, and the next step. `down` is what is said of hosts that
/// are down: the machine may have been there, and no host that is asked will ever tell.
fn moved_away(look: &Finding, down: &[String]) -> Doubt {
    let place = match &look.place {
        DomainSite::Hypervisor(_) => format!("this host ({})", look.place),
        DomainSite::Host(_) | DomainSite::Device(_) => look.place.to_string(),
    };
    let why = if down.is_empty() {
        "no host that was asked saw the domain end after that, or nobody watched: fence_virtd or libvirtd \
         was away. Is the domain on at a host that is not asked? Name that host in `peers` of all hosts, and \
         reload (with cpg: it must be a node)"
            .to_owned()
    } else {
        format!(
            "no host that answered saw the domain end after that. {}. The domain may have moved to a host \
             that is down: be sure that this host is powered off",
            down.join("; ")
        )
    };
    Doubt::CantTell(format!(
        "the domain moved away from {place}, or was saved there to a file, and {why}. If the domain is off \
         everywhere, start the domain with virsh at a host that is asked, then fence the domain"
    ))
}

/// Returns the first namesake of this kind that a look names, with the look.
fn first_namesake(
    rounds: &[Vec<Finding>],
    is_meant: impl Fn(DomainId) -> bool,
) -> Option<(&Finding, DomainId)> {
    let mut heard = rounds.iter().flatten().flat_map(|it| it.namesakes.iter().map(move |other| (it, *other)));
    heard.find(|(_, other)| is_meant(*other))
}

/// Returns why a namesake that left this place is in doubt, and the next step.
pub fn namesake_moved_away(look: &Finding, other: DomainId) -> String {
    format!(
        "another domain with this name, UUID {other}, moved away from {}, or was saved there to a file, and \
         no host that was asked saw that domain end after that. Is that domain on at a host that is not \
         asked? Name that host in `peers` of all hosts, and reload. If that domain is off for good, \"It \
         moved away\" in docs/truth.md says how that place forgets the domain",
        look.place
    )
}

/// Returns why a host can't tell of so many namesakes that left it, and the next step.
pub fn namesakes_moved_away(look: &Finding, count: usize) -> String {
    format!(
        "{count} other domains with this name moved away from {}, or were saved there to a file, and that \
         host looks for these domains now: ask again in a moment. If this answer stays, \"It moved away\" in \
         docs/truth.md says how that place forgets the domains",
        look.place
    )
}

fn too_old(look: &Finding) -> Doubt {
    Doubt::CantTell(format!("{} was looked at before the request came", look.place))
}

#[cfg(test)]
mod tests;
