//! Runs whose vectors are given, written by the index stage without a model.

use std::{fs, path::Path, sync::Arc};

use stages::{
    index::{
        self, Index,
        ledger::Ledger,
        schema::{Element, VectorShape},
        shard::Provenance,
    },
    item::{ClipEnd, ClipId, ClipRef, EmbeddingBatch, FileIdentity, FrameInfo, Pts},
    stage::{Kept, Stage as _},
};

/// What a made-up clip of `n` rows ends with.
pub fn end(n: usize, duration_ns: i64) -> Box<ClipEnd> {
    Box::new(ClipEnd {
        identity: FileIdentity { content_hash: blake3::hash(b"a clip"), bytes: 9, modified_ns: 0 },
        codec: "h264".into(),
        container: "mp4".into(),
        width: 320,
        height: 240,
        fps: 24_000.0 / 1_001.0,
        duration_ns,
        n_frames: n as u32,
        n_sampled: n as u32,
        decoder: "libav:h264".into(),
        damage: Some("a \"little\"".into()),
    })
}

/// A clip of given vectors, a frame each, a second apart.
#[derive(Clone, Debug)]
pub struct MadeClip {
    /// Its file's name.
    pub path: String,
    /// Its label.
    pub label: Option<String>,
    /// Unit vectors.
    pub vectors: Vec<Vec<f32>>,
}

/// Settings of an index stage that writes vectors of `dim` values into `out`.
pub fn settings(out: &Path, shape: VectorShape, shard_rows: u64) -> index::Settings {
    index::Settings {
        folder: out.to_owned(),
        shard_rows,
        vectors: true,
        shape,
        extra_columns: Vec::new(),
        settings_hash: String::new(),
        provenance: Provenance {
            model: "made up".into(),
            model_hash: "0".repeat(64),
            preprocess_hash: "1".repeat(64),
        },
    }
}

/// Adds clips to the run in folder `out`, which is made if it is not there. Their numbers follow on.
pub fn add_clips(out: &Path, clips: &[MadeClip], shard_rows: u64) {
    fs::create_dir_all(out).unwrap();
    let dim = clips[0].vectors[0].len();
    let shape = VectorShape { dim, image_dim: 0, element: Element::Float16 };
    let (ledger, standing) = Ledger::open(out).unwrap();
    let mut stage = Index::open(settings(out, shape, shard_rows), ledger).unwrap();
    let mut told = Kept(Vec::new());
    for (i, clip) in clips.iter().enumerate() {
        let n = clip.vectors.len();
        let info = |i: usize| FrameInfo {
            frame_index: 25 * i as u32,
            pts: Pts { nanos: i as i64 * 1_000_000_000 },
            is_keyframe: i == 0,
        };
        let batch = EmbeddingBatch {
            clip: Arc::new(ClipRef {
                id: ClipId(standing.next_clip + i as u64),
                path: clip.path.clone(),
                label: clip.label.clone(),
                extra: Vec::new(),
            }),
            frames: (0..n).map(info).collect(),
            embeddings: clip.vectors.concat(),
            image_embeddings: Vec::new(),
            end: Some(end(n, n as i64 * 1_000_000_000)),
        };
        stage.process(batch, &mut told).unwrap();
    }
    stage.finish(&mut told).unwrap();
}
