// SPDX-License-Identifier: GPL-2.0-or-later
//! Texts made from the table of options: help, version, metadata.

use std::fmt::Write;

use crate::options::{Id, Opt, Program, domain_alias};

/// The help, for the terminal.
pub(crate) fn help(program: Program) -> String {
    let mut text =
        format!("usage: {} [options]\n\nFences virtual machines: asks the host that runs ", program.name());
    text.push_str("one to power it off, on or round.\nA reboot leaves a machine that is off as it is.\n\n");
    for option in program.options() {
        row(&mut text, &forms(option), option);
    }
    text.push_str(
        "  -h, -?, --help                   Show this help\n  \
         -V, --version                    Show the version\n  \
         --diagnose                       \
         Ask for the status of -n (without -n: monitor) and say why no answer comes\n  \
         --keygen [FILE]                  \
         Make a new key in a new file, nothing else (default /etc/cluster/fence_xvm.key)\n",
    );
    text.push_str(
        "\nWithout any argument the options come from standard input, NAME=VALUE, one to a line:\n\n",
    );
    for option in program.options() {
        row(&mut text, option.name.unwrap_or_default(), option);
    }
    text.push_str("\nExit codes: 0 done (status: on), 1 failed, 2 status: off, 3 permission denied\n");
    text
}

/// The version.
pub(crate) fn version(program: Program) -> String {
    format!("{} {} (fence-virt in Rust)\n", program.name(), env!("CARGO_PKG_VERSION"))
}

/// The metadata for cluster managers, as XML.
pub(crate) fn metadata(program: Program) -> String {
    let name = program.name();
    let mut xml = String::from("<?xml version=\"1.0\" ?>\n");
    let _ = writeln!(xml, "<resource-agent name=\"{name}\" shortdesc=\"Fence agent for virtual machines\">");
    let _ = writeln!(
        xml,
        "<longdesc>{name} powers virtual machines off, on and round by asking fence_virtd on the host that runs \
         them.\n\nNote: reboot leaves a machine that is off as it is.</longdesc>"
    );
    xml.push_str("<vendor-url>https://www.clusterlabs.org</vendor-url>\n<parameters>\n");
    // Cluster shells compare the parameters with those of the C agents; the quiet time is ours alone.
    for option in program.options().filter(|o| o.id != Id::Quiet).chain([domain_alias()]) {
        parameter(&mut xml, option);
    }
    xml.push_str("</parameters>\n<actions>\n");
    for action in ACTIONS {
        let _ = writeln!(xml, "\t<action name=\"{action}\" />");
    }
    xml.push_str("</actions>\n</resource-agent>\n");
    xml
}

const ACTIONS: [&str; 10] =
    ["null", "on", "off", "reboot", "metadata", "status", "monitor", "list", "list-status", "validate-all"];

/// The forms on the command line, for the help: `-t, --timeout=<seconds>`.
fn forms(option: &Opt) -> String {
    let mut forms: Vec<_> = option.letter.iter().map(|it| format!("-{it}")).collect();
    forms.extend(option.long.iter().map(|it| format!("--{it}")));
    let value = match option.id {
        _ if option.value.is_empty() => String::new(),
        // Attached, or left out.
        Id::VsockCid => format!("[={}]", option.value),
        _ if option.long.is_empty() => format!(" <{}>", option.value),
        _ => format!("=<{}>", option.value),
    };
    forms.join(", ") + &value
}

fn row(text: &mut String, head: &str, option: &Opt) {
    let _ = write!(text, "  {head:<31}  {}", option.text);
    let _ = match option.default {
        Some(default) => writeln!(text, " (default {default})"),
        None => writeln!(text),
    };
}

fn parameter(xml: &mut String, option: &Opt) {
    let name = option.name.unwrap_or_default();
    let older = option.deprecated;
    // Both ways to name the target are marked as required, and the alias of standard input is not: cluster shells
    // know the parameters by these marks.
    let required = u8::from(option.id == Id::Plug && option.letter.is_some());
    let mark = match name {
        "plug" => " obsoletes=\"port\"",
        _ if older => " deprecated=\"1\"",
        _ => "",
    };
    let mut forms = option.letter.map(|l| format!("-{l}")).unwrap_or_default();
    if let Some(long) = option.long.first() {
        // In the form of the fence agents' library.
        let value = if option.value.is_empty() { String::new() } else { format!("=[{}]", option.value) };
        forms.push_str(&format!(", --{long}{value}"));
    }
    let _ = writeln!(xml, "\t<parameter name=\"{name}\" unique=\"0\" required=\"{required}\"{mark}>");
    let _ = writeln!(xml, "\t\t<getopt mixed=\"{forms}\" />");
    let _ = match option.default {
        Some(default) => writeln!(xml, "\t\t<content type=\"{}\" default=\"{default}\" />", option.kind),
        None => writeln!(xml, "\t\t<content type=\"{}\" />", option.kind),
    };
    let _ = writeln!(xml, "\t\t<shortdesc lang=\"en\">{}</shortdesc>", option.text);
    xml.push_str("\t</parameter>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_well_formed() {
        for program in [Program::Xvm, Program::Virt] {
            let xml = metadata(program);
            let document = roxmltree::Document::parse(&xml).unwrap();
            assert_eq!(document.root_element().attribute("name"), Some(program.name()));
            let parameters: Vec<_> = document
                .descendants()
                .filter(|n| n.has_tag_name("parameter"))
                .filter_map(|n| n.attribute("name"))
                .collect();
            let expected: &[&str] = match program {
                Program::Xvm => &[
                    "debug",
                    "ip_family",
                    "multicast_address",
                    "ipport",
                    "retrans",
                    "auth",
                    "hash",
                    "key_file",
                    "plug",
                    "port",
                    "use_uuid",
                    "action",
                    "timeout",
                    "delay",
                    "domain",
                ],
                Program::Virt => &[
                    "debug",
                    "serial_device",
                    "serial_params",
                    "channel_address",
                    "ipport",
                    "plug",
                    "port",
                    "action",
                    "timeout",
                    "ipaddr",
                    "vsock",
                    "auth",
                    "hash",
                    "key_file",
                    "delay",
                    "domain",
                ],
            };
            assert_eq!(parameters, expected);
        }
    }

    #[test]
    fn help_names_every_option() {
        for program in [Program::Xvm, Program::Virt] {
            let text = help(program);
            for letter in program.getopt().chars().filter(|c| !":M".contains(*c)) {
                assert!(text.contains(&format!("-{letter}")), "-{letter}\n{text}");
            }
        }
    }
}
