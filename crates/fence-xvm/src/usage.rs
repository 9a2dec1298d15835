// SPDX-License-Identifier: GPL-2.0-or-later
//! Errors in the options.
//!
//! Owns their texts. Must never show control characters of a value that it quotes.

use std::io;
use std::net::IpAddr;

use fence_cli::getopt::{GetoptError, Name};
use fence_wire::{HashType, TargetError, escaped};

/// Error in the options.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UsageError {
    /// The command line has an unknown option, or one without its value.
    #[error(transparent)]
    Getopt(#[from] GetoptError),
    /// Standard input cannot be read.
    #[error("cannot read standard input: {0}")]
    Stdin(io::Error),
    /// Standard input has more bytes than this. A part of it could mean something else.
    #[error("standard input is longer than {0} bytes: send only the agent's options")]
    StdinTooLong(u64),
    /// A name on standard input has no value.
    #[error("option '{}' on standard input needs a value (NAME=VALUE)", escaped(.0))]
    NoValue(String),
    /// The option exists for compatibility only, and has no meaning.
    #[error("option {0} is not supported")]
    Unsupported(Name),
    /// The value does not fit its option.
    #[error("{option}: '{}' is not {expected}", escaped(.value))]
    Value {
        /// Option as the user wrote it.
        option: String,
        /// Value as the user wrote it.
        value: String,
        /// Description of valid values.
        expected: &'static str,
    },
    /// There is no such action.
    #[error("unknown action '{}'", escaped(.0))]
    Action(String),
    /// The action of a diagnosis changes something, or no host answers it.
    #[error(
        "--diagnose asks for status or monitor, or what an off, on or reboot would do, and for nothing else: \
         not for {0}"
    )]
    DiagnoseAction(String),
    /// A question what an action would do goes sealed, and here it can't.
    #[error(
        "--diagnose -o {action} asks the host under a seal what {action} would do, and {why}: nothing was \
         asked. \
         Ask for -o status instead"
    )]
    DryRun {
        /// Action.
        action: &'static str,
        /// Reason.
        why: &'static str,
    },
    /// Two targets differ.
    #[error(
        "two different domains are given, '{}' and '{}'; Pacemaker names one of them itself (port=), from \
         pcmk_host_map or by the node's name: remove plug= (port=) from the device, and set pcmk_host_map \
         where the names differ", escaped(.0), escaped(.1)
    )]
    TwoTargets(String, String),
    /// The action needs a target, and there is none.
    #[error("no domain given: action {0} needs one (-n on the command line, plug= on standard input)")]
    NoTarget(&'static str),
    /// A sealed request has its challenge switched off.
    #[error(
        "auth none (-C none) cannot go with hash {0}: a sealed request is always challenged; leave auth out"
    )]
    SealedUnchallenged(HashType),
    /// The challenge is sealed, and the request is not.
    #[error(
        "auth {0} (-C) goes only with hash {0} (-c): request, challenge and response are sealed together"
    )]
    SealedChallenge(HashType),
    /// The request is sealed, and its transport has no hash.
    #[error(
        "hash {0} (-c) does not work on a serial line or VM channel, where nothing is hashed: leave hash out"
    )]
    SealedLine(HashType),
    /// The target is not valid.
    #[error("the domain's name {0}")]
    Target(#[from] TargetError),
    /// The group is of the other address family.
    #[error("multicast address {group} is not of family {family}")]
    Family {
        /// Group.
        group: IpAddr,
        /// Name of the family.
        family: &'static str,
    },
}
