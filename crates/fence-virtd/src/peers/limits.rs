// SPDX-License-Identifier: GPL-2.0-or-later
//! Every limit of the messages between hosts, in one place. docs/limits.md explains each limit to
//! administrators. (The number of hosts is `MAX_HOSTS` of fence-core.)

use std::time::Duration;

/// Time for the other hosts to answer a question. The request's own deadline may end it before.
pub(super) const PEER_LIMIT: Duration = Duration::from_secs(2);
/// Part of it that is left for the answer, and not used to look; a quarter at most.
pub(super) const ANSWER_WAY: Duration = Duration::from_millis(250);
/// Time after a hello in which two daemons with one key pair both answer it.
pub(super) const SETTLE: Duration = Duration::from_millis(300);
/// Times after the question at which it is sent to those who have not answered.
pub(super) const ASK_AT: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(350),
    Duration::from_millis(750),
    Duration::from_millis(1500),
];
/// Questions of this host that are open at once.
pub(super) const MAX_QUESTIONS: usize = 256;
/// Open questions with which none is asked any more whether a machine that runs here runs elsewhere too.
pub(super) const MAX_SEEKING: usize = MAX_QUESTIONS / 2;
/// Questions of other hosts that are looked up at once. The asker repeats those that find no room.
pub(super) const MAX_LOOKS: usize = 32;
/// Answers that are kept for repeats of their question.
pub(super) const MAX_KEPT_ANSWERS: usize = 512;
/// Answers that are kept of one asker, or of one address.
pub(super) const MAX_KEPT_OF_ONE: usize = 64;
/// Questions of one asker, or of one address, that are looked up at once.
pub(super) const MAX_LOOKS_OF_ONE: usize = 16;
/// Time for which they are kept: longer than a question is repeated.
pub(super) const ANSWER_KEPT: Duration = Duration::from_secs(5);
/// Hellos that are answered in one second.
pub(super) const MAX_HELLOS_PER_SECOND: u32 = 50;
/// Hellos of this host that are remembered, to know their echo and their answers.
pub(super) const KEPT_HELLOS: usize = 256;
/// Keys with which each message is sent: during a change of keys there are two.
pub(super) const MAX_KEYS: usize = 8;
/// Time for the command that proves a silent host down.
pub(super) const DOWN_COMMAND_LIMIT: Duration = Duration::from_secs(10);
/// Time after a hanging command was killed in which it is not asked again about the same host.
pub(super) const DOWN_COMMAND_PAUSE: Duration = Duration::from_secs(3);
/// Characters of its first line of output that are told.
pub(super) const DOWN_COMMAND_WORD: usize = 120;
/// Time to read the files at the start.
pub(super) const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// Times of a search at which it asks for lists, at the start. A host that is slow or not up yet is asked
/// again soon. Few: where a firewall keeps the call-backs out, each one holds a C daemon up for 5 s.
pub(super) const SEARCH_AT: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(3), Duration::from_secs(10), Duration::from_secs(25)];
/// Time of this search, in which late call-backs are taken. A question about a domain interrupts it.
pub(super) const SEARCH_AT_START: Duration = Duration::from_secs(30);
/// Time of a later search, which asks once.
pub(super) const SEARCH_LATER: Duration = Duration::from_secs(10);
/// Time between two searches for hosts without host messages.
pub(super) const LEGACY_EVERY: Duration = Duration::from_secs(300);
/// Least time between two of these searches, whatever shows that others exist: each one makes every C daemon
/// call back.
pub(super) const LEGACY_PAUSE: Duration = Duration::from_secs(30);
/// Time to find the host of a migration, before the log warns that there is none; so also the least time
/// between two such warnings.
pub(super) const MIGRATION_SETTLE: Duration = Duration::from_secs(40);
/// Time after a message with this host's name and no proof in which another daemon may have its key pair:
/// longer than that between two hellos.
pub(super) const CLAIM_KEPT: Duration = Duration::from_secs(150);
/// Time for which an answer waits until the file of hosts has those who gave it.
pub(super) const KEEP_LIMIT: Duration = Duration::from_secs(1);
/// Pause between two writings of the file of hosts, where nobody must answer who had not to before.
pub(super) const WRITE_PAUSE: Duration = Duration::from_secs(1);
/// Time in which the nodes of a cluster tell each other their keys, before this host says hello to hosts that
/// are no nodes. Where corosync is not there hello is said all the same.
pub(super) const MEET_NODES: Duration = Duration::from_secs(4);
/// Pause between two looks whether they have.
pub(super) const NODES_PAUSE: Duration = Duration::from_millis(20);
/// Time for the word of this host to be read by the daemons of the other nodes.
pub(super) const NODES_SETTLE: Duration = Duration::from_millis(100);
/// Time after that in which hosts that are no nodes are heard, at the start.
pub(super) const NODES_ROUND: Duration = Duration::from_secs(2);
