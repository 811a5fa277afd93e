//! What passes between stages: `ClipRef` → `EncodedClip` → `FrameBatch` → `EmbeddingBatch` →
//! `Indexed`.

use std::{fmt, sync::Arc};

use kernels::mapped_file::MappedFile;

use crate::{stage::Weigh, tensors::Tensors};

/// A clip's number, unique and lasting within one output folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClipId(pub u64);

/// Presentation time in the stream, as a player's clock shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pts {
    /// Nanoseconds from the start of the stream; may be negative.
    pub nanos: i64,
}

impl fmt::Display for Pts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} s", self.nanos as f64 / 1e9)
    }
}

/// One entry of the clip list.
#[derive(Debug, PartialEq, Eq)]
pub struct ClipRef {
    /// Its number.
    pub id: ClipId,
    /// The file, as the outputs name it and as it is opened.
    pub path: String,
    /// Its label, if the list gives one.
    pub label: Option<String>,
    /// Values of the manifest's further columns, in the order of [`crate::clips::ClipList::extra_columns`].
    pub extra: Vec<Option<String>>,
}

impl Weigh for Arc<ClipRef> {
    fn bytes(&self) -> usize {
        size_of::<ClipRef>() + self.path.len()
    }
}

/// A clip's file in memory, still encoded.
#[derive(Clone, Debug)]
pub struct EncodedClip {
    /// Which clip.
    pub clip: Arc<ClipRef>,
    /// The file's bytes.
    pub file: Arc<MappedFile>,
    /// What identifies them.
    pub identity: FileIdentity,
}

/// What a file was when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// blake3 of its bytes.
    pub content_hash: blake3::Hash,
    /// Its length.
    pub bytes: u64,
    /// When it was last written, nanoseconds since 1970.
    pub modified_ns: i64,
}

impl Weigh for EncodedClip {
    fn bytes(&self) -> usize {
        self.file.bytes().len()
    }
}

/// Which frame of its clip a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameInfo {
    /// Its place among the clip's frames in presentation order, from 0.
    pub frame_index: u32,
    /// Its presentation time.
    pub pts: Pts,
    /// Whether it decodes without any other frame.
    pub is_keyframe: bool,
}

/// What is known of a clip once all of it was decoded.
#[derive(Clone, Debug)]
pub struct ClipEnd {
    /// The file.
    pub identity: FileIdentity,
    /// Such as `h264`.
    pub codec: String,
    /// Such as `mp4`.
    pub container: String,
    /// Samples across of the first frame, as stored.
    pub width: u32,
    /// Samples down of the first frame, as stored.
    pub height: u32,
    /// Frames per second by the container, 0 where it does not say.
    pub fps: f64,
    /// Last frame's end less the first frame's start.
    pub duration_ns: i64,
    /// Frames decoded.
    pub n_frames: u32,
    /// Frames sampled, so rows.
    pub n_sampled: u32,
    /// Which decoder, such as `avdec_h264`.
    pub decoder: String,
    /// What was wrong with the file, where its good part was kept.
    pub damage: Option<String>,
}

/// Frames of one clip within a batch. The last part of a clip has its `end` and may have no frames.
#[derive(Debug)]
pub struct Part {
    /// Which clip.
    pub clip: Arc<ClipRef>,
    /// Which frames.
    pub frames: Vec<FrameInfo>,
    /// Set on the clip's last part.
    pub end: Option<Box<ClipEnd>>,
}

/// Frames of any clips in the model's form, as an encoder takes them.
#[derive(Debug)]
pub struct FrameBatch {
    /// Whose frames, in the order of the tensors.
    pub parts: Vec<Part>,
    /// Room for tensors of 3 × height × width normalized floats; the first [`FrameBatch::n_frames`]
    /// are filled.
    pub tensors: Tensors,
}

impl FrameBatch {
    /// Frames of all parts.
    pub fn n_frames(&self) -> usize {
        self.parts.iter().map(|part| part.frames.len()).sum()
    }
}

impl Weigh for FrameBatch {
    fn bytes(&self) -> usize {
        self.tensors.bytes()
    }
}

/// Embeddings of frames of one clip. Batches of a clip may arrive in any order; `end` says how many
/// rows there are in all.
#[derive(Debug)]
pub struct EmbeddingBatch {
    /// Which clip.
    pub clip: Arc<ClipRef>,
    /// Which frames.
    pub frames: Vec<FrameInfo>,
    /// `frames.len()` unit vectors of the joint space.
    pub embeddings: Vec<f32>,
    /// `frames.len()` vectors of the image tower, where the joint space is another and they are kept.
    pub image_embeddings: Vec<f32>,
    /// From the clip's last batch of frames.
    pub end: Option<Box<ClipEnd>>,
}

impl Weigh for EmbeddingBatch {
    fn bytes(&self) -> usize {
        (self.embeddings.len() + self.image_embeddings.len()) * size_of::<f32>()
    }
}

/// One published pair of Parquet files, `frames/` and `clips/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardRef {
    /// Its number.
    pub shard: u32,
    /// Rows in `clips/`.
    pub n_clips: u64,
    /// Rows in `frames/`.
    pub n_frames: u64,
}

/// What the index stage tells: a clip is whole and waits for its shard, or a shard was published.
#[derive(Clone, Debug)]
pub enum Indexed {
    /// All rows of a clip are in.
    Clip {
        /// Which clip.
        clip: Arc<ClipRef>,
        /// Its rows.
        n_frames: u32,
        /// What was wrong with it.
        damage: Option<String>,
    },
    /// A shard is on disk and in the ledger.
    Shard(ShardRef),
}

impl Weigh for Indexed {
    fn bytes(&self) -> usize {
        size_of::<Self>()
    }
}
