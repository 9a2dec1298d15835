// SPDX-License-Identifier: GPL-2.0-or-later
//! Texts made from the table of options: help, version, metadata.
//!
//! Owns their form. Pure. Must never change the parameters of the metadata against those of the C agents:
//! cluster shells compare them.

use std::fmt::Write;

use crate::options::{ClientProgram, OptionId, OptionRow, domain_alias};

/// Returns the help, for the terminal.
pub(crate) fn help_text(program: ClientProgram) -> String {
    let mut text =
        format!("usage: {} [options]\n\nFences virtual machines: asks the host that runs ", program.name());
    text.push_str("one to power it off, on, or off and on again.\n");
    text.push_str("A reboot leaves a machine that is off as it is.\n\n");
    for option in program.options() {
        write_row(&mut text, &forms(option), option);
    }
    text.push_str(
        "  -h, -?, --help                   Show this help\n  \
         -V, --version                    Show the version\n  \
         --diagnose                       \
         Ask for the status of -n (without -n: monitor) and say why no answer comes;\n  \
                                         \
with -o off, on or reboot: say what that would do, and do nothing\n  \
         --keygen [FILE]                  \
         Make a new key in a new file, nothing else (default /etc/cluster/fence_xvm.key)\n",
    );
    text.push_str(
        "\nWithout any argument the options come from standard input, NAME=VALUE, one to a line:\n\n",
    );
    for option in program.options() {
        write_row(&mut text, option.name.unwrap_or_default(), option);
    }
    text.push_str("\nExit codes: 0 done (status: on), 1 failed, 2 status: off, 3 permission denied\n");
    text
}

/// Returns the version.
pub(crate) fn version_text(program: ClientProgram) -> String {
    format!("{} {} (fence-virt in Rust)\n", program.name(), env!("CARGO_PKG_VERSION"))
}

/// Returns the metadata for cluster managers, as XML.
pub(crate) fn metadata_text(program: ClientProgram) -> String {
    let name = program.name();
    let mut xml = String::from("<?xml version=\"1.0\" ?>\n");
    let _ = writeln!(xml, "<resource-agent name=\"{name}\" shortdesc=\"Fence agent for virtual machines\">");
    let _ = writeln!(
        xml,
        "<longdesc>{name} powers virtual machines off, on, or off and on again by asking fence_virtd on \
         the host that runs them.\n\nNote: reboot leaves a machine that is off as it is.</longdesc>"
    );
    xml.push_str("<vendor-url>https://www.clusterlabs.org</vendor-url>\n<parameters>\n");
    // The C agents have no quiet time, so the metadata has none.
    for option in program.options().filter(|o| o.id != OptionId::Quiet).chain([domain_alias()]) {
        write_parameter(&mut xml, option);
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

/// Returns the forms on the command line, for the help: `-t, --timeout=<seconds>`.
fn forms(option: &OptionRow) -> String {
    let mut forms: Vec<_> = option.letter.iter().map(|it| format!("-{it}")).collect();
    forms.extend(option.long.iter().map(|it| format!("--{it}")));
    let value = match option.id {
        _ if option.value.is_empty() => String::new(),
        // The value is attached, or left out.
        OptionId::VsockCid => format!("[={}]", option.value),
        _ if option.long.is_empty() => format!(" <{}>", option.value),
        _ => format!("=<{}>", option.value),
    };
    forms.join(", ") + &value
}

/// Writes one option of the help.
fn write_row(text: &mut String, head: &str, option: &OptionRow) {
    let _ = write!(text, "  {head:<31}  {}", option.text);
    let _ = match option.default {
        Some(default) => writeln!(text, " (default {default})"),
        None => writeln!(text),
    };
}

/// Writes one parameter of the metadata.
fn write_parameter(xml: &mut String, option: &OptionRow) {
    let name = option.name.unwrap_or_default();
    let older = option.deprecated;
    // Both options that name the target are marked as required, the alias of standard input is not. Cluster
    // shells rely on these marks.
    let required = u8::from(option.id == OptionId::Plug && option.letter.is_some());
    let mark = match name {
        "plug" => " obsoletes=\"port\"",
        _ if older => " deprecated=\"1\"",
        _ => "",
    };
    let mut forms = option.letter.map(|l| format!("-{l}")).unwrap_or_default();
    if let Some(long) = option.long.first() {
        // The form of the library of fence agents.
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
        for program in [ClientProgram::Xvm, ClientProgram::Virt] {
            let xml = metadata_text(program);
            let document = roxmltree::Document::parse(&xml).unwrap();
            assert_eq!(document.root_element().attribute("name"), Some(program.name()));
            let parameters: Vec<_> = document
                .descendants()
                .filter(|n| n.has_tag_name("parameter"))
                .filter_map(|n| n.attribute("name"))
                .collect();
            let expected: &[&str] = match program {
                ClientProgram::Xvm => &[
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
                ClientProgram::Virt => &[
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
        for program in [ClientProgram::Xvm, ClientProgram::Virt] {
            let text = help_text(program);
            for letter in program.getopt_string().chars().filter(|c| !":M".contains(*c)) {
                assert!(text.contains(&format!("-{letter}")), "-{letter}\n{text}");
            }
        }
    }
}
