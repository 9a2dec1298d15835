// SPDX-License-Identifier: GPL-2.0-or-later
//! Throwaway.
use std::sync::Arc;
use std::time::{Duration, Instant};
use fence_config::{AgentBackend as S, AgentProgram, PlugOf};
use fence_wire::Target;
use tokio::io::AsyncWriteExt;
use super::*;
use crate::metrics::AgentRuns;
pub(crate) struct Throw { s: S, pub(crate) runs: AgentRuns, sem: tokio::sync::Semaphore }
impl Throw {
    pub(crate) fn start(s: &S) -> Arc<Self> {
        Arc::new(Self { s: s.clone(), runs: AgentRuns::new(s.devices.iter().map(|d| d.name.clone())), sem: tokio::sync::Semaphore::new(3) })
    }
    fn plugs(&self) -> Vec<(usize, PlugOf)> {
        self.s.devices.iter().enumerate().flat_map(|(i, d)| d.plugs.named.iter().map(|p| (i, p.clone())).collect::<Vec<_>>()).collect()
    }
    fn uuid(p: &PlugOf) -> String {
        p.uuid.clone().unwrap_or_else(|| { let mut h = 0u64; for b in p.domain.bytes() { h = h.wrapping_mul(131).wrapping_add(b.into()); } format!("{:08x}-0000-4000-8000-{:012x}", (h >> 32) as u32, h & 0xffff_ffff_ffff) })
    }
    async fn go(&self, d: usize, plug: &str, action: &'static str, trail: Option<&Trail>) -> i32 {
        let _p = self.sem.acquire().await;
        let d = &self.s.devices[d];
        let AgentProgram::At(path) = &d.agent else { return 1 };
        let t = Instant::now();
        let mut c = tokio::process::Command::new(path).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        let mut i = c.stdin.take().unwrap();
        let _ = i.write_all(format!("action={action}\nplug={plug}\n").as_bytes()).await; drop(i);
        let o = c.wait_with_output().await.unwrap();
        let code = o.status.code().unwrap_or(-1);
        let ran = Ran { device: d.name.clone(), agent: path.display().to_string(), action, ended: Ended::Exit(code), took: t.elapsed(), output: String::from_utf8_lossy(&o.stdout).into_owned() };
        self.runs.note(&ran);
        if let Some(t) = trail { t.note(ran); }
        code
    }
    fn find(&self, n: &str) -> Option<(usize, PlugOf)> { self.plugs().into_iter().find(|(_, p)| p.domain == n || Self::uuid(p).eq_ignore_ascii_case(n)) }
}
impl Backend for Throw {
    fn locate<'a>(&'a self, target: &'a Target, _: Instant) -> Work<'a, Result<Located, LocateError>> {
        Box::pin(async move { self.find(target.as_str()).map(|(_, p)| Located::Here(DomainRef { uuid: Self::uuid(&p), name: p.domain, home: Home::Agent })).ok_or(LocateError::NotFound) })
    }
    fn may_have(&self, t: &Target) -> bool { self.find(t.as_str()).is_some() }
    fn status<'a>(&'a self, domain: &'a DomainRef, l: &'a Lease) -> Work<'a, Result<Power, ActError>> {
        Box::pin(async move { let (d, p) = self.find(&domain.name).ok_or(ActError::Gone)?;
            if self.go(d, &p.domain, "monitor", Some(l.trail())).await != 0 { return Err(ActError::Refused("monitor".into())); }
            match self.go(d, &p.domain, "status", Some(l.trail())).await { 0 => Ok(Power::On), 2 => Ok(Power::Off), _ => Err(ActError::Refused("x".into())) } })
    }
    fn off<'a>(&'a self, domain: &'a DomainRef, r: bool, l: &'a Lease) -> Work<'a, Result<TakenDown, ActError>> {
        Box::pin(async move { let (d, p) = self.find(&domain.name).ok_or(ActError::Gone)?;
            if self.status(domain, l).await? == Power::Off { return Ok(TakenDown { was_off: true, restart: None, note: None }); }
            self.go(d, &p.domain, "off", Some(l.trail())).await;
            if self.status(domain, l).await? == Power::Off { return Ok(TakenDown { was_off: false, restart: r.then_some(StartFrom::Definition), note: None }); }
            Err(ActError::Refused("still on".into())) })
    }
    fn on<'a>(&'a self, domain: &'a DomainRef, _: StartFrom, l: &'a Lease) -> Work<'a, Result<(), ActError>> {
        Box::pin(async move { let (d, p) = self.find(&domain.name).ok_or(ActError::Gone)?;
            self.go(d, &p.domain, "on", Some(l.trail())).await;
            if self.status(domain, l).await? == Power::On { return Ok(()); }
            Err(ActError::Refused("still off".into())) })
    }
    fn list(&self, _: Instant) -> Work<'_, Result<Listing, ActError>> {
        Box::pin(async move { let mut l = Listing::default(); for (d, p) in self.plugs() { match self.go(d, &p.domain, "status", None).await { 0 => l.domains.push(Listed { uuid: Self::uuid(&p), name: p.domain, power: Power::On }), 2 => l.domains.push(Listed { uuid: Self::uuid(&p), name: p.domain, power: Power::Off }), _ => l.missing.push(p.domain) } } Ok(l) })
    }
    fn health(&self, _: Instant) -> Work<'_, Result<Vec<String>, ActError>> { Box::pin(async move { let _ = Duration::ZERO; Ok(vec![]) }) }
}
