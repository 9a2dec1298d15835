// SPDX-License-Identifier: GPL-2.0-or-later
//! `--keygen`: a new key in a new file, for the daemon and the agents alike.
//!
//! Owns the making of key files. Runs on the caller's thread. Must never touch an existing file, which may be
//! the key of a running cluster, and must never show a byte of the key. The final name stands for a complete
//! key on disk, or for nothing.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fence_wire::{DEFAULT_KEY_FILE, Key};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use rand::TryRng;
use rand::rngs::{SysError, SysRng};
use zeroize::Zeroizing;

use crate::key_file::program;
use crate::path::shown;

/// Length of a new key in bytes.
pub const KEY_LEN: usize = 512;

/// New key in its file.
#[derive(Debug)]
pub struct NewKey {
    /// Path of the key file.
    pub path: PathBuf,
    /// Fingerprint, by which people tell keys apart.
    pub fingerprint: String,
    /// Directory that was made for the file, with its permission bits: 0755 less those of the umask.
    pub directory: Option<(PathBuf, u32)>,
}

/// Reason why no key was made. The text names the next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeygenError {
    /// The command line has more than the option and one file.
    #[error("--keygen takes the name of one file and nothing else: {} --keygen FILE", program())]
    Usage,
    /// The path exists already.
    #[error(
        "{path} is there already and is not touched: it may be the key that a cluster uses. Name another \
         file, or move it away first: mv {path} {path}.old",
        path = shown(.0)
    )]
    Exists(PathBuf),
    /// Neither the directory nor its parent exists.
    #[error("there is no directory {path}; make it first: mkdir -p {path}", path = shown(.0))]
    NoDirectory(PathBuf),
    /// The system refused an operation.
    #[error("can't {what} {path}: {source}; {}", remedy(.path, .source), path = shown(.path))]
    Io {
        /// Operation, as a verb.
        what: &'static str,
        /// Path of the operation.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The system returned no random bytes.
    #[error("no random bytes: {0}")]
    Random(#[from] SysError),
}

/// Returns the file for the new key if the command line (without the program's name) requests one.
///
/// Only the full word `--keygen` as the first argument does, so that the value of another option is not
/// mistaken for it.
///
/// # Errors
/// [`KeygenError::Usage`] for other arguments than the name of one file.
pub fn requested(arguments: &[OsString]) -> Option<Result<PathBuf, KeygenError>> {
    let (first, rest) = arguments.split_first()?;
    let attached = first.as_bytes().strip_prefix(b"--keygen=").map(|it| OsString::from_vec(it.to_vec()));
    let file = match (first.as_bytes(), attached, rest) {
        (_, Some(file), []) if !file.is_empty() => file,
        (b"--keygen", _, []) => DEFAULT_KEY_FILE.into(),
        // A name that begins with a dash is more likely an option.
        (b"--keygen", _, [file]) if !file.is_empty() && !file.as_bytes().starts_with(b"-") => file.clone(),
        (b"--keygen", _, _) | (_, Some(_), _) => return Some(Err(KeygenError::Usage)),
        _ => return None,
    };
    Some(Ok(file.into()))
}

/// Makes a key in a file that must not exist: 512 bytes from the system, with mode 0600 from the start, on
/// disk when this function returns. Makes the last part of its directory if it is missing, with mode 0755, as
/// packages do.
///
/// # Errors
/// The reason why there is no new key; nothing is left behind then. (A process that is killed meanwhile
/// leaves a hidden file beside it, with mode 0600.)
pub fn make(path: &Path) -> Result<NewKey, KeygenError> {
    let name = path.file_name().ok_or(KeygenError::Usage)?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut content = Zeroizing::new(vec![0; KEY_LEN]);
    SysRng.try_fill_bytes(&mut content)?;
    if path.symlink_metadata().is_ok() {
        return Err(KeygenError::Exists(path.to_owned()));
    }
    let directory = directory_for(parent)?;
    let mut suffix = [0; 4];
    SysRng.try_fill_bytes(&mut suffix)?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{:08x}", u32::from_le_bytes(suffix)));
    let temporary = parent.join(temporary);
    let written = write(&temporary, &content).map_err(io_error("write", &temporary)).and_then(|()| {
        // Unlike a rename, a link never replaces a file, not even one that appeared in the last moment.
        fs::hard_link(&temporary, path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => KeygenError::Exists(path.to_owned()),
            _ => KeygenError::Io { what: "make", path: path.to_owned(), source },
        })
    });
    let _ = fs::remove_file(&temporary);
    written?;
    sync_directory(parent)?;
    // The fingerprint of the key as the programs load it.
    let fingerprint = Key::new(&content).map(|it| it.fingerprint()).unwrap_or_default();
    Ok(NewKey { path: path.to_owned(), fingerprint, directory })
}

/// Message for the user: the file, the fingerprint, and the next steps.
impl fmt::Display for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = shown(&self.path);
        if let Some((directory, mode)) = &self.directory {
            writeln!(f, "Made the directory {} (mode {mode:04o}).", shown(directory))?;
        }
        writeln!(f, "New key in {path}: {KEY_LEN} bytes, mode 0600, fingerprint {}.", self.fingerprint)?;
        let absolute = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        let absolute = shown(&absolute);
        let usual = Path::new(DEFAULT_KEY_FILE);
        if self.path.file_name() != usual.file_name() {
            let is_of_guests = |it: &std::ffi::OsStr| it.as_bytes().starts_with(b"fence_xvm");
            if self.path.file_name().is_some_and(is_of_guests) {
                return writeln!(
                    f,
                    "A key of guests (key_file): do the next steps of \"Change it\", or of \"A key for each \
                     cluster\", in keys.md."
                );
            }
            // As fence_xvm.key on a guest it would take the place of the key of all.
            let folder = shown(Path::new(&absolute).parent().unwrap_or(usual));
            writeln!(
                f,
                "No other machine has this key. If it is to be the key between hosts (peer_key_file),"
            )?;
            writeln!(
                f,
                "and other hosts have one already, then this host needs theirs, and this one fits nobody."
            )?;
            writeln!(
                f,
                "Take it away, and copy theirs from a host (HOST), where its name may be another one:"
            )?;
            writeln!(f, "    rm {absolute}; scp -p HOST:{absolute} {absolute}")?;
            writeln!(
                f,
                "Else, if it is the key between hosts (peer_key_file): copy it to the other hosts only,"
            )?;
            writeln!(f, "under the same name, and to no guest. For each other host (MACHINE), as root:")?;
            writeln!(f, "    ssh MACHINE mkdir -p {folder} && scp -p {absolute} MACHINE:{absolute}")?;
            writeln!(
                f,
                "then name it in fence_virt.conf on all hosts, then reload: systemctl reload fence_virtd"
            )?;
            return writeln!(
                f,
                "A key of guests (key_file): see \"Change it\" and \"A key for each cluster\" in keys.md."
            );
        }
        let folder = usual.parent().unwrap_or(usual).display();
        // As the mistake of a guest: it makes a key of its own, and no host answers it.
        writeln!(
            f,
            "No other machine has this key. If the hosts have one already, then a guest or a new host"
        )?;
        writeln!(
            f,
            "needs theirs, and this one fits nobody. Take it away, and copy theirs from a host (HOST):"
        )?;
        writeln!(f, "    rm {absolute}; scp -p HOST:{} {absolute}", usual.display())?;
        writeln!(f, "Else, for each host and each guest of the cluster (MACHINE), as root:")?;
        writeln!(f, "    ssh MACHINE mkdir -p {folder} && scp -p {absolute} MACHINE:{}", usual.display())?;
        writeln!(
            f,
            "then start fence_virtd on the hosts; where it runs: systemctl reload fence_virtd. Logs of \
             hosts and agents show the fingerprint."
        )
    }
}

/// Returns the next step after an error of the system.
fn remedy(path: &Path, error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EACCES) => "run this as root".to_owned(),
        Some(Errno::ENOSPC | Errno::EDQUOT) => "make room there and run this again".to_owned(),
        // The last two: the file system has no hard links.
        Some(Errno::EROFS | Errno::EPERM | Errno::EOPNOTSUPP) => format!(
            "make it on another file system, with {} --keygen FILE, and copy it from there with cp -p",
            program()
        ),
        _ => format!("look for the cause with: namei -l {}", shown(path)),
    }
}

fn directory_for(parent: &Path) -> Result<Option<(PathBuf, u32)>, KeygenError> {
    match DirBuilder::new().mode(0o755).create(parent) {
        Ok(()) => {
            let above = parent.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
            sync_directory(above)?;
            let mode = fs::metadata(parent).map_err(io_error("look at", parent))?.mode() & 0o7777;
            Ok(Some((parent.to_owned(), mode)))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        // For "." and "/" the error is another one than that they exist.
        Err(_) if parent.is_dir() => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(KeygenError::NoDirectory(parent.to_owned()))
        }
        Err(source) => Err(KeygenError::Io { what: "make the directory", path: parent.to_owned(), source }),
    }
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn sync_directory(path: &Path) -> Result<(), KeygenError> {
    File::open(path).and_then(|it| it.sync_all()).map_err(io_error("have on disk", path))
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeygenError {
    let path = path.to_owned();
    move |source| KeygenError::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::key_file;

    fn asked(words: &[&str]) -> Option<Result<PathBuf, KeygenError>> {
        requested(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    fn load(path: &Path) -> Key {
        key_file::load(path, key_file::KeyRule::RefuseExposed).unwrap().key
    }

    #[test]
    fn only_the_whole_word_in_the_first_place() {
        let file = |words: &[&str]| asked(words).unwrap().unwrap();
        assert_eq!(file(&["--keygen"]), Path::new("/etc/cluster/fence_xvm.key"));
        assert_eq!(file(&["--keygen", "/a b"]), Path::new("/a b"));
        assert_eq!(file(&["--keygen=/a"]), Path::new("/a"));
        assert_eq!(file(&["--keygen=-a"]), Path::new("-a"));
        for others in [
            &[][..],
            &["--key"],
            &["--keygenx"],
            &["-k", "--keygen"],
            &["-n", "--keygen=x"],
            &["--", "--keygen"],
            &["keygen"],
        ] {
            assert!(asked(others).is_none(), "{others:?}");
        }
        for wrong in [
            &["--keygen", "a", "b"][..],
            &["--keygen", "-F"],
            &["--keygen", ""],
            &["--keygen="],
            &["--keygen=a", "b"],
        ] {
            assert!(matches!(asked(wrong), Some(Err(KeygenError::Usage))), "{wrong:?}");
        }
    }

    #[test]
    fn a_new_key_can_be_loaded_and_is_unique() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("cluster/one"), dir.path().join("cluster/other"));
        let made = make(&one).unwrap();
        assert_eq!(made.directory.as_ref().map(|(path, _)| path.as_path()), one.parent());
        let metadata = fs::metadata(&one).unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.len(), metadata.nlink()), (0o600, 512, 1));
        let key = load(&one);
        assert_eq!(key.fingerprint(), made.fingerprint);
        let text = made.to_string();
        assert!(text.contains(&made.fingerprint) && text.contains(one.to_str().unwrap()), "{text}");
        assert!(text.contains("other hosts only") && text.contains("then reload"), "{text}");
        assert!(!text.contains("fence_xvm.key"), "{text}");
        let theirs = format!("rm {0}; scp -p HOST:{0} {0}\nElse", one.display());
        assert!(text.contains("have one already") && text.contains(&theirs), "{text}");
        let newer = make(&dir.path().join("fence_xvm.key.new")).unwrap().to_string();
        assert!(newer.contains("A key of guests") && !newer.contains("peer_key_file"), "{newer}");
        let usual = make(&dir.path().join("fence_xvm.key")).unwrap().to_string();
        assert!(usual.contains("each guest") && !usual.contains("other hosts only"), "{usual}");
        let copy = format!(
            "rm {0}; scp -p HOST:{DEFAULT_KEY_FILE} {0}\n",
            dir.path().join("fence_xvm.key").display()
        );
        assert!(usual.contains("this one fits nobody") && usual.contains(&copy), "{usual}");
        assert!(make(&other).unwrap().directory.is_none());
        assert!(!load(&other).is_same(&key));
        let names: Vec<_> = fs::read_dir(dir.path().join("cluster")).unwrap().collect();
        assert_eq!(names.len(), 2, "nothing else is left: {names:?}");
    }

    #[test]
    fn nothing_that_is_there_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "mine").unwrap();
        let (link, dangling) = (dir.path().join("link"), dir.path().join("dangling"));
        symlink(&victim, &link).unwrap();
        symlink(dir.path().join("none"), &dangling).unwrap();
        for path in [&victim, &link, &dangling, &dir.path().to_owned()] {
            assert!(matches!(make(path), Err(KeygenError::Exists(_))), "{path:?}");
        }
        assert_eq!(fs::read(&victim).unwrap(), b"mine");
        assert!(!dir.path().join("none").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn many_at_once_make_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let made: Vec<_> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(|| make(&path))).collect();
            all.into_iter().map(|it| it.join().unwrap()).collect()
        });
        assert_eq!(made.iter().filter(|it| it.is_ok()).count(), 1);
        assert!(made.iter().all(|it| matches!(it, Ok(_) | Err(KeygenError::Exists(_)))), "{made:?}");
        let winner = made.into_iter().find_map(Result::ok).unwrap();
        assert_eq!(load(&path).fingerprint(), winner.fingerprint);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_the_last_directory_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/key");
        let text = make(&deep).unwrap_err().to_string();
        assert!(text.ends_with(&format!("mkdir -p {}", dir.path().join("a/b").display())), "{text}");
        assert!(!dir.path().join("a").exists());
        assert!(matches!(make(Path::new("/")), Err(KeygenError::Usage)));
        fs::write(dir.path().join("file"), "").unwrap();
        let text = make(&dir.path().join("file/key")).unwrap_err().to_string();
        assert!(text.contains("; look for the cause with: namei -l "), "{text}");
    }

    #[test]
    fn errors_of_the_system_say_the_next_step() {
        let say = |error: Errno| {
            let path = Path::new("/etc/cluster/key").to_owned();
            KeygenError::Io { what: "write", path, source: error.into() }.to_string()
        };
        assert!(say(Errno::EACCES).ends_with("; run this as root"));
        assert!(say(Errno::ENOSPC).ends_with("; make room there and run this again"));
        for error in [Errno::EROFS, Errno::EPERM, Errno::EOPNOTSUPP] {
            let text = say(error);
            assert!(
                text.contains("; make it on another file system, with fence_virtd --keygen FILE"),
                "{text}"
            );
        }
    }
}
