//! Feeds a mapped file to a demuxer, without a copy.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use gstreamer as gst;
use gstreamer_app as gst_app;
use kernels::mapped_file::MappedFile;

/// A demuxer seldom looks further back than this: mapped pages behind it are released.
const KEPT_BYTES: usize = 16 << 20;

/// A slice of the file that a GStreamer buffer can own.
struct Slice {
    file: Arc<MappedFile>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        &self.file.bytes()[self.range.clone()]
    }
}

/// A source element that reads `file` wherever the demuxer asks.
pub(super) fn mapped_source(file: &Arc<MappedFile>) -> gst_app::AppSrc {
    let len = file.bytes().len();
    let source = gst_app::AppSrc::builder()
        .format(gst::Format::Bytes)
        // Push mode breaks avidemux: it loses frames.
        .stream_type(gst_app::AppStreamType::RandomAccess)
        .build();
    source.set_size(len as i64);
    let position = Arc::new(AtomicUsize::new(0));
    let (seeked, file) = (position.clone(), file.clone());
    // Where the pages begin that were read and not released. Demuxers jump: to an index at the end,
    // then back to the start.
    let mut kept_from = 0;
    let callbacks = gst_app::AppSrcCallbacks::builder()
        .seek_data(move |_, offset| {
            seeked.store(offset as usize, Ordering::Relaxed);
            true
        })
        .need_data(move |source, wanted| {
            let start = position.load(Ordering::Relaxed).min(len);
            let end = (start + wanted as usize).min(len);
            // A failed push means that the pipeline is going down: nobody needs the data.
            if start == end {
                let _ = source.end_of_stream();
                return;
            }
            let mut buffer = gst::Buffer::from_slice(Slice { file: file.clone(), range: start..end });
            if let Some(buffer) = buffer.get_mut() {
                buffer.set_offset(start as u64);
            }
            position.store(end, Ordering::Relaxed);
            let _ = source.push_buffer(buffer);
            kept_from = kept_from.min(start);
            if start > kept_from + 2 * KEPT_BYTES {
                file.release(kept_from..start - KEPT_BYTES);
                kept_from = start - KEPT_BYTES;
            }
        })
        .build();
    source.set_callbacks(callbacks);
    source
}
