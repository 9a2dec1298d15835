// SPDX-License-Identifier: GPL-2.0-or-later
//! Connection of a peer that called back.
//!
//! Owns the stream and the bytes that are still to be sent. Runs on the agent's only thread. Must never wait.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use crate::collector::HostResult;
use crate::deadline::Deadline;
use crate::exchange::{ExchangeError, HostExchange, LIST_RESULT_WAIT};
use crate::ledger::CallPath;

/// Connection of a peer that called back.
pub(crate) struct CallBackConnection<'k> {
    /// Address of the peer.
    pub(crate) from: SocketAddr,
    /// Way that it took.
    pub(crate) path: CallPath,
    /// Opening of the door through which it came.
    pub(crate) opening: usize,
    /// Stream.
    pub(crate) stream: TcpStream,
    /// Exchange with the peer.
    pub(crate) exchange: HostExchange<'k>,
    /// Bytes that the socket did not take yet.
    pub(crate) unsent: Vec<u8>,
    /// Instant from which on the peer is believed.
    pub(crate) believed_at: Option<Instant>,
    /// Instant at which the peer got the permission to act: our proof, unless it needs none.
    pub(crate) permitted_at: Option<Instant>,
    /// Instant at which the peer connected, or at which it last sent bytes after its proof.
    pub(crate) last_heard: Instant,
    /// True if the peer connected before the end of the quiet time.
    pub(crate) in_time: bool,
    /// Deadline at which a complete list is taken without its result.
    pub(crate) list_until: Option<Deadline>,
}

/// End of the wait for a connection.
pub(crate) enum WaitEnd {
    /// The host answered, or sent a response that is not valid.
    Answered(HostResult),
    /// The peer hung up before its response: the reason, and the same in words.
    HungUp(ExchangeError, String),
}

impl CallBackConnection<'_> {
    /// Answers the host's challenge.
    pub(crate) fn prove(&mut self) {
        self.exchange.prove();
        self.unsent.extend(self.exchange.take_output());
        let now = Instant::now();
        (self.permitted_at, self.last_heard) = (Some(now), now);
        // The rest goes when the socket is ready. An error shows when the socket is read.
        let _ = self.flush();
    }

    /// Sends and reads as much as is possible without waiting. Returns the end of the wait, if it ended.
    pub(crate) fn advance(&mut self) -> Option<WaitEnd> {
        /// Number of reads before the other connections are served.
        const READS: usize = 64;
        let mut buffer = [0; 4096];
        if let Err(error) = self.flush() {
            return Some(self.finish(Some(&error)));
        }
        for _ in 0..READS {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Some(self.finish(None)),
                Ok(n) => {
                    if self.exchange.receive(&buffer[..n]).is_err() || self.exchange.is_done() {
                        return Some(self.finish(None));
                    }
                    if self.exchange.is_believed() {
                        self.last_heard = Instant::now();
                        self.believed_at.get_or_insert(self.last_heard);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Some(self.finish(Some(&error))),
            }
        }
        if self.exchange.is_list_complete() && self.list_until.is_none() {
            self.list_until = Some(Deadline::after(LIST_RESULT_WAIT));
        }
        None
    }

    /// Sends as many bytes as the socket takes.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ends the exchange, because of this I/O error or because the peer closed the connection.
    pub(crate) fn finish(&mut self, error: Option<&io::Error>) -> WaitEnd {
        match (self.exchange.close(), error) {
            (Ok(answer), _) => WaitEnd::Answered(Ok(answer)),
            (Err(failure), _) if self.permitted_at.is_some() && failure.is_final() => {
                WaitEnd::Answered(Err(failure))
            }
            (Err(failure), None) => WaitEnd::HungUp(failure, failure.to_string()),
            (Err(failure), Some(error)) => WaitEnd::HungUp(failure, format!("{failure} ({error})")),
        }
    }
}
