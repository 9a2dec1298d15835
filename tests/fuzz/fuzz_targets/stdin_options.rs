// SPDX-License-Identifier: GPL-2.0-or-later
//! Any bytes as the agents' standard input: no panic, and what is accepted is a plan that can be carried out.
#![no_main]

use fence_wire::Target;
use fence_xvm::options::ClientProgram;
use fence_xvm::plan::ClientTask;
use fence_xvm::settings::ClientSettings;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for program in [ClientProgram::Xvm, ClientProgram::Virt] {
        let mut settings = ClientSettings::default();
        let unknown = match fence_xvm::stdin::read_options(program, data, &mut settings) {
            Ok(unknown) => unknown,
            Err(error) => return assert_is_one_line(&error.to_string()),
        };
        for name in unknown {
            assert_is_one_line(&name.to_string());
        }
        match settings.into_task(program) {
            Ok(ClientTask::Ask(plan)) => {
                assert!(!plan.timeout.is_zero());
                assert!(plan.delay.is_zero() || plan.action.changes_state());
                assert!(plan.target != Target::none() || !plan.action.needs_target());
            }
            Ok(_) => {}
            Err(error) => assert_is_one_line(&error.to_string()),
        }
    }
});

fn assert_is_one_line(text: &str) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
}
