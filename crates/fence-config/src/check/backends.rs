// SPDX-License-Identifier: GPL-2.0-or-later
//! `backends { … }`: libvirt and cpg. The agent backend has a file of its own.

use crate::check::checker::{BlockBody, Checker};
use crate::check::known::uri_number;
use crate::diagnostic::DiagnosticCode;
use crate::schema::{
    Backend, BackendKind, CpgBackend, DEFAULT_GROUP, DEFAULT_URI, HostDown, HostDownWord, LibvirtBackend,
    MAX_GROUP_NAME, NameMode,
};
use crate::tree::Assignment;

impl Checker<'_> {
    pub(super) fn read_backend(
        &mut self,
        section: &BlockBody<'_>,
        kind: BackendKind,
        name_mode: Option<NameMode>,
    ) -> Backend {
        let path = match kind {
            BackendKind::Libvirt => "backends/libvirt",
            BackendKind::Cpg => "backends/cpg",
            BackendKind::Agent => return Backend::Agent(self.read_agent_backend(section)),
        };
        let body =
            section.block(kind.as_str()).map(|it| self.read_block(path, &it.items)).unwrap_or_default();
        let uris = self.read_uris(&body);
        match kind {
            BackendKind::Libvirt => Backend::Libvirt(LibvirtBackend {
                uris,
                reboot_starts: self.read_word(body.key("reboot_starts")).unwrap_or(false),
            }),
            BackendKind::Cpg => Backend::Cpg(CpgBackend {
                uris,
                name_mode: self.read_word(body.key("name_mode")).or(name_mode).unwrap_or(NameMode::Uuid),
                reboot_starts: self.read_word(body.key("reboot_starts")).unwrap_or(false),
                group: body
                    .key("group")
                    .and_then(|it| self.read_group_name(it))
                    .unwrap_or_else(|| DEFAULT_GROUP.to_owned()),
                host_down: self.read_host_down(&body),
            }),
            BackendKind::Agent => Backend::Agent(self.read_agent_backend(section)),
        }
    }

    /// Warns where backend cpg has no block and libvirt has one, as in an example of the C daemon's manual:
    /// the `uri` of libvirt does not count.
    pub(super) fn report_swapped_backends(&mut self, section: &BlockBody<'_>, used: &[BackendKind]) {
        let is_swapped = used.contains(&BackendKind::Cpg) && section.block("cpg").is_none();
        let Some(block) = section.block("libvirt").filter(|_| is_swapped) else { return };
        self.findings.warning(
            DiagnosticCode::NoEffect,
            block.id.span,
            format!(
                "the block `libvirt` is not used with backend = \"cpg\", which has no block of its own: \
                 its uri is \"{DEFAULT_URI}\""
            ),
            Some("write cpg { uri = \"…\"; } in `backends`, with the keys of this block".to_owned()),
        );
    }

    fn read_group_name(&mut self, assignment: &Assignment) -> Option<String> {
        let text = self.trimmed(assignment)?;
        let name = std::str::from_utf8(text)
            .ok()
            .filter(|name| name.bytes().all(|it| it.is_ascii_graphic()) && name.len() <= MAX_GROUP_NAME);
        if name.is_none() {
            let allowed =
                format!("allowed: the name of a group, at most {MAX_GROUP_NAME} characters without blanks");
            self.report_bad_value(assignment, allowed);
        }
        name.map(str::to_owned)
    }

    fn read_host_down(&mut self, body: &BlockBody<'_>) -> HostDown {
        let mode = body.key("host_down");
        let command = body.key("host_down_command");
        let word = self.read_word(mode).unwrap_or(HostDownWord::Never);
        if let (Some(command), true) = (command, word != HostDownWord::Command) {
            self.findings.warning(
                DiagnosticCode::NoEffect,
                command.id.span,
                format!("`host_down_command` has no effect with host_down = \"{word}\""),
                Some("set host_down = \"command\"".to_owned()),
            );
        }
        match word {
            HostDownWord::Never => HostDown::Never,
            HostDownWord::Pacemaker => HostDown::Pacemaker,
            HostDownWord::Membership => HostDown::Membership,
            HostDownWord::Command => match (command.and_then(|it| self.read_path(it)), mode) {
                (Some(path), _) => HostDown::Command(path),
                (None, Some(mode)) => {
                    self.report(
                        DiagnosticCode::BadValue,
                        mode.value.text.span,
                        "host_down = \"command\" needs `host_down_command`".to_owned(),
                        "add host_down_command = \"/path/of/the/command\"".to_owned(),
                    );
                    HostDown::Never
                }
                (None, None) => HostDown::Never,
            },
        }
    }

    fn read_uris(&mut self, body: &BlockBody<'_>) -> Vec<String> {
        let mut numbered: Vec<_> =
            body.keys.iter().filter_map(|it| Some((uri_number(&it.id.bytes)?, *it))).collect();
        numbered.sort_by_key(|&(number, _)| number);
        // Of one key, the last assignment counts; the sort keeps their order.
        numbered.reverse();
        numbered.dedup_by_key(|&mut (number, _)| number);
        numbered.reverse();
        let uris: Vec<_> = numbered.into_iter().filter_map(|(_, it)| self.read_uri(it)).collect();
        if uris.is_empty() { vec![DEFAULT_URI.to_owned()] } else { uris }
    }
}
