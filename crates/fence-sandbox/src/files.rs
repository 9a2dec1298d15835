// SPDX-License-Identifier: GPL-2.0-or-later
//! Landlock: limits on files, TCP ports and receivers of signals.
//!
//! Landlock does not limit tests whether a file exists, nor connections to UNIX sockets by their paths.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use crate::needs::{Needs, TcpAccess};
use crate::protection::Enforcement;

/// Newest set of rights that we ask for; older kernels leave some of them out. Later sets limit more than we
/// want, so a newer number has to be tried first.
const RIGHTS: ABI = ABI::V6;

pub(crate) fn confine(needs: &Needs) -> Enforcement {
    let status = rules(needs).and_then(RulesetCreated::restrict_self);
    match status.map(|it| it.ruleset) {
        Ok(RulesetStatus::FullyEnforced) => Enforcement::On,
        Ok(RulesetStatus::PartiallyEnforced) => Enforcement::Partly,
        Ok(RulesetStatus::NotEnforced) => {
            Enforcement::Off("this kernel has no Landlock, or it is not enabled".into())
        }
        Err(error) => Enforcement::Off(format!("Landlock: {error}")),
    }
}

fn rules(needs: &Needs) -> Result<RulesetCreated, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let run = if needs.calls.programs { AccessFs::Execute.into() } else { BitFlags::EMPTY };
    // All rights but making devices, which nothing of ours does.
    let write = AccessFs::from_all(RIGHTS) & !(AccessFs::MakeBlock | AccessFs::MakeChar | AccessFs::Execute);

    let mut ruleset = Ruleset::default().handle_access(AccessFs::from_all(RIGHTS))?;
    if needs.tcp != TcpAccess::Any {
        ruleset = ruleset.handle_access(AccessNet::from_all(RIGHTS))?;
    }
    if !needs.calls.programs {
        ruleset = ruleset.scope(Scope::Signal)?;
    }
    if !needs.calls.abstract_sockets {
        ruleset = ruleset.scope(Scope::AbstractUnixSocket)?;
    }
    let mut created = ruleset.create()?;
    for path in &needs.read {
        created = allow(created, path, read | run)?;
    }
    for path in &needs.write {
        created = allow(created, path, write)?;
    }
    for path in &needs.remove {
        created = allow(created, path, AccessFs::RemoveFile.into())?;
    }
    match needs.tcp {
        TcpAccess::To(port) => created.add_rule(NetPort::new(port, AccessNet::ConnectTcp)),
        TcpAccess::Bind(first, last) => (first..=last)
            .try_fold(created, |created, port| created.add_rule(NetPort::new(port, AccessNet::BindTcp))),
        TcpAccess::None | TcpAccess::Any => Ok(created),
    }
}

/// Adds a rule for a path. A path that does not exist or cannot be opened is left out.
fn allow(
    created: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(open) = PathFd::new(path) else { return Ok(created) };
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(RIGHTS) };
    created.add_rule(PathBeneath::new(open, access))
}
