// SPDX-License-Identifier: GPL-2.0-or-later
//! The rules in force, as a request that waits meets them.
//!
//! A listener implements it. Nothing here knows keys or listeners.

use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;

use fence_core::access::{AccessRules, KeyProof};

/// The rules of the listener by which a request came. A reload may have changed them since.
pub(crate) trait RulesNow: Send + Sync + Debug {
    /// Judges the request by the rules that are in force now. Never waits.
    fn judge_again(&self) -> JudgedAgain;

    /// Waits for the next reload that begins after this call.
    fn reloaded(&self) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Judgement of a request that waits, or is about to run.
#[derive(Clone, Debug)]
pub(crate) enum JudgedAgain {
    /// Nothing was reloaded since the request came.
    Same,
    /// The listener still takes the request. The groups have to be asked again, with the key's present
    /// groups.
    Changed { access: Arc<AccessRules>, key: Option<Arc<KeyProof>> },
    /// The listener would not take the request any more; the text says why.
    Refused(String),
}
