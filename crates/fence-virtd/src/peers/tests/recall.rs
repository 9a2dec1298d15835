// SPDX-License-Identifier: GPL-2.0-or-later
//! Memories that hosts tell for a start that another one owes.

use fence_core::owed_start::PlaceWord;

use super::*;

impl Host {
    async fn recalls(&self) -> Vec<PlaceWord> {
        let question = DomainQuestion::new(DomainId::from_bytes([7; 16]), "vm1".to_owned());
        let until = Instant::now() + Duration::from_secs(5);
        self.peers.recall(&question, until).await.into_iter().map(|(_, word)| word).collect()
    }
}

/// A host tells its memory when it is asked for it, and silence is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_is_told_to_the_one_who_asks_for_it() {
    let (ports, b) = ([port(), port()], StateDir::new());
    let a = Host::listed(ports[0], &ports[1..], None).await;
    let b = Host::listed(ports[1], &ports[..1], Some(b.path())).await;
    b.shows(Sight::Off);
    a.look().await;
    let remembered = b.shown.recall_here(DomainId::from_bytes([7; 16]));
    assert_eq!(a.recalls().await, [PlaceWord::Memory(remembered)]);
    assert_eq!(a.sights().await, [Sight::Off], "others get the answer of before");
    b.end().await;
    assert!(matches!(&a.recalls().await[..], [PlaceWord::Unheard(_)]));
}

/// With `peers = "none"` no host can have the domain.
#[tokio::test]
async fn a_lone_host_asks_nobody() {
    assert_eq!(Host::new(PeerMode::Off, port(), None).await.recalls().await, []);
}
