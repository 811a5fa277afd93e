//! The hidden folder that a model is made in, and its appearance under its name.
//!
//! `models/.NAME.partial` outlives a run that is stopped, so that the next one goes on. Its lock is on
//! the folder itself and thus goes with it when it is renamed.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use stages::{
    files::write_whole,
    model::{Card, Home, Model, card::check_name},
};

/// A model's folder on its way in. No other process works on it.
pub struct Staging {
    models: PathBuf,
    name: String,
    folder: PathBuf,
    /// Held for as long as this lives.
    _lock: File,
}

impl Staging {
    /// Makes the folder, or takes over what an earlier run left. A model of that name that is there
    /// already is an error, unless it is to be replaced.
    pub fn open(home: &Home, name: &str, replaces: bool) -> Result<Self> {
        check_name(name)?;
        let models = home.models();
        let folder = partial(home, name);
        loop {
            make_folder(&folder)?;
            let lock = File::open(&folder).with_context(|| format!("cannot open {}", folder.display()))?;
            if lock.try_lock().is_err() {
                bail!("model {name} is being added by another clipmill ({})", folder.display());
            }
            // The other one may have published the folder before we got its lock.
            let is_same = folder.metadata().and_then(|a| Ok((a.ino(), lock.metadata()?.ino())));
            if is_same.is_ok_and(|(a, b)| a == b) {
                let target = models.join(name);
                if target.symlink_metadata().is_ok() && !replaces {
                    // An empty folder of our own making is no trace worth leaving.
                    let _ = fs::remove_dir(&folder);
                    bail!(
                        "model {name} is installed already, in {}\nhint: --force replaces it",
                        target.display()
                    );
                }
                return Ok(Self { models, name: name.to_owned(), folder, _lock: lock });
            }
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a file of the model is made; its folder exists.
    pub fn path(&self, file: &str) -> Result<PathBuf> {
        let path = self.folder.join(file);
        if let Some(parent) = path.parent() {
            make_folder(parent)?;
        }
        Ok(path)
    }

    /// Removes what an earlier run left.
    pub fn clear(&self) -> Result<()> {
        let told = || format!("cannot clear {}", self.folder.display());
        for entry in fs::read_dir(&self.folder).with_context(told)? {
            let path = entry.with_context(told)?.path();
            let is_folder = path.symlink_metadata().is_ok_and(|m| m.is_dir());
            if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.with_context(told)?;
        }
        Ok(())
    }

    /// Whether no byte of the model is here.
    pub fn holds_nothing(&self) -> bool {
        let is_empty = |file: &String| self.folder.join(file).metadata().is_ok_and(|m| m.len() == 0);
        let files = super::files_below(&self.folder);
        files.is_ok_and(|files| files.iter().all(|file| file == "model.toml" || is_empty(file)))
    }

    /// Removes the folder.
    pub fn discard(&self) -> Result<()> {
        fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))
    }

    /// Puts the card in. What is left of another card's files is removed.
    pub fn keep_for(&self, card: &str) -> Result<()> {
        let path = self.path("model.toml")?;
        if fs::read_to_string(&path).ok().as_deref() != Some(card) {
            self.clear()?;
            write_whole(&path, card.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Removes files that are neither these nor ours.
    pub fn remove_all_but<'a>(&self, files: impl Iterator<Item = &'a str>) -> Result<()> {
        let mut kept: Vec<&str> = files.collect();
        kept.extend(["model.toml", super::pins::FILE]);
        for file in super::files_below(&self.folder)? {
            if !kept.contains(&file.as_str()) {
                let path = self.folder.join(file);
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Checks the model and gives it its name, in one step as seen from outside.
    pub fn publish(self, replaces: bool) -> Result<Model> {
        let model = Model::open(&self.folder)?;
        sync_folders(&self.folder)?;
        let target = self.models.join(&self.name);
        let told = || format!("cannot rename {} to {}", self.folder.display(), target.display());
        let old = replaces && target.symlink_metadata().is_ok();
        let aside = old.then(|| set_aside(&target)).transpose()?;
        if let Err(e) = fs::rename(&self.folder, &target) {
            if let Some(aside) = &aside {
                // The first error is the one to tell.
                let _ = fs::rename(aside, &target);
            }
            return Err(e).with_context(told);
        }
        sync(&self.models)?;
        if let Some(aside) = aside {
            delete(&aside)?;
        }
        Ok(Model { folder: target, ..model })
    }
}

/// The folder that a model is made in.
pub fn partial(home: &Home, name: &str) -> PathBuf {
    home.models().join(format!(".{name}.partial"))
}

/// Removes a model, and what an unfinished `add` left of one. Tells which it was.
pub fn remove(home: &Home, name: &str) -> Result<&'static str> {
    check_name(name)?;
    let models = home.models();
    let (target, partial) = (models.join(name), partial(home, name));
    let is_there = |path: &Path| path.symlink_metadata().is_ok();
    let told = match (is_there(&target), is_there(&partial)) {
        (true, _) => "removed",
        (false, true) => "was not installed; its unfinished download is removed",
        (false, false) => {
            let installed: Vec<Card> = home.list().into_iter().map(|m| m.card).collect();
            let names: Vec<&str> = installed.iter().map(|card| card.name.as_str()).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            bail!(
                "model {name} is not installed: there is no {}\nhint: installed are: {names}",
                target.display()
            );
        }
    };
    for path in [target, partial] {
        if is_there(&path) {
            delete(&set_aside(&path)?)?;
        }
    }
    Ok(told)
}

/// Takes a folder's name away, so that it is gone at once however long deleting takes.
fn set_aside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside =
        path.with_file_name(format!(".{}.removed-{}", name.trim_start_matches('.'), std::process::id()));
    fs::rename(path, &aside).with_context(|| format!("cannot rename {}", path.display()))?;
    Ok(aside)
}

/// Deletes a folder; of a link only the link.
fn delete(path: &Path) -> Result<()> {
    let is_folder = path.symlink_metadata().is_ok_and(|m| m.is_dir());
    let deleted = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    deleted.with_context(|| format!("cannot delete {}", path.display()))
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}

/// Names of files are on the disk only when their folder is.
fn sync_folders(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        if path.is_dir() {
            sync_folders(&path)?;
        }
    }
    sync(folder)
}

fn sync(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|f| f.sync_all());
    synced.with_context(|| format!("cannot sync {}", folder.display()))
}
