//! `ClipRef` → `EncodedClip`: the file mapped, hashed and in the page cache.
//!
//! Hashing reads the whole file, so the disk is waited for here and the decoder is not kept waiting.
//! It reads through the file, not the map: mapped pages would count as memory in use.

use std::{fs::File, io::Read as _, path::Path, sync::Arc};

use kernels::mapped_file::MappedFile;

use crate::{
    item::{ClipRef, EncodedClip, FileIdentity},
    stage::{Emit, Reason, Rejection, Stage, StageError},
};

/// Bytes of one read: large enough that calls cost nothing, small enough for a CPU's cache.
const READ_BYTES: usize = 256 << 10;

/// The load stage.
pub struct Load {
    buffer: Vec<u8>,
}

impl Load {
    /// Ready for the first clip.
    pub fn open() -> Self {
        Self { buffer: vec![0; READ_BYTES] }
    }

    fn read(&mut self, path: &Path) -> Result<(MappedFile, FileIdentity), Reason> {
        let unreadable = |e: std::io::Error| Reason::Unreadable(e.to_string());
        // Before opening: a named pipe would block the worker.
        let meta = path.metadata().map_err(|e| match path.to_str() {
            // Paths are text in the outputs, so a name that is not text came here with marks for gaps.
            Some(text) if text.contains('\u{FFFD}') => {
                Reason::Unreadable(format!("the file's name is not UTF-8, rename it ({e})"))
            }
            _ => unreadable(e),
        })?;
        if meta.is_dir() {
            return Err(Reason::Unreadable("is a folder, not a file".into()));
        }
        if !meta.is_file() {
            return Err(Reason::Unreadable("is not a regular file".into()));
        }
        if meta.len() == 0 {
            return Err(Reason::Empty("the file has no bytes".into()));
        }
        let mut file = File::open(path).map_err(unreadable)?;
        let mut hasher = blake3::Hasher::new();
        loop {
            match file.read(&mut self.buffer).map_err(unreadable)? {
                0 => break,
                n => hasher.update(&self.buffer[..n]),
            };
        }
        let identity = FileIdentity {
            content_hash: hasher.finalize(),
            bytes: meta.len(),
            modified_ns: modified_ns(&meta),
        };
        Ok((MappedFile::new(&file).map_err(unreadable)?, identity))
    }
}

/// When a file was last written, nanoseconds since 1970; 0 where the system does not say.
pub fn modified_ns(meta: &std::fs::Metadata) -> i64 {
    let since = meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(0, |d| d.as_nanos() as i64)
}

impl Stage for Load {
    type In = Arc<ClipRef>;
    type Out = EncodedClip;

    fn process(&mut self, clip: Arc<ClipRef>, out: &mut dyn Emit<EncodedClip>) -> Result<(), StageError> {
        let (file, identity) = self.read(Path::new(&clip.path)).map_err(|reason| Rejection {
            clip: clip.clone(),
            stage: "load",
            reason,
        })?;
        tracing::debug!(clip = clip.path, bytes = identity.bytes, "loaded");
        Ok(out.emit(EncodedClip { clip, file: Arc::new(file), identity })?)
    }
}
