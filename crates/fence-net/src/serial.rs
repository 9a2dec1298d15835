// SPDX-License-Identifier: GPL-2.0-or-later
//! Serial lines and virtio ports of a guest, opened so that no operation blocks.
//!
//! Owns the terminal settings and the lock of a device. Must never become its controlling terminal.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::str::FromStr;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::termios::{
    BaudRate, ControlFlags, FlushArg, SetArg, SpecialCharacterIndices, cfmakeraw, tcflush, tcgetattr,
    tcsetattr,
};

/// Open serial line or virtio port.
#[derive(Debug)]
pub struct SerialLine {
    /// Device, non-blocking.
    pub file: File,
    /// True for a terminal: a serial line, not a virtio port.
    pub is_terminal: bool,
}

/// Opens the character device at `path` for reading and writing, non-blocking, never as controlling terminal.
/// A terminal is made raw with this format, and input that was waiting is dropped.
///
/// Lines are exclusive: other programs that lock the device (as the C agents do) are kept out while the file
/// is open.
///
/// # Errors
/// `ResourceBusy` or `WouldBlock` while another program has the device; otherwise the error of the kernel.
pub fn open_line(path: &Path, format: LineFormat) -> io::Result<SerialLine> {
    let flags = OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags.bits()).open(path)?;
    if !file.metadata()?.file_type().is_char_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a serial line or virtio port"));
    }
    lock(&file)?;
    let is_terminal = match tcgetattr(&file) {
        Ok(mut settings) => {
            cfmakeraw(&mut settings);
            settings.control_flags.remove(
                ControlFlags::CBAUD
                    | ControlFlags::CSIZE
                    | ControlFlags::PARENB
                    | ControlFlags::PARODD
                    | ControlFlags::CSTOPB,
            );
            // Hardware flow control as the C agents set it: QEMU's lines are always ready.
            settings
                .control_flags
                .insert(ControlFlags::CLOCAL | ControlFlags::CREAD | ControlFlags::CRTSCTS | format.flags);
            // Some programs leave zero here, and then "no input" looks like a hang-up.
            settings.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
            settings.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
            tcsetattr(&file, SetArg::TCSANOW, &settings)?;
            tcflush(&file, FlushArg::TCIOFLUSH)?;
            true
        }
        Err(Errno::ENOTTY | Errno::EINVAL) => false,
        Err(error) => return Err(error.into()),
    };
    Ok(SerialLine { file, is_terminal })
}

/// Speed and format of a serial line, written `115200,8N1`: bits per second, data bits, parity (N, E or O),
/// stop bits. Without a format it is 8N1. Blanks around the two do not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LineFormat {
    flags: ControlFlags,
}

/// Error for a text that is no speed and format.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a speed and format of a serial line")]
pub struct LineFormatError;

impl Default for LineFormat {
    fn default() -> Self {
        Self { flags: speed(BaudRate::B115200) | ControlFlags::CS8 }
    }
}

impl FromStr for LineFormat {
    type Err = LineFormatError;

    fn from_str(text: &str) -> Result<Self, LineFormatError> {
        let (bits, format) = text.split_once(',').unwrap_or((text, "8N1"));
        let (bits, format) = (bits.trim_ascii(), format.trim_ascii());
        let rate = SPEEDS.iter().find(|(name, _)| *name == bits).ok_or(LineFormatError)?.1;
        let [data, parity, stop] = *format.as_bytes() else {
            return Err(LineFormatError);
        };
        let data = match data {
            b'5' => ControlFlags::CS5,
            b'6' => ControlFlags::CS6,
            b'7' => ControlFlags::CS7,
            b'8' => ControlFlags::CS8,
            _ => return Err(LineFormatError),
        };
        let parity = match parity.to_ascii_uppercase() {
            b'N' => ControlFlags::empty(),
            b'E' => ControlFlags::PARENB,
            b'O' => ControlFlags::PARENB | ControlFlags::PARODD,
            _ => return Err(LineFormatError),
        };
        let stop = match stop {
            b'1' => ControlFlags::empty(),
            b'2' => ControlFlags::CSTOPB,
            _ => return Err(LineFormatError),
        };
        Ok(Self { flags: speed(rate) | data | parity | stop })
    }
}

const SPEEDS: [(&str, BaudRate); 16] = [
    ("300", BaudRate::B300),
    ("600", BaudRate::B600),
    ("1200", BaudRate::B1200),
    ("2400", BaudRate::B2400),
    ("4800", BaudRate::B4800),
    ("9600", BaudRate::B9600),
    ("19200", BaudRate::B19200),
    ("38400", BaudRate::B38400),
    ("57600", BaudRate::B57600),
    ("115200", BaudRate::B115200),
    ("230400", BaudRate::B230400),
    ("460800", BaudRate::B460800),
    ("500000", BaudRate::B500000),
    ("576000", BaudRate::B576000),
    ("921600", BaudRate::B921600),
    ("1000000", BaudRate::B1000000),
];

/// Returns the speed as Linux keeps it among the flags. cfsetspeed(3) does no more, and cannot be linked
/// statically.
fn speed(rate: BaudRate) -> ControlFlags {
    ControlFlags::from_bits_retain(rate as libc::tcflag_t)
}

/// Takes the write lock on the device, which the C agents take too.
fn lock(file: &File) -> io::Result<()> {
    let [kind, whence] = [libc::F_WRLCK, libc::SEEK_SET].map(|it| i16::try_from(it).unwrap_or_default());
    let whole = libc::flock { l_type: kind, l_whence: whence, l_start: 0, l_len: 0, l_pid: 0 };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(()),
        Err(Errno::EACCES | Errno::EAGAIN) => Err(io::ErrorKind::WouldBlock.into()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use nix::pty::openpty;
    use nix::sys::termios::{InputFlags, LocalFlags, OutputFlags, cfgetospeed};
    use nix::unistd::ttyname;

    use super::*;

    #[test]
    fn formats() {
        let format = |text: &str| text.parse::<LineFormat>();
        assert_eq!(format("115200,8N1"), Ok(LineFormat::default()));
        assert_eq!(format("115200"), Ok(LineFormat::default()));
        assert_eq!(format("115200,8n1"), Ok(LineFormat::default()));
        // Guides have a blank behind the comma.
        for blanks in ["115200, 8N1", " 115200 ,\t8N1 ", "115200 "] {
            assert_eq!(format(blanks), Ok(LineFormat::default()), "{blanks:?}");
        }
        let odd = LineFormat {
            flags: speed(BaudRate::B9600)
                | ControlFlags::CS7
                | ControlFlags::PARENB
                | ControlFlags::PARODD
                | ControlFlags::CSTOPB,
        };
        assert_eq!(format("9600,7O2"), Ok(odd));
        for wrong in [
            "",
            "foo",
            "12345,8N1",
            "115200,8N",
            "115200,9N1",
            "115200,8X1",
            "115200,8N3",
            "115200,8N1x",
            "115 200",
            "115200,8 N1",
            ",",
        ] {
            assert_eq!(format(wrong), Err(LineFormatError), "{wrong}");
        }
    }

    #[test]
    fn a_terminal_becomes_raw_and_empty() {
        let pty = openpty(None, None).unwrap();
        let path = ttyname(&pty.slave).unwrap();
        let mut master = File::from(pty.master);
        master.write_all(b"stale\n").unwrap();
        let line = open_line(&path, "9600,7E1".parse().unwrap()).unwrap();
        assert!(line.is_terminal);
        let settings = tcgetattr(line.file.as_fd()).unwrap();
        assert_eq!(cfgetospeed(&settings), BaudRate::B9600);
        assert!(!settings.local_flags.intersects(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG));
        assert!(!settings.input_flags.intersects(InputFlags::ICRNL | InputFlags::IXON));
        assert!(!settings.output_flags.contains(OutputFlags::OPOST));
        assert!(settings.control_flags.contains(ControlFlags::CLOCAL));
        let mut buffer = [0; 16];
        assert_eq!((&line.file).read(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        // Every byte goes through as it is, both ways.
        let all: Vec<u8> = (0..=255).collect();
        (&line.file).write_all(&all).unwrap();
        // Bytes that the terminal echoed before it was raw come first.
        let mut seen = Vec::new();
        while !seen.ends_with(&all) {
            let n = master.read(&mut buffer).unwrap();
            seen.extend_from_slice(&buffer[..n]);
            assert!(seen.len() < 1000, "{seen:?}");
        }
    }

    #[test]
    fn one_at_a_time() {
        let pty = openpty(None, None).unwrap();
        let path = ttyname(&pty.slave).unwrap();
        let first = open_line(&path, LineFormat::default()).unwrap();
        let second = open_line(&path, LineFormat::default()).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
        drop(first);
        open_line(&path, LineFormat::default()).unwrap();
    }

    #[test]
    fn only_character_devices_are_opened() {
        let error = open_line(Path::new("/dev"), LineFormat::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
        let file = std::env::current_exe().unwrap().with_extension("no-device");
        File::create(&file).unwrap();
        let error = open_line(&file, LineFormat::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        std::fs::remove_file(file).unwrap();
        // A device that is no terminal is left as it is.
        assert!(!open_line(Path::new("/dev/null"), LineFormat::default()).unwrap().is_terminal);
    }
}
