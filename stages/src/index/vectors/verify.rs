//! Reading every byte of a run's files again.

use std::path::Path;

use anyhow::Result;

use super::{
    build::open_segment,
    catalogue::{self, Catalogue},
    codebook::Codebook,
    sealed::Damage,
};
use crate::index::{
    ledger::Standing,
    manifest::{Manifest, check_rejects},
};

/// What is wrong with the shards of the run in folder `run`, and with its index: a line each. Nothing is
/// changed.
pub fn verify(run: &Path) -> Result<Vec<String>> {
    let standing = Standing::read(run)?;
    let mut wrong = Vec::new();
    let mut note = |found: Result<()>| {
        if let Err(e) = found {
            wrong.push(format!("{e:#}"));
        }
    };
    note(check_rejects(run));
    let mut sources = Vec::new();
    for shard in &standing.shards {
        match Manifest::read(run, *shard) {
            Ok(Some(manifest)) => {
                note(manifest.check(run));
                sources.push((*shard, manifest.frames.blake3));
            }
            Ok(None) => {
                tracing::warn!(shard, "an older version wrote no manifest: its files cannot be verified")
            }
            Err(e) => note(Err(e)),
        }
    }
    let folder = super::folder(run);
    let missing = |what: String| Damage { path: catalogue::path(&folder), what };
    match Catalogue::read(&folder) {
        Ok(Some(catalogue)) => {
            for entry in &catalogue.segments {
                note(open_segment(&folder, entry).and_then(|segment| {
                    segment.rows.verify()?;
                    segment.lists.verify()?;
                    let source = sources.iter().find(|(shard, _)| *shard == entry.shard);
                    if source.is_some_and(|(_, source)| *source != segment.rows.facts.source) {
                        let what = "it is not made from this shard".to_owned();
                        return Err(Damage { path: segment.rows.path().to_owned(), what }.into());
                    }
                    Ok(())
                }));
            }
            if let Some(codebook) = &catalogue.codebook {
                note(Codebook::open(&folder.join(&codebook.name)).map(drop));
            }
            for shard in &standing.shards {
                if !catalogue.segments.iter().any(|s| s.shard == *shard) {
                    note(Err(missing(format!("shard {shard} is not in it")).into()));
                }
            }
            for entry in catalogue.segments.iter().filter(|s| !standing.shards.contains(&s.shard)) {
                note(Err(
                    missing(format!("it holds shard {}, which the ledger does not", entry.shard)).into()
                ));
            }
        }
        // It is made when it is needed.
        Ok(None) => (),
        Err(e) => note(Err(e)),
    }
    Ok(wrong)
}
