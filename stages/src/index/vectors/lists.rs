//! A shard's rows in eight bits, list after list; in one list where there is no codebook.

use std::{ops::Range, path::Path};

use anyhow::Result;
use kernels::codes::{encode_half_row, stride};
use serde::{Deserialize, Serialize};

use super::{
    codebook::Codebook,
    rows::Rows,
    sealed::{Sealed, SealedWriter, u32_at},
};

/// Rows read at once.
const BLOCK_ROWS: usize = 8_192;

/// What the file says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ListsFacts {
    pub(crate) shard: u32,
    pub(crate) dim: usize,
    pub(crate) n_rows: usize,
    pub(crate) n_lists: usize,
    /// Whose lists these are; none, and there is but one.
    pub(crate) codebook: Option<String>,
    /// Of the rows, [`super::rows::RowsFacts::source`].
    pub(crate) source: String,
    /// The largest scale of a row.
    pub(crate) most_scale: f32,
}

/// Writes the lists of `rows` by a codebook that has a name.
pub(crate) fn write_lists(path: &Path, rows: &Rows, codebook: Option<(&str, &Codebook)>) -> Result<()> {
    let facts = &rows.facts;
    let n_lists = codebook.map_or(1, |(_, c)| c.n_lists());
    let (mut bytes, mut vectors) = (Vec::new(), Vec::new());
    let mut list_of = vec![0u32; if codebook.is_some() { facts.n_rows } else { 0 }];
    if let Some((_, codebook)) = codebook {
        for from in (0..facts.n_rows).step_by(BLOCK_ROWS) {
            let block = from..(from + BLOCK_ROWS).min(facts.n_rows);
            rows.read(block.clone(), &mut bytes, &mut vectors)?;
            list_of[block].copy_from_slice(&codebook.assign(&vectors));
        }
    }
    // A counting sort: rows of a list stay in their order.
    let mut ends = vec![0u32; n_lists];
    list_of.iter().for_each(|list| ends[*list as usize] += 1);
    let mut sum = 0;
    let mut next: Vec<u32> = Vec::with_capacity(n_lists);
    for end in &mut ends {
        next.push(sum);
        sum += *end;
        *end = sum;
    }
    let mut ids: Vec<u32> = (0..facts.n_rows as u32).collect();
    for (row, list) in list_of.iter().enumerate() {
        let at = &mut next[*list as usize];
        ids[*at as usize] = row as u32;
        *at += 1;
    }
    if codebook.is_none() {
        ends[0] = facts.n_rows as u32;
    }

    let mut file = SealedWriter::create(path.to_owned())?;
    file.section("codes")?;
    let mut codes = vec![0; stride(facts.dim)];
    let mut wide = Vec::new();
    let mut scales: Vec<u8> = Vec::with_capacity(facts.n_rows * 4);
    let mut most_scale = 0f32;
    for id in &ids {
        // Rows of one list lie apart; the page cache has them.
        rows.read(*id as usize..*id as usize + 1, &mut bytes, &mut vectors)?;
        let scale = encode_half_row(&vectors, &mut wide, &mut codes);
        most_scale = most_scale.max(scale);
        scales.extend(scale.to_le_bytes());
        file.write(&codes)?;
    }
    let numbers = |numbers: &[u32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    for (name, bytes) in [("scales", scales), ("ids", numbers(&ids)), ("ends", numbers(&ends))] {
        file.add(name, &bytes)?;
    }
    file.finish(&ListsFacts {
        shard: facts.shard,
        dim: facts.dim,
        n_rows: facts.n_rows,
        n_lists,
        codebook: codebook.map(|(name, _)| name.to_owned()),
        source: facts.source.clone(),
        most_scale,
    })
}

/// The lists of one shard.
#[derive(Debug)]
pub(crate) struct Lists {
    file: Sealed,
    pub(crate) facts: ListsFacts,
    codes: Range<usize>,
    scales: Range<usize>,
    ids: Range<usize>,
    ends: Vec<u32>,
}

impl Lists {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let (file, facts) = Sealed::open::<ListsFacts>(path)?;
        let codes = file.section("codes", facts.n_rows.saturating_mul(stride(facts.dim)))?;
        let scales = file.section("scales", facts.n_rows.saturating_mul(4))?;
        let ids = file.section("ids", facts.n_rows.saturating_mul(4))?;
        let ends = file.bytes(file.section("ends", facts.n_lists.saturating_mul(4))?)?;
        let ends: Vec<u32> = ends.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        if ends.last().copied() != Some(facts.n_rows as u32) || !ends.is_sorted() {
            return Err(file.damage("its lists do not add up".into()));
        }
        Ok(Self { file: file.mapped(), facts, codes, scales, ids, ends })
    }

    /// Whether these are the lists of `rows` by the codebook of this name.
    pub(crate) fn are_of(&self, rows: &Rows, codebook: Option<&str>) -> bool {
        let (own, rows) = (&self.facts, &rows.facts);
        (own.shard, own.dim, own.n_rows, &own.source) == (rows.shard, rows.dim, rows.n_rows, &rows.source)
            && own.codebook.as_deref() == codebook
    }

    /// Places of the rows of a list.
    pub(crate) fn list(&self, list: usize) -> Range<usize> {
        let from = list.checked_sub(1).map_or(0, |before| self.ends[before]);
        from as usize..self.ends[list] as usize
    }

    /// Codes of the rows at these places.
    pub(crate) fn codes(&self, places: &Range<usize>) -> Result<&[u8]> {
        let stride = stride(self.facts.dim);
        let from = self.codes.start;
        self.file.bytes(from + places.start * stride..from + places.end * stride)
    }

    /// Scales of the rows at these places, four bytes each.
    pub(crate) fn scales(&self, places: &Range<usize>) -> Result<&[[u8; 4]]> {
        let from = self.scales.start;
        Ok(self.file.bytes(from + places.start * 4..from + places.end * 4)?.as_chunks().0)
    }

    /// The row at a place.
    pub(crate) fn row(&self, place: usize) -> Result<usize> {
        let from = self.ids.start + place * 4;
        let row = u32_at(self.file.bytes(from..from + 4)?, 0) as usize;
        if row >= self.facts.n_rows {
            return Err(self.file.damage(format!("place {place} holds a row that is not there")));
        }
        Ok(row)
    }

    pub(crate) fn verify(&self) -> Result<()> {
        self.file.verify()
    }
}
