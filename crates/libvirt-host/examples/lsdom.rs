// SPDX-License-Identifier: GPL-2.0-or-later
//! `lsdom URI [SECONDS]`: lists the domains of a hypervisor, then shows its events for that time.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use libvirt_host::Connection;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let uri = args.next().ok_or("usage: lsdom URI [SECONDS]")?;
    let seconds: u64 = args.next().map_or(Ok(0), |s| s.parse())?;

    let begin = Instant::now();
    let connection = Connection::open(&uri)?;
    let opened = begin.elapsed();
    let domains = connection.domains()?;
    println!("opened in {opened:?}, {} domains in {:?}", domains.len(), begin.elapsed() - opened);
    for domain in domains {
        println!("{:32} {} {:?}", domain.name.escape_debug(), domain.uuid, domain.state);
    }

    let (tell, told) = mpsc::channel();
    let tell_close = tell.clone();
    connection.on_close(move |reason| drop(tell_close.send(format!("connection lost: {reason:?}"))));
    let _events = connection.watch_lifecycle(move |event| drop(tell.send(format!("{event:?}"))))?;
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        match told.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => println!("{line}"),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}
