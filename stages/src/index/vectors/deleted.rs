//! Which rows of a shard are deleted: a bit a row.

use std::{collections::HashSet, path::Path};

use anyhow::Result;

use super::{
    rows::Rows,
    sealed::{Sealed, SealedWriter, u64_at},
};

/// The bits of those rows whose clips are in `clips`, and how many they are.
pub(crate) fn bits(rows: &Rows, clips: &HashSet<u64>) -> Result<(Vec<u64>, usize)> {
    let mut bits = vec![0u64; rows.facts.n_rows.div_ceil(64)];
    let mut n = 0;
    for clip in 0..rows.facts.n_clips {
        if !clips.contains(&rows.clip(clip)?.id) {
            continue;
        }
        for row in rows.rows_of(clip)? {
            bits[row / 64] |= 1 << (row % 64);
            n += 1;
        }
    }
    Ok((bits, n))
}

pub(crate) fn write(path: &Path, bits: &[u64]) -> Result<()> {
    let mut file = SealedWriter::create(path.to_owned())?;
    file.add("bits", &bits.iter().flat_map(|b| b.to_le_bytes()).collect::<Vec<u8>>())?;
    file.finish(&())
}

pub(crate) fn read(path: &Path, n_rows: usize) -> Result<Vec<u64>> {
    let (file, ()) = Sealed::open(path)?;
    let n = n_rows.div_ceil(64);
    let bytes = file.bytes(file.section("bits", n * 8)?)?;
    Ok((0..n).map(|i| u64_at(bytes, i)).collect())
}
