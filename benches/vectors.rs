//! A run made of vectors that are given, for benches of what comes after the encoder.

use std::{
    fs::File,
    io::{BufReader, Read as _},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow};
use stages::{
    files::NpyForm,
    index::{self, schema::VectorShape, shard::Provenance},
    item::{ClipEnd, ClipId, ClipRef, EmbeddingBatch, FileIdentity, FrameInfo, Pts},
};

/// Rows of a NumPy file, in order.
pub struct Rows {
    file: BufReader<File>,
    form: NpyForm,
    /// Rows of the file.
    pub n: usize,
    /// Values of a row.
    pub dim: usize,
}

impl Rows {
    /// Of a file of two dimensions, float16 or float32.
    pub fn open(path: &Path) -> Result<Self> {
        let told = || path.display().to_string();
        let mut file = BufReader::new(File::open(path).with_context(told)?);
        let form = NpyForm::read(&mut file).context("it is no NumPy file").with_context(told)?;
        let [n, dim] = form.shape[..] else { return Err(anyhow!("{}: need two sizes: {form:?}", told())) };
        Ok(Self { file, form, n, dim })
    }

    /// The next `n` rows.
    pub fn next(&mut self, n: usize) -> Result<Vec<f32>> {
        let value_bytes = self.form.value_bytes().context("need float16 or float32")?;
        let mut bytes = vec![0; n * self.dim * value_bytes];
        self.file.read_exact(&mut bytes)?;
        self.form.values(&bytes).context("need float16 or float32")
    }
}

fn end(n: usize) -> Box<ClipEnd> {
    let identity = FileIdentity { content_hash: blake3::hash(b"a clip"), bytes: 1 << 20, modified_ns: 0 };
    Box::new(ClipEnd {
        identity,
        codec: "h264".into(),
        container: "mp4".into(),
        width: 320,
        height: 240,
        fps: 25.0,
        duration_ns: 8_000_000_000,
        n_frames: 200,
        n_sampled: n as u32,
        decoder: "libav:h264".into(),
        damage: None,
    })
}

/// A clip's parts, as the encode stage emits them.
pub fn parts(id: usize, vectors: &[f32], dim: usize, image_dim: usize, part: usize) -> Vec<EmbeddingBatch> {
    let n = vectors.len() / dim;
    let path = format!("data/kinetics/train/{:04}/v{id:09}.mp4", id % 1000);
    let label = Some(format!("label_{:03}", id / 3 % 101));
    let clip = Arc::new(ClipRef { id: ClipId(id as u64), path, label, extra: Vec::new() });
    let info = |i: usize| FrameInfo {
        frame_index: 12 * i as u32,
        pts: Pts { nanos: i as i64 * 480_000_000 },
        is_keyframe: i == 0,
    };
    let parts = vectors.chunks(part * dim).enumerate().map(|(p, rows)| {
        let (first, n_part) = (p * part, rows.len() / dim);
        EmbeddingBatch {
            clip: clip.clone(),
            frames: (first..first + n_part).map(info).collect(),
            embeddings: rows.to_vec(),
            image_embeddings: rows.iter().copied().cycle().take(n_part * image_dim).collect(),
            end: (first + n_part == n).then(|| end(n)),
        }
    });
    parts.collect()
}

/// Settings of an index stage that writes shards into `folder` and keeps no vector index.
pub fn settings(folder: &Path, shape: VectorShape, shard_rows: u64) -> index::Settings {
    index::Settings {
        folder: folder.to_owned(),
        shard_rows,
        vectors: false,
        shape,
        extra_columns: Vec::new(),
        settings_hash: String::new(),
        provenance: Provenance {
            model: "a model".into(),
            model_hash: "0".repeat(64),
            preprocess_hash: "1".repeat(64),
        },
    }
}
