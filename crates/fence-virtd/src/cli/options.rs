// SPDX-License-Identifier: GPL-2.0-or-later
//! Options of fence_virtd. Owns their names, their defaults and the text of `-h`. Runs on the main thread;
//! must never read a file.

use std::ffi::OsString;
use std::path::PathBuf;

use fence_cli::getopt::{self, ArgumentKind, GetoptError, LongOption, Name};
use fence_cli::keygen;
use fence_wire::escaped;
use std::os::unix::ffi::OsStrExt;

/// Default configuration file.
pub(crate) const CONFIG_FILE: &str = "/etc/fence_virt.conf";
/// Default pid file of a daemon in the background.
pub(crate) const PID_FILE: &str = "/var/run/fence_virtd.pid";

const SPEC: &str = "Ff:d:clwp:hV";
const LONG: [LongOption; 2] = [
    LongOption { name: "help", takes: ArgumentKind::Nothing },
    LongOption { name: "version", takes: ArgumentKind::Nothing },
];

/// Command that the options ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    /// Serve.
    Run(Options),
    /// Print the usage.
    Help,
    /// Print the version.
    Version,
    /// Print the backends and listeners of this build.
    ListModules,
    /// Ask for settings and write this configuration file.
    Configure(PathBuf),
    /// Make a new key in this file.
    MakeKey(PathBuf),
    /// Ask the daemon that runs with this configuration file for its state.
    Status(PathBuf),
    /// Tell the daemon that runs with this configuration file that a host is gone for good.
    Forget { config: PathBuf, host: String },
    /// Check this configuration file and the host.
    Check { config: PathBuf, json: bool },
}

/// Options of a daemon that serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Options {
    /// Stay in the foreground; none: as the configuration says.
    pub(crate) foreground: bool,
    /// Configuration file.
    pub(crate) config: PathBuf,
    /// Level of debugging output; none: as the configuration says.
    pub(crate) debug: Option<u32>,
    /// Try again instead of giving up when something can't start; false: as the configuration says.
    pub(crate) wait: bool,
    /// Pid file, where one is named.
    pub(crate) pid_file: Option<PathBuf>,
}

/// Error in the command line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum OptionsError {
    #[error(transparent)]
    Form(#[from] GetoptError),
    #[error("{0}")]
    Keygen(String),
    #[error("--check takes -f FILE and --json, not {0}")]
    Check(String),
    #[error("--status takes -f FILE, not {0}")]
    Status(String),
    #[error("--forget takes the name, address or id of a host, or all, and -f FILE, not {0}")]
    Forget(String),
    #[error("--forget takes the name, address or id of a host, or all: --forget HOST")]
    ForgetWhom,
    #[error("-d takes a number from 0 to 99, not \"{0}\"")]
    Debug(String),
    #[error("\"{0}\" is no option; options start with -")]
    Operand(String),
}

/// The usage text.
pub(crate) const HELP: &str = "\
Usage: fence_virtd [options]
  -F         stay in the foreground
  -f FILE    configuration file (default /etc/fence_virt.conf)
  -d LEVEL   level of debugging output, 0 to 99
  -c         ask for settings and write the configuration file
  -l         list the listeners and backends that are built in
  -w         when a listener or backend can't start: try again every 5 s instead of giving up
  -p FILE    file for the process id (default /var/run/fence_virtd.pid)
  -h, --help       this text
  -V, --version    version
  --keygen [FILE]  make a new key in a file that is not there yet, nothing else (default \
  /etc/cluster/fence_xvm.key)
  --check          check the configuration and this host, change nothing; with -f FILE; --json prints JSON
  --status         ask the running daemon how it is, by the metrics of its configuration; with -f FILE
  --forget HOST    the host (name, address or id) is gone for good: the daemon no longer asks it; with -f FILE
";

/// Reads the command line, without the program's name.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, OptionsError> {
    let arguments: Vec<_> = arguments.into_iter().collect();
    if let Some(file) = keygen::requested(&arguments) {
        return file.map(Command::MakeKey).map_err(|it| OptionsError::Keygen(it.to_string()));
    }
    match long_word(&arguments) {
        Some(("--check", rest)) => return check(rest),
        Some(("--status", rest)) => {
            return config_of(rest.to_vec(), OptionsError::Status).map(Command::Status);
        }
        Some(("--forget", rest)) => return forget(rest),
        _ => {}
    }
    let line = getopt::parse(SPEC, &LONG, arguments)?;
    if let Some(operand) = line.operands.first() {
        return Err(OptionsError::Operand(escaped(operand.as_bytes()).to_string()));
    }
    let mut options =
        Options { foreground: false, config: CONFIG_FILE.into(), debug: None, wait: false, pid_file: None };
    let mut command = None;
    let mut configure = false;
    for option in line.options {
        let letter = match option.name {
            Name::Letter(letter) => letter,
            Name::Long("version") => 'V',
            Name::Long(_) => 'h',
        };
        let value = option.value.unwrap_or_default();
        match letter {
            'F' => options.foreground = true,
            'f' => options.config = value.into(),
            'd' => {
                let level = value.to_str().and_then(|it| it.parse().ok()).filter(|it| *it <= 99);
                options.debug =
                    Some(level.ok_or_else(|| OptionsError::Debug(escaped(value.as_bytes()).to_string()))?);
            }
            'w' => options.wait = true,
            'p' => options.pid_file = Some(value.into()),
            'c' => configure = true,
            'l' => command = command.or(Some(Command::ListModules)),
            'V' => command = command.or(Some(Command::Version)),
            _ => command = Some(Command::Help),
        }
    }
    Ok(match command {
        Some(command) => command,
        // The file may be named behind the -c.
        None if configure => Command::Configure(options.config),
        None => Command::Run(options),
    })
}

/// The first argument, when it is a long word, and what follows. Only there, so that no value of another
/// option is taken for one.
fn long_word(arguments: &[OsString]) -> Option<(&str, &[OsString])> {
    let (first, rest) = arguments.split_first()?;
    Some((first.to_str().filter(|it| it.starts_with("--"))?, rest))
}

fn check(arguments: &[OsString]) -> Result<Command, OptionsError> {
    let (json, others): (Vec<_>, Vec<_>) = arguments.iter().cloned().partition(|it| it == "--json");
    let config = config_of(others, OptionsError::Check)?;
    Ok(Command::Check { config, json: !json.is_empty() })
}

/// The host is the next word.
fn forget(arguments: &[OsString]) -> Result<Command, OptionsError> {
    let (host, rest) = arguments.split_first().ok_or(OptionsError::ForgetWhom)?;
    let host = host.to_str().filter(|it| !it.is_empty() && !it.starts_with('-'));
    let host = host.ok_or(OptionsError::ForgetWhom)?.to_owned();
    Ok(Command::Forget { config: config_of(rest.to_vec(), OptionsError::Forget)?, host })
}

/// The file of a command line that may have `-f` and nothing else.
fn config_of(
    arguments: Vec<OsString>,
    refuse: impl Fn(String) -> OptionsError,
) -> Result<PathBuf, OptionsError> {
    let line = getopt::parse("f:", &[], arguments)?;
    if let Some(operand) = line.operands.first() {
        return Err(refuse(format!("\"{}\"", escaped(operand.as_bytes()))));
    }
    Ok(line
        .options
        .into_iter()
        .next_back()
        .and_then(|it| it.value)
        .map_or_else(|| CONFIG_FILE.into(), PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, OptionsError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn options(line: &str) -> Options {
        match parsed(line).unwrap() {
            Command::Run(options) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn forms() {
        assert_eq!(options("").config, PathBuf::from(CONFIG_FILE));
        let all = options("-Fwd5 -f x -p y");
        assert!(all.foreground && all.wait);
        assert_eq!((all.debug, all.config, all.pid_file), (Some(5), "x".into(), Some("y".into())));
        assert_eq!(parsed("-h"), Ok(Command::Help));
        assert_eq!((parsed("--help"), parsed("-F --help")), (Ok(Command::Help), Ok(Command::Help)));
        assert_eq!((parsed("-V"), parsed("--version")), (Ok(Command::Version), Ok(Command::Version)));
        assert!(parsed("--help=x").is_err() && parsed("--vesion").is_err());
        assert_eq!(parsed("-F -l"), Ok(Command::ListModules));
        assert_eq!(parsed("-c"), Ok(Command::Configure(CONFIG_FILE.into())));
        assert_eq!(parsed("-cf x"), Ok(Command::Configure("x".into())));
        assert_eq!(parsed("-f x -c"), Ok(Command::Configure("x".into())));
        assert_eq!(parsed("--keygen /x"), Ok(Command::MakeKey("/x".into())));
        assert!(parsed("--keygen /x -F").is_err() && parsed("-F --keygen").is_err());
        assert_eq!(options("-f --keygen").config, PathBuf::from("--keygen"));
        let check = |config: &str, json| Ok(Command::Check { config: config.into(), json });
        assert_eq!(parsed("--check"), check(CONFIG_FILE, false));
        assert_eq!(parsed("--check -f x --json"), check("x", true));
        assert_eq!(parsed("--check --json -fx"), check("x", true));
        assert_eq!(parsed("--status -f x"), Ok(Command::Status("x".into())));
        assert!(parsed("--status --json").is_err());
        assert!(parsed("--check x").is_err() && parsed("--check -F").is_err());
        let forget = |config: &str| Ok(Command::Forget { config: config.into(), host: "h2".to_owned() });
        assert_eq!(parsed("--forget h2"), forget(CONFIG_FILE));
        assert_eq!(parsed("--forget h2 -f x"), forget("x"));
        assert!(parsed("--forget").is_err() && parsed("--forget -f x").is_err());
        assert!(parsed("--forget h2 h3").is_err() && parsed("--forget h2 -F").is_err());
        assert_eq!(options("-f --check").config, PathBuf::from("--check"));
        assert!(parsed("-d x").is_err());
        assert!(parsed("stray").is_err());
        assert!(parsed("-f").is_err());
    }
}
