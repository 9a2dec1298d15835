// SPDX-License-Identifier: GPL-2.0-or-later
//! A request and its key in words, for every message about them.
//!
//! Owns nothing. Pure. Must never show a key, only its fingerprint.

use fence_wire::{Key, escaped};

use crate::plan::RequestPlan;

/// Hint for a sealed request without an answer.
pub(crate) const CLASSIC_HOST_HINT: &str = "a host of the C programs drops sealed requests (hash hmac-...) \
                                            as unknown, and without a word: such hosts need hash sha256";

/// Describes the request: action and target.
pub(crate) fn describe_request(plan: &RequestPlan) -> String {
    let what = match plan.dry_run {
        Some(action) => format!("what {action} would do to"),
        None => plan.action.to_string(),
    };
    format!("{what} {}", escaped(plan.target.as_str())).trim_end().to_owned()
}

/// Returns whether the request goes sealed.
pub(crate) fn is_sealed(plan: &RequestPlan) -> bool {
    plan.hash.sealed().is_some()
}

/// Describes the key and its use.
pub(crate) fn describe_key(plan: &RequestPlan, key: Option<&Key>) -> String {
    match key {
        Some(key) => {
            let (file, fingerprint, hash) = (plan.key_file.display(), key.fingerprint(), plan.hash);
            if is_sealed(plan) {
                format!("key {file} (fingerprint {fingerprint}, hash {hash}, sealed)")
            } else {
                format!("key {file} (fingerprint {fingerprint}, hash {hash}, auth {})", plan.auth)
            }
        }
        None => "no key (hash none, auth none)".to_owned(),
    }
}
