// SPDX-License-Identifier: GPL-2.0-or-later
//! `groups { … }`: sources, and the domains that they may fence.

use std::net::IpAddr;

use crate::check::checker::Checker;
use crate::check::text::parse_number;
use crate::diagnostic::{DiagnosticCode, show};
use crate::schema::Group;
use crate::tree::{Assignment, Block};

impl Checker<'_> {
    pub(super) fn read_groups(&mut self, block: &Block) -> Vec<Group> {
        let body = self.read_block("groups", &block.items);
        if body.blocks.is_empty() {
            self.findings.warning(
                DiagnosticCode::EmptyGroup,
                block.id.span,
                "`groups` has no group: nobody may fence anything (the C daemon takes it for no limit at all)"
                    .to_owned(),
                Some("remove `groups` to let everyone with the key fence everything".to_owned()),
            );
        }
        body.blocks.iter().map(|it| self.read_group(it)).collect()
    }

    fn read_group(&mut self, block: &Block) -> Group {
        let body = self.read_block("groups/group", &block.items);
        if body.key("ip").is_none() && body.key("uuid").is_none() {
            self.findings.warning(
                DiagnosticCode::EmptyGroup,
                block.id.span,
                "a group without `ip` and `uuid` allows nobody anything".to_owned(),
                None,
            );
        }
        let name = match (body.key("name"), &block.value) {
            (Some(key), _) => Some(show(&key.value.text.bytes)),
            (None, Some(value)) => Some(show(&value.text.bytes)),
            (None, None) => None,
        };
        Group {
            name,
            ips: body.keys("ip").filter_map(|it| self.read_source(it)).collect(),
            uuids: body.keys("uuid").filter_map(|it| self.read_domain(it)).collect(),
            key_files: body.keys("key_file").filter_map(|it| self.read_path(it)).collect(),
            span: block.span,
        }
    }

    /// Reads a source: an IP address, returned in canonical form, or a vsock context id.
    fn read_source(&mut self, assignment: &Assignment) -> Option<String> {
        let text = self.trimmed(assignment)?;
        let word = std::str::from_utf8(text).ok();
        let ip = word.and_then(|it| it.parse::<IpAddr>().ok()).map(|it| it.to_canonical().to_string());
        let source = ip.or_else(|| parse_number(text).map(|it| it.to_string()));
        if source.is_none() {
            self.report_bad_value(
                assignment,
                "allowed: an IP address, or the CID of a guest on vsock".to_owned(),
            );
        }
        source
    }

    fn read_domain(&mut self, assignment: &Assignment) -> Option<String> {
        let text = self.trimmed(assignment)?;
        let text =
            std::str::from_utf8(text).ok().filter(|it| !it.is_empty() && !it.contains(char::is_control));
        if text.is_none() {
            self.report_bad_value(assignment, "allowed: the UUID or the name of a domain".to_owned());
        }
        text.map(str::to_owned)
    }
}
