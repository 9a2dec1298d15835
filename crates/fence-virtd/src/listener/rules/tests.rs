// SPDX-License-Identifier: GPL-2.0-or-later
//! Property test: a request that waited over a reload runs exactly if the new rules would take it now.

use std::cell::Cell;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use fence_core::access::{AccessDecision, AccessSubject, Identity};
use fence_core::domain::DomainId;
use fence_wire::{Action, Key, Received, Request, Target};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;

const KEYS: [&str; 3] = ["a", "b", "c"];
const CLASSIC: [HashType; 4] = [HashType::None, HashType::Sha1, HashType::Sha256, HashType::Sha512];
const UUIDS: [&str; 2] = ["11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"];

/// A configuration as it is drawn.
#[derive(Clone, Debug)]
struct DrawnConfig {
    own: Vec<&'static str>,
    groups: Option<Vec<(Vec<&'static str>, Vec<&'static str>)>>,
    hash: HashType,
    auth: HashType,
}

fn configs() -> impl Strategy<Value = DrawnConfig> {
    let group = (subsequence(&KEYS, 0..=2), subsequence(&UUIDS, 0..=2));
    (
        subsequence(&KEYS, 1..=2),
        proptest::option::of(vec(group, 0..=2)),
        select(&HashType::ALL),
        select(&CLASSIC),
    )
        .prop_map(|(own, groups, hash, auth)| DrawnConfig { own, groups, hash, auth })
}

impl DrawnConfig {
    fn load(&self, directory: &Path, cache: &Arc<KeysInUse>) -> ListenerRules {
        let files = |names: &[&str]| -> String {
            names.iter().map(|it| format!("key_file = \"{}/{it}\"; ", directory.display())).collect()
        };
        let groups = self.groups.as_ref().map(|groups| {
            let group = |(keys, uuids): &(Vec<&str>, Vec<&str>)| {
                let uuids: String = uuids.iter().map(|it| format!("uuid = \"{it}\"; ")).collect();
                format!("group {{ ip = \"10.0.0.1\"; {}{uuids}}} ", files(keys))
            };
            format!("groups {{ {} }}", groups.iter().map(group).collect::<String>())
        });
        let text = format!(
            "fence_virtd {{ listener = \"tcp\"; backend = \"libvirt\"; }} backends {{ libvirt {{ }} }} \
             listeners {{ tcp {{ {}hash = \"{}\"; auth = \"{}\"; }} }} {}",
            files(&self.own),
            self.hash,
            self.auth,
            groups.unwrap_or_default()
        );
        let loaded = fence_config::load(text.as_bytes());
        let config = loaded.config.unwrap_or_else(|| panic!("{text}: {:?}", loaded.diagnostics));
        ListenerRules::load(&config.listeners[0], &GroupSettings::new(&config, cache)).unwrap()
    }
}

/// The keys, whose fingerprints are computed once.
struct KeyRing {
    directory: tempfile::TempDir,
    cache: Arc<KeysInUse>,
    _keys: Arc<ListenerKeys>,
}

impl KeyRing {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let files: Vec<_> = KEYS.iter().map(|it| directory.path().join(it)).collect();
        for (file, name) in files.iter().zip(KEYS) {
            std::fs::write(file, name.repeat(20)).unwrap();
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        let (keys, _) = ListenerKeys::load(&files, &[], KeyRule::RefuseExposed, None).unwrap();
        let (cache, keys) = (Arc::<KeysInUse>::default(), Arc::new(keys));
        cache.add(&keys);
        Self { directory, cache, _keys: keys }
    }

    fn rules(&self, config: &DrawnConfig) -> ListenerRules {
        config.load(self.directory.path(), &self.cache)
    }
}

fn packet(hash: HashType, key: &str) -> Vec<u8> {
    let request = Request {
        action: Action::Off,
        target: Target::new("x", false).unwrap(),
        sequence: 1,
        nonce: [7; 6],
        call_back: None,
    };
    match hash {
        HashType::None => request.encode_unauthenticated().to_vec(),
        hash => request.encode(hash, &Key::new(key.repeat(20).as_bytes()).unwrap()).to_vec(),
    }
}

fn decisions(access: &AccessRules, key: Option<&KeyProof>) -> Vec<AccessDecision> {
    let source = Identity { ip: Some([10, 0, 0, 1].into()), ..Identity::default() };
    let decide = |uuid: &str| {
        let uuid = DomainId::parse(uuid).unwrap();
        access.decide(&source, key, AccessSubject::Domain { uuid, name: "x" })
    };
    UUIDS.iter().map(|it| decide(it)).collect()
}

/// Returns what the new rules say to the very same request if it came now; none where they drop it.
fn asked_now(
    packet: &[u8],
    received: &Received,
    old: &ListenerRules,
    new: &ListenerRules,
) -> Option<Vec<AccessDecision>> {
    let again = Request::decode(packet, new.minimum, new.auth.keys.all()).ok()?;
    if received.sealed.is_none() && old.auth.hash < new.auth.hash {
        return None;
    }
    if received.key.is_none() && old.auth.hash != HashType::None {
        // The key of its challenge is the first one of the listener's own.
        let used = old.auth.keys.key(None)?;
        new.auth.keys.all().iter().position(|it| it.is_same(used)).filter(|it| new.auth.keys.is_own(*it))?;
    }
    Some(decisions(&new.access, new.auth.keys.proof(again.key).as_deref()))
}

#[test]
fn a_request_that_waits_over_a_reload_is_judged_as_one_that_comes_now() {
    let ring = KeyRing::new();
    let drawn = (configs(), configs(), select(&HashType::ALL), select(&KEYS));
    let [refused, changed] = [Cell::new(0), Cell::new(0)];
    let mut runner = proptest::test_runner::TestRunner::default();
    let result = runner.run(&drawn, |(before, after, hash, key)| {
        let [old, new] = [&before, &after].map(|it| ring.rules(it));
        let packet = packet(hash, key);
        let Ok(received) = Request::decode(&packet, old.minimum, old.auth.keys.all()) else {
            return Ok(());
        };
        let current = CurrentRules::new(old);
        let at_arrival = current.now();
        let judge = current.judge(&at_arrival, PacketProof::of(&received), received.hash);
        prop_assert!(matches!(judge.judge_again(), JudgedAgain::Same));
        let wanted = asked_now(&packet, &received, &at_arrival, &new);
        current.replace(new);
        match (judge.judge_again(), wanted) {
            (JudgedAgain::Refused(_), None) => refused.set(refused.get() + 1),
            (JudgedAgain::Changed { access, key }, Some(wanted)) => {
                prop_assert_eq!(decisions(&access, key.as_deref()), wanted);
                changed.set(changed.get() + 1);
            }
            (judged, wanted) => prop_assert!(false, "{judged:?}, wanted {wanted:?}"),
        }
        current.close();
        prop_assert!(matches!(judge.judge_again(), JudgedAgain::Refused(_)));
        Ok(())
    });
    result.unwrap();
    assert!(refused.get() > 0 && changed.get() > 0, "{refused:?} {changed:?}");
}

#[tokio::test]
async fn a_request_that_waits_hears_of_each_change() {
    let ring = KeyRing::new();
    let (own, hash) = (vec!["a"], HashType::Sha256);
    let config = DrawnConfig { own, groups: None, hash, auth: hash };
    let current = CurrentRules::new(ring.rules(&config));
    let judge = current.judge(&current.now(), PacketProof::none(), hash);
    let soon = std::time::Duration::from_millis(20);
    assert!(tokio::time::timeout(soon, judge.reloaded()).await.is_err(), "nothing was changed");
    let reloaded = judge.reloaded();
    current.replace(ring.rules(&config));
    reloaded.await;
    let closed = judge.reloaded();
    current.close();
    closed.await;
}
