//! The store of models: bringing them in whole, checked and pinned, and taking them out.
//!
//! In reading order:
//! - [`pins`]: the sha256 of every file of an installed model;
//! - [`hub`]: asking a hub for a file, or for the rest of it;
//! - [`download`]: one file, over however many connections it takes;
//! - [`staging`]: the hidden folder that a model is made in, and its appearance under its name;
//! - [`meter`]: what a person sees meanwhile.

pub mod download;
pub mod hub;
pub mod meter;
pub mod pins;
pub mod staging;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use stages::{
    encode::quantized,
    model::{self, Card, Home, Hub, Model},
};

use download::{Fetched, Pin};
use hub::{Base, Client, Patience};
use meter::Meter;
use pins::Pins;
use staging::Staging;

/// What to add, and how.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The name of a known card, a card's file, or a model's folder.
    pub what: String,
    /// Another hub's address, or a folder of its files; only with cards.
    pub from: Option<String>,
    /// An installed model of that name is replaced.
    pub force: bool,
    /// Files without a sha256 in the card are refused.
    pub require_pins: bool,
    /// How long to wait for a hub, and how often to try.
    pub patience: Patience,
}

/// What can be added.
enum Source {
    Folder(PathBuf),
    Card(Box<Card>, String),
}

impl Source {
    fn find(what: &str) -> Result<Self> {
        let path = Path::new(what);
        // A known name is that, whatever the current folder holds; `./NAME` is a folder.
        let is_known = model::known().iter().any(|(card, _)| card.name == what);
        if !is_known && path.join("model.toml").is_file() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let text = if path.extension().is_some_and(|e| e == "toml") {
            fs::read_to_string(path).with_context(|| format!("model card {what}"))?
        } else if !is_known && path.is_dir() {
            bail!("{what} is no model: it has no model.toml");
        } else {
            let known = model::known();
            let names: Vec<&str> = known.iter().map(|(card, _)| card.name.as_str()).collect();
            let found = known.iter().find(|(card, _)| card.name == what);
            let (_, text) = found.ok_or_else(|| {
                anyhow!(
                    "no model {what:?} is known, and no folder is named so\nhint: known are: {}; a card of your own is given by its path, ending in .toml",
                    names.join(", ")
                )
            })?;
            (*text).to_owned()
        };
        let card = Card::parse(&text).with_context(|| format!("model card {what}"))?;
        Ok(Self::Card(Box::new(card), text))
    }
}

/// Adds a model to the home's. It appears under its name when all of it is there and checked.
pub fn add(home: &Home, request: &Request) -> Result<Model> {
    match Source::find(&request.what)? {
        Source::Folder(_) if request.from.is_some() => {
            bail!("--from is for cards; {} is a model's folder", request.what)
        }
        Source::Folder(folder) => add_folder(home, &folder, request),
        Source::Card(card, text) => add_card(home, &card, &text, request),
    }
}

fn add_folder(home: &Home, folder: &Path, request: &Request) -> Result<Model> {
    let model = Model::open(folder)?;
    let staging = Staging::open(home, &model.card.name, request.force)?;
    let filled = fill(&staging, &model, request);
    if filled.is_err() {
        // A copy is made anew; only downloads are worth keeping. The first error is the one to tell.
        let _ = staging.discard();
    }
    filled?;
    staging.publish(request.force)
}

/// Copies a model's folder.
fn fill(staging: &Staging, model: &Model, request: &Request) -> Result<()> {
    let Model { card, folder } = model;
    staging.clear()?;
    let mut files = files_below(folder)?;
    files.retain(|file| file != pins::FILE && !file.ends_with(".partial"));
    let mut wanted = Pins::read(folder)?;
    wanted.add_card(card);
    if request.require_pins {
        require_pins(card.files().into_iter().filter(|file| wanted.get(file).is_none()))?;
    }
    let sizes = files.iter().map(|file| folder.join(file).metadata().map(|m| m.len()).ok());
    let mut meter = Meter::new(sizes.sum());
    let mut found = Pins::default();
    for file in &files {
        let from = folder.join(file);
        let reader = fs::File::open(&from).with_context(|| format!("cannot open {}", from.display()))?;
        let sha256 = download::copy(reader, &from, &staging.path(file)?, &mut meter)?;
        if let Some(wanted) = wanted.get(file).filter(|wanted| **wanted != sha256) {
            bail!("{}: sha256 is {sha256}, wanted {wanted}", from.display());
        }
        // The card may be edited; the bank and the int8 form are made anew.
        let is_derived = Some(file) == card.joint.bank.as_ref() || quantized::FILES.contains(&file.as_str());
        if file != "model.toml" && !is_derived {
            found.insert(file, &sha256);
        }
    }
    meter.finish();
    found.write(&staging.path(pins::FILE)?)
}

fn add_card(home: &Home, card: &Card, text: &str, request: &Request) -> Result<Model> {
    let name = &card.name;
    let Some(hub) = &card.hub else {
        let cure = if model::known::CARDS.contains(&text) {
            "`make setup` makes this model"
        } else {
            "give it a [hub]"
        };
        bail!("the card {name} has no [hub]: there is nowhere to fetch its files from\nhint: {cure}");
    };
    if request.require_pins {
        require_pins(hub.files.iter().filter(|f| f.sha256.is_none()).map(|f| f.to()))?;
    }
    let noted = noted_before(home, card)?;
    let staging = Staging::open(home, name, request.force)?;
    staging.keep_for(text)?;
    let client = Client::new(Base::find(request.from.as_deref())?, request.patience)?;
    let mut meter = Meter::new(hub.files.iter().map(|f| f.size).sum());
    meter.line(&format!("{name} ({}) from {}", card.licence, client.base.told(hub)));
    let fetched = fetch_all(&client, hub, &noted, &staging, &mut meter);
    meter.finish();
    if fetched.is_err() && staging.holds_nothing() {
        // There is nothing to go on from. The first error is the one to tell.
        let _ = staging.discard();
    }
    fetched?;
    staging.publish(request.force)
}

/// Fetches what is not there yet, and notes the hashes of all.
fn fetch_all(client: &Client, hub: &Hub, noted: &Pins, staging: &Staging, meter: &mut Meter) -> Result<()> {
    let mut found = Pins::read(staging.folder())?;
    for file in &hub.files {
        let to = file.to();
        let into = staging.path(to)?;
        let pin = match (&file.sha256, noted.get(to)) {
            (Some(sha256), _) => Some(Pin { sha256: sha256.clone(), by: "the card" }),
            (None, Some(sha256)) => {
                Some(Pin { sha256: sha256.clone(), by: "the note of when it was first fetched" })
            }
            (None, None) => None,
        };
        // What an earlier attempt finished is compared with its pin, or with its own note.
        if into.is_file() {
            let sha256 = pins::sha256_of(&into)?;
            let wanted = pin.as_ref().map(|pin| &pin.sha256).or_else(|| found.get(to));
            if wanted == Some(&sha256) {
                meter.line(&format!("{to}: here already"));
                meter.pass(file.size.unwrap_or(0));
                continue;
            }
            fs::remove_file(&into).with_context(|| format!("cannot remove {}", into.display()))?;
        }
        let Fetched { sha256, bytes } = download::fetch(client, hub, file, pin.as_ref(), &into, meter)?;
        let size = meter::megabytes(bytes);
        meter.line(&match pin {
            Some(Pin { by, .. }) => format!("{to}: {size}, sha256 as by {by}"),
            None => format!("{to}: {size}, not pinned by the card; sha256 {sha256} noted"),
        });
        found.insert(to, &sha256);
        found.write(&staging.path(pins::FILE)?)?;
    }
    found.keep_only(hub.files.iter().map(|f| f.to()));
    found.write(&staging.path(pins::FILE)?)?;
    staging.remove_all_but(hub.files.iter().map(|f| f.to()))
}

/// The hashes noted when the same files of the same hub were installed before.
fn noted_before(home: &Home, card: &Card) -> Result<Pins> {
    let folder = home.models().join(&card.name);
    let Ok(installed) = Model::open(&folder) else { return Ok(Pins::default()) };
    let place = |card: &Card| card.hub.as_ref().map(|hub| (hub.repo.clone(), hub.revision.clone()));
    if place(&installed.card) == place(card) { Pins::read(&folder) } else { Ok(Pins::default()) }
}

fn require_pins<'a>(unpinned: impl Iterator<Item = &'a str>) -> Result<()> {
    let unpinned: Vec<&str> = unpinned.collect();
    if !unpinned.is_empty() {
        bail!("--require-pins: no sha256 is given for {}", unpinned.join(", "));
    }
    Ok(())
}

/// Compares every pinned file of an installed model with its pin. Gives how many there are.
pub fn check(model: &Model) -> Result<usize> {
    let mut wanted = Pins::read(&model.folder)?;
    wanted.add_card(&model.card);
    let mut wrong = Vec::new();
    for (file, wanted) in wanted.iter() {
        match pins::sha256_of(&model.file(file)) {
            Ok(found) if found == *wanted => (),
            Ok(found) => wrong.push(format!("{file}: sha256 is {found}, wanted {wanted}")),
            Err(e) => wrong.push(format!("{file}: {e:#}")),
        }
    }
    let name = &model.card.name;
    if !wrong.is_empty() {
        bail!(
            "{name} is not as it was installed:\n{}\nhint: `clipmill model add --force` fetches it again",
            wrong.join("\n")
        );
    }
    if wanted.is_empty() {
        bail!("{name} has no pins: neither its card nor a {} states any sha256", pins::FILE);
    }
    Ok(wanted.iter().count())
}

/// Whether an `add` was stopped in the middle.
pub fn is_partly_here(home: &Home, name: &str) -> bool {
    staging::partial(home, name).is_dir()
}

/// Removes an installed model, and what is left of an unfinished `add`. Tells which it was.
pub fn remove(home: &Home, name: &str) -> Result<&'static str> {
    staging::remove(home, name)
}

/// Files below a folder, relative to it, by name. Hidden ones are left out; links are followed, for
/// hubs' caches are made of them.
fn files_below(folder: &Path) -> Result<Vec<String>> {
    fn walk(folder: &Path, prefix: &str, found: &mut Vec<String>) -> Result<()> {
        let told = || format!("cannot read {}", folder.display());
        for entry in fs::read_dir(folder).with_context(told)? {
            let entry = entry.with_context(told)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') {
                continue;
            }
            let relative = format!("{prefix}{name}");
            if entry.path().is_dir() {
                walk(&entry.path(), &format!("{relative}/"), found)?;
            } else {
                found.push(relative);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(folder, "", &mut found)?;
    found.sort();
    Ok(found)
}
