// SPDX-License-Identifier: GPL-2.0-or-later
//! Every limit of the questions to hosts without host messages. docs/limits.md explains each limit to
//! administrators.

use std::time::Duration;

/// Time in which hosts that nobody knew can call back.
pub(crate) const FIND_LIMIT: Duration = Duration::from_secs(2);
/// Time in which the hosts that are known must call back. A daemon of ours that does not have the domain
/// waits for 2 s (`negative_delay`) first.
pub(crate) const LOOK_LIMIT: Duration = Duration::from_secs(3);
/// Time for one call-back: proof, list and response.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(2);
/// Time for which others are waited for when nobody is missing any more.
pub(super) const GRACE: Duration = Duration::from_millis(20);
/// Times at which a question is sent, until nobody is missing. Few: where a firewall keeps the call-backs
/// out, each one holds a C daemon up for 5 s.
pub(super) const SEND_AT: [Duration; 2] = [Duration::ZERO, Duration::from_millis(400)];
/// Call-backs at once.
pub(super) const MAX_CALLS: usize = 256;
/// Call-backs of one address in one question.
pub(super) const MAX_CALLS_OF_HOST: usize = 32;
/// Domains of one list.
pub(super) const MAX_LISTED: usize = 10_000;
