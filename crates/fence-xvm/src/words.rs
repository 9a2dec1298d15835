// SPDX-License-Identifier: GPL-2.0-or-later
//! A request and its key in words, for every message about them.

use fence_wire::{Key, escaped};

use crate::plan::Plan;

/// What to think of when a sealed request has no answer.
pub(crate) const OLD_HOST: &str = "a host of the C programs drops sealed requests (hash hmac-...) as unknown, and \
    without a word: such hosts need hash sha256";

/// What is asked for.
pub(crate) fn request_in_words(plan: &Plan) -> String {
    format!("{} {}", plan.action, escaped(plan.target.as_str())).trim_end().to_owned()
}

/// Whether what is asked goes sealed.
pub(crate) fn is_sealed(plan: &Plan) -> bool {
    plan.hash.sealed().is_some()
}

/// The key and how it is used.
pub(crate) fn key_in_words(plan: &Plan, key: Option<&Key>) -> String {
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
