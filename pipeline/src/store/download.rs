//! One file, over however many connections it takes.
//!
//! `FILE.partial` grows; `FILE.partial.tag` holds what tells its version from another. Both outlive the
//! process, and the next one goes on from them. The file gets its name when its sha256 is right.

use std::{
    fs::{self, File},
    io::{Read, Write as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use sha2::{Digest as _, Sha256};
use stages::{
    files::write_whole,
    model::{Hub, HubFile},
};

use super::{
    hub::{Client, Got, Rest, Trouble},
    meter::{Meter, megabytes},
    pins::{hash_of, hex},
};

/// Longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What a file must be.
#[derive(Clone, Debug)]
pub struct Pin {
    /// Of its content.
    pub sha256: String,
    /// Who says so.
    pub by: &'static str,
}

/// What came.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Of its content.
    pub sha256: String,
    /// Its length.
    pub bytes: u64,
}

/// Fetches a file to `into`, going on from what an earlier attempt left beside it.
pub fn fetch(
    client: &Client,
    hub: &Hub,
    file: &HubFile,
    pin: Option<&Pin>,
    into: &Path,
    meter: &mut Meter,
) -> Result<Fetched> {
    let mut transfer = Transfer::open(file.to(), client.base.place(hub, file), into, meter)?;
    let mut n_failures = 0;
    // What an earlier process left may be of another version, with no one to tell; then once more.
    let mut may_start_over = transfer.have > 0;
    loop {
        let had = transfer.have;
        match transfer.attempt(client, hub, file, meter) {
            Ok(()) => {
                let sha256 = hex(transfer.hasher.clone());
                let stated = transfer.stated.clone().map(|sha256| Pin { sha256, by: "the hub" });
                let wrong = pin.cloned().into_iter().chain(stated).find(|pin| pin.sha256 != sha256);
                let Some(wrong) = wrong else {
                    transfer.publish(into)?;
                    return Ok(Fetched { sha256, bytes: transfer.have });
                };
                transfer.start_over(meter)?;
                let told = format!("sha256 is {sha256}, wanted {} by {}", wrong.sha256, wrong.by);
                if !may_start_over {
                    transfer.forget()?;
                    return Err(anyhow!("{}: {told}; the file is removed", transfer.place));
                }
                meter.line(&format!("{}: {told}; fetching it again from its start", transfer.name));
                may_start_over = false;
            }
            Err(Trouble::Final(e)) => return Err(e),
            Err(Trouble::Passing(e, after)) => {
                n_failures = if transfer.have > had { 1 } else { n_failures + 1 };
                if n_failures >= client.patience.attempts {
                    return Err(anyhow!("{e:#}\nhint: the same command goes on from here"));
                }
                let pause = client.patience.pause * (1 << (n_failures - 1));
                let pause = after.unwrap_or(pause).min(LONGEST_PAUSE);
                let seconds = pause.as_secs_f32();
                meter.line(&format!("{e:#}; trying again in {seconds} s"));
                thread::sleep(pause);
            }
        }
    }
}

/// Copies a file that is at hand, and gives its sha256.
pub fn copy(mut from: impl Read, place: &Path, into: &Path, meter: &mut Meter) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut file = File::create(into).with_context(|| format!("cannot write {}", into.display()))?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        let n = from.read(&mut buffer).with_context(|| format!("cannot read {}", place.display()))?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        file.write_all(&buffer[..n]).with_context(|| format!("cannot write {}", into.display()))?;
        meter.moved(n as u64);
    }
    file.sync_all().with_context(|| format!("cannot write {}", into.display()))?;
    Ok(hex(hasher))
}

/// A file on its way.
struct Transfer {
    /// In the model's folder.
    name: String,
    /// In the hub, for errors.
    place: String,
    partial: PathBuf,
    tag: PathBuf,
    file: File,
    /// Bytes here, all of which the hasher has seen.
    have: u64,
    hasher: Sha256,
    validator: Option<String>,
    /// The sha256 that the hub states.
    stated: Option<String>,
}

impl Transfer {
    fn open(name: &str, place: String, into: &Path, meter: &mut Meter) -> Result<Self> {
        let beside = |suffix: &str| {
            let mut path = into.as_os_str().to_owned();
            path.push(suffix);
            PathBuf::from(path)
        };
        let (partial, tag) = (beside(".partial"), beside(".partial.tag"));
        let file = File::options().create(true).append(true).open(&partial);
        let file = file.with_context(|| format!("cannot write {}", partial.display()))?;
        let have = file.metadata().with_context(|| format!("cannot read {}", partial.display()))?.len();
        let hasher = hash_of(&partial)?;
        let validator = fs::read_to_string(&tag).ok().filter(|tag| !tag.is_empty());
        meter.pass(have);
        let name = name.to_owned();
        Ok(Self { name, place, partial, tag, file, have, hasher, validator, stated: None })
    }

    /// One request, and its body to the end.
    fn attempt(
        &mut self,
        client: &Client,
        hub: &Hub,
        file: &HubFile,
        meter: &mut Meter,
    ) -> Result<(), Trouble> {
        if file.size.is_some_and(|size| self.have > size) {
            self.start_over(meter)?;
        }
        // Nothing is left to ask for; the pin tells whether it is right.
        if self.have > 0 && file.size == Some(self.have) && file.sha256.is_some() {
            return Ok(());
        }
        // Without a validator or a pin, nobody could tell that the parts fit together.
        if self.have > 0 && self.validator.is_none() && file.sha256.is_none() {
            self.start_over(meter)?;
        }
        let rest = Rest { have: self.have, validator: self.validator.clone() };
        let answer = match client.get(hub, file, &rest)? {
            Got::Answer(answer) => answer,
            Got::Complete(stated) => {
                self.stated = stated;
                return Ok(());
            }
            Got::Shorter => {
                self.start_over(meter)?;
                let told = format!("{}: the hub has less of it than is here", self.place);
                return Err(Trouble::Passing(anyhow!(told), None));
            }
        };
        if let (Some(total), Some(size)) = (answer.total, file.size)
            && total != size
        {
            return Err(anyhow!("{}: has {total} bytes, the card says {size}", self.place).into());
        }
        if answer.start > 0 {
            meter.line(&format!("{}: going on from {}", self.name, megabytes(answer.start)));
        } else if self.have > 0 {
            meter.line(&format!("{}: the hub sends it from its start again", self.name));
            self.start_over(meter)?;
        }
        self.stated = answer.sha256;
        if answer.validator != self.validator {
            write_whole(&self.tag, answer.validator.as_deref().unwrap_or_default().as_bytes())
                .with_context(|| format!("cannot write {}", self.tag.display()))?;
            self.validator = answer.validator;
        }
        let most = answer.total.or(file.size);
        self.receive(answer.body, most, meter)?;
        if most.is_some_and(|most| self.have < most) {
            let told = format!("{}: the connection ended after {}", self.place, megabytes(self.have));
            return Err(Trouble::Passing(anyhow!(told), None));
        }
        Ok(())
    }

    /// Takes the body in until it ends.
    fn receive(&mut self, mut body: impl Read, most: Option<u64>, meter: &mut Meter) -> Result<(), Trouble> {
        let mut buffer = vec![0; 1 << 18];
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    let e = anyhow!(e).context(format!("{}: the connection broke", self.place));
                    return Err(Trouble::Passing(e, None));
                }
            };
            if most.is_some_and(|most| self.have + n as u64 > most) {
                self.start_over(meter)?;
                return Err(anyhow!("{}: the hub sends more than it told", self.place).into());
            }
            // What is written is hashed, and no more: both stay in step if the disk is full.
            self.file
                .write_all(&buffer[..n])
                .with_context(|| format!("cannot write {}", self.partial.display()))?;
            self.hasher.update(&buffer[..n]);
            self.have += n as u64;
            meter.moved(n as u64);
        }
    }

    fn start_over(&mut self, meter: &mut Meter) -> Result<()> {
        self.file.set_len(0).with_context(|| format!("cannot write {}", self.partial.display()))?;
        meter.lost(self.have);
        (self.have, self.hasher, self.validator) = (0, Sha256::new(), None);
        Ok(())
    }

    /// Removes what is beside the file.
    fn forget(&self) -> Result<()> {
        for path in [&self.partial, &self.tag] {
            match fs::remove_file(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).with_context(|| format!("cannot remove {}", path.display()));
                }
                _ => (),
            }
        }
        Ok(())
    }

    /// Gives the file its name.
    fn publish(&self, into: &Path) -> Result<()> {
        self.file.sync_all().with_context(|| format!("cannot write {}", self.partial.display()))?;
        fs::rename(&self.partial, into).with_context(|| format!("cannot write {}", into.display()))?;
        self.forget()
    }
}
