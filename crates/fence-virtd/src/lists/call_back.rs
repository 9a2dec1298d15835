// SPDX-License-Identifier: GPL-2.0-or-later
//! One host that calls back: it proves that it holds the key, we prove it too, and it answers.
//!
//! Owns the stream. A peer that does not prove itself leaves nothing behind but a line of debugging. A host
//! that did is known from then on, whatever becomes of its answer.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_core::listing::{HostDomain, HostReply};
use fence_wire::{
    CHALLENGE_LEN, ClientAnswer, ClientAuth, ClientStream, HASH_LEN, HOST_LIST_ENTRY_LEN, HOST_LIST_FOLLOWS,
    HostListEntry, HostListItem, Response, ResponseSeal, SentRequests, draw_challenge,
};
use rand::TryRng as _;
use rand::rngs::SysRng;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tracing::debug;

use super::client_keys::ClientKeys;
use super::limits::MAX_LISTED;
use crate::util::locks::lock;

/// Everything that a conversation needs beside its stream.
pub(super) struct CallBackStream {
    pub(super) keys: Arc<ClientKeys>,
    pub(super) sent: Arc<Mutex<Vec<SentRequests>>>,
    pub(super) limit: Duration,
}

impl CallBackStream {
    /// Holds the conversation. None from a peer that did not prove itself.
    pub(super) async fn converse(self, stream: TcpStream) -> Option<HostReply> {
        let until = (Instant::now() + self.limit).into();
        let mut stream = BufReader::new(stream);
        let proved = match timeout_at(until, self.prove(&mut stream)).await {
            Ok(Ok(proved)) => proved,
            Ok(Err(error)) => {
                debug!("a peer called back and did not prove itself: {error}");
                return None;
            }
            Err(_) => {
                debug!("a peer called back and was silent");
                return None;
            }
        };
        match timeout_at(until, answer(&mut stream, proved)).await {
            Ok(Ok(reply)) => Some(reply),
            Ok(Err(why)) => Some(HostReply::Broken(why)),
            Err(_) => Some(HostReply::Broken("called back, and did not answer in time".to_owned())),
        }
    }

    /// Lets the peer prove that it holds one of the keys.
    async fn prove(&self, stream: &mut BufReader<TcpStream>) -> io::Result<Proven<'_>> {
        let auths = self.auths();
        if auths.is_empty() {
            let ClientStream::Open(seal) = ClientStream::begin(ClientAuth::Open, [0; CHALLENGE_LEN]) else {
                return Err(io::Error::other("there is no key"));
            };
            return Ok(Proven::Open(seal));
        }
        let c1 = draw_challenge(|it| SysRng.try_fill_bytes(it)).map_err(io::Error::other)?;
        stream.write_all(&c1).await?;
        let mut answer = [0; HASH_LEN];
        stream.read_exact(&mut answer).await?;
        let mut why = io::Error::other("there is no key");
        // Packets may have been repeated meanwhile.
        for auth in self.auths() {
            let ClientStream::Challenge(handshake) = ClientStream::begin(auth, c1) else { continue };
            match handshake.verify(&answer) {
                Ok(proven) => return Ok(Proven::Challenged(proven)),
                Err(error) => why = io::Error::other(error),
            }
        }
        Err(why)
    }

    /// Returns the proofs that count, one for each key; none where nothing is proved.
    fn auths(&self) -> Vec<ClientAuth<'_>> {
        let ClientKeys { hash, auth, keys, .. } = &*self.keys;
        let sent = lock(&self.sent);
        let of_key = |(number, key)| match (hash.sealed(), auth.classic()) {
            (Some(_), _) => sent.get(number).cloned().map(|it: SentRequests| ClientAuth::Sealed(it, key)),
            (None, Some(auth)) => Some(ClientAuth::Classic(auth, key)),
            (None, None) => None,
        };
        keys.iter().enumerate().filter_map(of_key).collect()
    }
}

/// Peer that may answer.
enum Proven<'k> {
    /// Peer of a group without a key.
    Open(ResponseSeal),
    /// Host that holds the key, and waits for our proof.
    Challenged(ClientAnswer<'k>),
}

/// Gives our proof, and reads the answer to its end. An error is the reason why the answer does not count, in
/// words that follow the host's name.
async fn answer(stream: &mut BufReader<TcpStream>, proven: Proven<'_>) -> Result<HostReply, String> {
    let lost = |error: io::Error| format!("called back and hung up: {error}");
    let mut seal = match proven {
        Proven::Open(seal) => seal,
        Proven::Challenged(proven) => {
            let mut c2 = [0; CHALLENGE_LEN];
            stream.read_exact(&mut c2).await.map_err(lost)?;
            let (proof, seal) = proven.answer(&c2).map_err(|error| error.to_string())?;
            stream.write_all(&proof).await.map_err(lost)?;
            seal
        }
    };
    let first = byte(stream, &mut seal).await.map_err(lost)?;
    let reply = if first == HOST_LIST_FOLLOWS {
        let domains = list(stream, &mut seal).await?;
        let last = byte(stream, &mut seal).await.map_err(lost)?;
        HostReply::List(domains, response(last)?)
    } else {
        HostReply::Status(response(first)?)
    };
    sealed(stream, seal, reply).await
}

async fn byte(stream: &mut BufReader<TcpStream>, seal: &mut ResponseSeal) -> io::Result<u8> {
    let byte = stream.read_u8().await?;
    seal.take(&[byte]);
    Ok(byte)
}

fn response(byte: u8) -> Result<Response, String> {
    Response::from_number(byte).ok_or_else(|| format!("answered with {byte}, which has no meaning"))
}

async fn list(stream: &mut BufReader<TcpStream>, seal: &mut ResponseSeal) -> Result<Vec<HostDomain>, String> {
    let mut domains = Vec::new();
    loop {
        let mut entry = [0; HOST_LIST_ENTRY_LEN];
        let lost = |error| format!("broke off after {} domains of its list: {error}", domains.len());
        stream.read_exact(&mut entry).await.map_err(lost)?;
        seal.take(&entry);
        match HostListEntry::decode(&entry) {
            HostListItem::End => return Ok(domains),
            HostListItem::Domain(_) if domains.len() == MAX_LISTED => {
                return Err(format!("lists more than {MAX_LISTED} domains"));
            }
            HostListItem::Domain(HostListEntry { name, uuid, .. }) => {
                domains.push(HostDomain { name, uuid, is_off: HostListEntry::is_shut_off(&entry) });
            }
        }
    }
}

/// Returns the reply if its seal fits, and nothing follows it.
async fn sealed(
    stream: &mut BufReader<TcpStream>,
    seal: ResponseSeal,
    reply: HostReply,
) -> Result<HostReply, String> {
    let reply = match seal.unsealed(reply.clone()) {
        Ok(genuine) => genuine,
        Err(seal) => {
            let mut received = [0; HASH_LEN];
            stream.read_exact(&mut received).await.map_err(|_| "answered without its seal".to_owned())?;
            seal.verify(reply, &received).map_err(|error| error.to_string())?
        }
    };
    // An entry of zeros in the middle of a list ends it too early.
    match stream.read(&mut [0; 1]).await {
        Ok(1..) => Err("sent more than its answer".to_owned()),
        Ok(0) => Ok(reply.into_inner()),
        Err(error) => Err(format!("answered and hung up: {error}")),
    }
}
