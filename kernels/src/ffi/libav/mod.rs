//! FFmpeg's demuxers and software decoders: a mapped file → packets → frames.
//!
//! The C side (`../libav.c`) is compiled against the FFmpeg of the machine. Here lies what keeps its
//! pointers valid: an [`Input`] keeps its file, a [`Packet`] and a [`Frame`] own their buffers.

mod colour;
mod sys;

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ops::Range,
    ptr::NonNull,
    sync::{Arc, atomic::AtomicBool},
};

use crate::{
    mapped_file::MappedFile,
    picture::{Layout, Orientation, Picture, PixelFormat, Plane, Reading, SampleAspect},
};

/// What FFmpeg could not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no stream of pictures.
    #[error("no video stream")]
    NoVideo,
    /// There is no decoder for it.
    #[error("{0}")]
    Missing(String),
    /// FFmpeg knows what it is, and does not support it.
    #[error("{0}")]
    NotSupported(String),
    /// The bytes break their own format.
    #[error("{0}")]
    Invalid(String),
    /// The stop flag was set.
    #[error("stopped")]
    Stopped,
    /// There is no memory.
    #[error("out of memory")]
    OutOfMemory,
}

impl Error {
    fn new(code: c_int) -> Self {
        let mut text = [0 as c_char; 512];
        // SAFETY: the buffer is as long as is said, and the function ends it with a zero byte.
        let text = unsafe {
            sys::clipmill_av_message(code, text.as_mut_ptr(), text.len() as i64);
            CStr::from_ptr(text.as_ptr())
        };
        let text = text.to_string_lossy().trim_end_matches('.').to_lowercase();
        // SAFETY: plain numbers.
        let is = |kind| unsafe { sys::clipmill_av_is(code, kind) != 0 };
        if is(sys::IS_STOPPED) {
            Self::Stopped
        } else if is(sys::IS_NO_VIDEO) {
            Self::NoVideo
        } else if is(sys::IS_NO_DECODER) {
            Self::Missing(text)
        } else if is(sys::IS_NOT_SUPPORTED) {
            Self::NotSupported(text)
        } else {
            Self::Invalid(text)
        }
    }
}

/// Zero is success, negative numbers are FFmpeg's errors.
fn check(code: c_int) -> Result<(), Error> {
    if code < 0 { Err(Error::new(code)) } else { Ok(()) }
}

/// A static string of FFmpeg's.
fn name(text: *const c_char) -> &'static str {
    if text.is_null() {
        return "unknown";
    }
    // SAFETY: the shim hands out names from FFmpeg's own tables, which are never freed.
    unsafe { CStr::from_ptr(text) }.to_str().unwrap_or("unknown")
}

/// Versions of libavformat and libavcodec in use, such as `59.27.100`.
pub fn versions() -> [String; 2] {
    let (mut format, mut codec) = (0, 0);
    // SAFETY: both point to a `u32`.
    unsafe { sys::clipmill_av_versions(&mut format, &mut codec) };
    [format, codec].map(|v| format!("{}.{}.{}", v >> 16, v >> 8 & 0xFF, v & 0xFF))
}

/// What a container says of its first video stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Stream {
    /// FFmpeg's name of the codec, such as `h264`.
    pub codec: &'static str,
    /// FFmpeg's name of the container, such as `mov,mp4,m4a,3gp,3g2,mj2`.
    pub container: &'static str,
    /// The codec's own headers, where the container keeps them apart.
    pub extradata: Vec<u8>,
    /// Frames by the container, 0 where it does not say.
    pub n_frames: u64,
    /// Time of the file's first packet, where its clock does not start at 0.
    pub start_ns: i64,
    /// Nanoseconds, 0 where unknown.
    pub duration_ns: i64,
    /// Frames a second, 0 where unknown.
    pub fps: f64,
    /// Samples across and down.
    pub size: (u32, u32),
    /// Shape of a sample, where the container states it.
    pub sample_aspect: Option<SampleAspect>,
    /// How a viewer turns the pictures.
    pub orientation: Orientation,
    /// Whether its codec may show pictures in another order than it codes them.
    pub may_reorder: bool,
    /// Whether its pictures are, or may be, two fields.
    pub is_interlaced: bool,
    /// Whether all pictures of its codec decode alone.
    pub is_intra_only: bool,
    /// Whether it is a bare stream, without times.
    pub is_untimed: bool,
}

/// A clip's container, opened.
pub struct Input {
    raw: NonNull<sys::Input>,
    /// Both are read through `raw`.
    _file: Arc<MappedFile>,
    _stop: Arc<AtomicBool>,
}

// SAFETY: FFmpeg's contexts are not bound to the thread that made them.
unsafe impl Send for Input {}

impl Input {
    /// Reads the headers. `demuxer` is FFmpeg's name of the container, where it is known; setting
    /// `stop` makes reads fail with [`Error::Stopped`].
    pub fn open(
        file: &Arc<MappedFile>,
        demuxer: Option<&CStr>,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self, Error> {
        // So that the shim may read the flag as a byte.
        const { assert!(size_of::<AtomicBool>() == 1) };
        let bytes = file.bytes();
        let mut raw = std::ptr::null_mut();
        // SAFETY: the bytes and the flag live as long as the `Arc`s that the result keeps; the name is
        // used in the call alone.
        let code = unsafe {
            sys::clipmill_av_open(
                bytes.as_ptr(),
                bytes.len() as i64,
                stop.as_ptr().cast(),
                demuxer.map_or(std::ptr::null(), CStr::as_ptr),
                &mut raw,
            )
        };
        check(code)?;
        let raw = NonNull::new(raw).ok_or(Error::OutOfMemory)?;
        Ok(Self { raw, _file: file.clone(), _stop: stop.clone() })
    }

    /// What is known of the stream so far.
    pub fn stream(&self) -> Stream {
        let mut raw = std::mem::MaybeUninit::<sys::Stream>::uninit();
        // SAFETY: `self.raw` is open, and the function writes every field.
        let raw = unsafe {
            sys::clipmill_av_describe(self.raw.as_ptr(), raw.as_mut_ptr());
            raw.assume_init()
        };
        let extradata = match raw.extradata.is_null() {
            true => Vec::new(),
            // SAFETY: the input is open, so its headers are there.
            false => unsafe {
                std::slice::from_raw_parts(raw.extradata, raw.extradata_size.max(0) as usize).to_vec()
            },
        };
        let fps = if raw.fps[0] > 0 && raw.fps[1] > 0 {
            f64::from(raw.fps[0]) / f64::from(raw.fps[1])
        } else {
            0.0
        };
        Stream {
            codec: name(raw.codec),
            container: name(raw.container),
            extradata,
            n_frames: raw.n_frames.max(0) as u64,
            start_ns: raw.start_ns,
            duration_ns: raw.duration_ns.max(0),
            fps,
            size: (raw.size[0].max(0) as u32, raw.size[1].max(0) as u32),
            sample_aspect: SampleAspect::new(raw.sar[0], raw.sar[1]),
            orientation: colour::orientation(&raw.matrix),
            may_reorder: raw.may_reorder != 0,
            is_interlaced: raw.is_interlaced != 0,
            is_intra_only: raw.is_intra_only != 0,
            is_untimed: raw.is_untimed != 0,
        }
    }

    /// Reads the stream's next packet into `packet`; false at the end.
    pub fn read(&mut self, packet: &mut Packet) -> Result<bool, Error> {
        let mut told = std::mem::MaybeUninit::<sys::Packet>::uninit();
        // What it held is given up first, whatever comes of the read.
        (packet.data, packet.size) = (std::ptr::null(), 0);
        // SAFETY: `self.raw` is open and `packet` owned; every field is written where 0 is returned.
        let told = unsafe {
            match sys::clipmill_av_read(self.raw.as_ptr(), packet.raw.as_ptr(), told.as_mut_ptr()) {
                0 => told.assume_init(),
                sys::END => return Ok(false),
                error => return Err(Error::new(error)),
            }
        };
        let time = |ns| if ns == sys::NO_TIME { None } else { Some(ns) };
        packet.size = told.size.max(0) as usize;
        packet.data = told.data;
        packet.pts_ns = time(told.pts_ns);
        packet.dts_ns = time(told.dts_ns);
        packet.duration_ns = told.duration_ns.max(0);
        packet.is_key = told.is_key != 0;
        packet.is_discarded = told.is_discarded != 0;
        packet.is_corrupt = told.is_corrupt != 0;
        packet.is_encrypted = told.is_encrypted != 0;
        Ok(true)
    }

    /// How far into the file was read.
    pub fn position(&self) -> usize {
        // SAFETY: `self.raw` is open.
        unsafe { sys::clipmill_av_position(self.raw.as_ptr()) as usize }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        // SAFETY: `self.raw` is open, and nobody uses it afterwards.
        unsafe { sys::clipmill_av_close(self.raw.as_ptr()) }
    }
}

/// A coded picture, or two fields, or nothing to show.
pub struct Packet {
    raw: NonNull<c_void>,
    data: *const u8,
    size: usize,
    /// When it is shown.
    pub pts_ns: Option<i64>,
    /// When it is decoded.
    pub dts_ns: Option<i64>,
    /// How long it is shown, 0 where unknown.
    pub duration_ns: i64,
    /// Whether decoding can start with it.
    pub is_key: bool,
    /// Whether it is decoded for others only: an edit list leaves it out.
    pub is_discarded: bool,
    /// Whether the demuxer found it damaged.
    pub is_corrupt: bool,
    /// Whether its bytes are encrypted, so that decoding it gives noise.
    pub is_encrypted: bool,
}

// SAFETY: packets are counted references to bytes that nobody changes.
unsafe impl Send for Packet {}

impl Packet {
    /// An empty packet.
    pub fn new() -> Result<Self, Error> {
        // SAFETY: no arguments; null means that there is no memory.
        let raw = NonNull::new(unsafe { sys::clipmill_av_packet_new() }).ok_or(Error::OutOfMemory)?;
        Ok(Self {
            raw,
            data: std::ptr::null(),
            size: 0,
            pts_ns: None,
            dts_ns: None,
            duration_ns: 0,
            is_key: false,
            is_discarded: false,
            is_corrupt: false,
            is_encrypted: false,
        })
    }

    /// The coded bytes.
    pub fn bytes(&self) -> &[u8] {
        if self.data.is_null() {
            return &[];
        }
        // SAFETY: `data` is the packet's own buffer of `size` bytes, until the next read into it, which
        // needs `&mut self`.
        unsafe { std::slice::from_raw_parts(self.data, self.size) }
    }
}

impl Drop for Packet {
    fn drop(&mut self) {
        // SAFETY: owned, and nobody uses it afterwards.
        unsafe { sys::clipmill_av_packet_free(self.raw.as_ptr()) }
    }
}

/// What a decoder answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Done,
    /// Packets must be sent, or frames received, first.
    Again,
    /// Nothing more comes.
    End,
}

/// A software decoder of one stream.
pub struct Decoder {
    raw: NonNull<sys::Decoder>,
    /// For the next picture, left from asking in vain.
    spare: Option<Frame>,
}

// SAFETY: FFmpeg's contexts are not bound to the thread that made them.
unsafe impl Send for Decoder {}

impl Decoder {
    /// For the stream of `input`, with so many threads. `reorder` is by how many frames a frame may
    /// overtake another from packets to pictures, where that is known: H.264 does not always tell.
    pub fn open(input: &Input, threads: u32, reorder: Option<u32>) -> Result<Self, Error> {
        let mut raw = std::ptr::null_mut();
        let reorder = reorder.map_or(-1, |n| n as c_int);
        // SAFETY: the input is open; the decoder copies what it needs of it.
        let code =
            unsafe { sys::clipmill_av_decoder_open(input.raw.as_ptr(), threads as c_int, reorder, &mut raw) };
        check(code)?;
        Ok(Self { raw: NonNull::new(raw).ok_or(Error::OutOfMemory)?, spare: None })
    }

    /// FFmpeg's name of it, such as `libdav1d`.
    pub fn name(&self) -> &'static str {
        // SAFETY: the decoder is open.
        name(unsafe { sys::clipmill_av_decoder_name(self.raw.as_ptr()) })
    }

    /// Whether it met damage, which it may have concealed.
    pub fn has_complained(&self) -> bool {
        // SAFETY: the decoder is open.
        unsafe { !sys::clipmill_av_complaint(self.raw.as_ptr()).is_null() }
    }

    /// The damage that it met first, once all is decoded and its threads rest.
    pub fn complaint(&self) -> Option<String> {
        // SAFETY: the decoder is open; the text ends with a zero byte and stays until it is closed.
        unsafe {
            let text = sys::clipmill_av_complaint(self.raw.as_ptr());
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().to_lowercase())
        }
    }

    /// Forgets its complaints.
    pub fn forgive(&mut self) {
        // SAFETY: the decoder is open.
        unsafe { sys::clipmill_av_forgive(self.raw.as_ptr()) }
    }

    /// Takes a packet. Its frame will have `ordinal`.
    pub fn send(&mut self, packet: &Packet, ordinal: u32) -> Result<Answer, Error> {
        self.send_part(packet, 0..packet.size, ordinal, false)
    }

    /// Takes some of a packet's bytes. With `only_if_needed` they bring no frame, unless others refer to
    /// it.
    ///
    /// # Panics
    /// If the packet has no such bytes.
    pub fn send_part(
        &mut self,
        packet: &Packet,
        part: Range<usize>,
        ordinal: u32,
        only_if_needed: bool,
    ) -> Result<Answer, Error> {
        assert!(part.start <= part.end && part.end <= packet.size, "the part lies in the packet");
        // SAFETY: both are owned, and the part lies in the packet; the decoder takes a reference of its
        // own to the bytes.
        answer(unsafe {
            sys::clipmill_av_send(
                self.raw.as_ptr(),
                packet.raw.as_ptr(),
                part.start as i64,
                part.len() as i64,
                i64::from(ordinal),
                c_int::from(only_if_needed),
            )
        })
    }

    /// Asks for the frames that are held back; after them, [`Answer::End`].
    pub fn drain(&mut self) -> Result<Answer, Error> {
        // SAFETY: null is the way to ask.
        answer(unsafe { sys::clipmill_av_send(self.raw.as_ptr(), std::ptr::null(), 0, 0, -1, 0) })
    }

    /// Forgets what came, to go on at another keyframe.
    pub fn flush(&mut self) {
        // SAFETY: the decoder is open.
        unsafe { sys::clipmill_av_flush(self.raw.as_ptr()) }
    }

    /// The next frame in presentation order.
    pub fn receive(&mut self) -> Result<Result<Frame, Answer>, Error> {
        let frame = self.spare.take().map_or_else(Frame::new, Ok)?;
        // SAFETY: both are owned; an empty frame stays empty unless it is filled.
        match answer(unsafe { sys::clipmill_av_receive(self.raw.as_ptr(), frame.raw.as_ptr()) })? {
            Answer::Done => Ok(Ok(frame)),
            other => {
                self.spare = Some(frame);
                Ok(Err(other))
            }
        }
    }
}

fn answer(code: c_int) -> Result<Answer, Error> {
    match code {
        sys::AGAIN => Ok(Answer::Again),
        sys::END => Ok(Answer::End),
        _ => check(code).map(|()| Answer::Done),
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: open, and nobody uses it afterwards.
        unsafe { sys::clipmill_av_decoder_close(self.raw.as_ptr()) }
    }
}

/// A decoded frame: a reference to the decoder's own planes.
pub struct Frame {
    raw: NonNull<c_void>,
}

// SAFETY: frames are counted references to samples that nobody changes once they are received.
unsafe impl Send for Frame {}

impl Frame {
    fn new() -> Result<Self, Error> {
        // SAFETY: no arguments; null means that there is no memory.
        Ok(Self { raw: NonNull::new(unsafe { sys::clipmill_av_frame_new() }).ok_or(Error::OutOfMemory)? })
    }

    fn describe(&self) -> sys::Picture {
        let mut raw = std::mem::MaybeUninit::<sys::Picture>::uninit();
        // SAFETY: the frame is owned, and the function writes every field.
        unsafe {
            sys::clipmill_av_picture_of(self.raw.as_ptr(), raw.as_mut_ptr());
            raw.assume_init()
        }
    }

    /// Of the packet that it came from.
    pub fn ordinal(&self) -> Option<u32> {
        u32::try_from(self.describe().ordinal).ok()
    }

    /// Samples across and down.
    pub fn size(&self) -> (u32, u32) {
        let size = self.describe().size;
        (size[0].max(0) as u32, size[1].max(0) as u32)
    }

    /// Whether more was decoded than is shown, to the left of it or above.
    pub fn is_offset(&self) -> bool {
        self.describe().is_offset != 0
    }

    /// Shows the picture to `see`; `stated` is the shape of samples that the container states.
    ///
    /// Formats that the kernels do not read are converted first, to no less precision.
    pub fn with_picture<R>(
        &self,
        reading: Reading,
        stated: Option<SampleAspect>,
        see: impl FnOnce(&Picture<'_>) -> R,
    ) -> Result<R, Error> {
        let raw = self.describe();
        if let Some(picture) = self.picture(&raw, reading, stated) {
            return Ok(see(&picture));
        }
        let mut converted = std::ptr::null_mut();
        // SAFETY: the frame is owned; on success the result is ours.
        check(unsafe { sys::clipmill_av_convert(self.raw.as_ptr(), &mut converted) })?;
        let converted = Frame { raw: NonNull::new(converted).ok_or(Error::OutOfMemory)? };
        match converted.picture(&converted.describe(), reading, stated) {
            Some(picture) => Ok(see(&picture)),
            None => Err(Error::NotSupported("a pixel format that cannot be converted".into())),
        }
    }

    /// The planes, borrowed; `None` where they must be converted first.
    fn picture(
        &self,
        raw: &sys::Picture,
        reading: Reading,
        stated: Option<SampleAspect>,
    ) -> Option<Picture<'_>> {
        let layout = match raw.layout {
            sys::PLANAR => Layout::Planar,
            sys::SEMI_PLANAR => Layout::SemiPlanar,
            sys::PLANAR_GBR => Layout::PlanarGbr,
            sys::GRAY => Layout::Gray,
            sys::PACKED_RGB => {
                Layout::PackedRgb { offsets: raw.offsets.map(|o| o as u8), step: raw.step as u8 }
            }
            _ => return None,
        };
        let subsampling = (raw.subsampling[0] as u8, raw.subsampling[1] as u8);
        let format = PixelFormat { layout, subsampling, depth: raw.depth as u8 };
        let mut picture = Picture {
            planes: [Plane { data: &[], stride: 0 }; 3],
            width: usize::try_from(raw.size[0]).ok()?,
            height: usize::try_from(raw.size[1]).ok()?,
            format,
            colour: colour::colour(raw, reading.unspecified),
            orientation: Orientation::default(),
            sample_aspect: stated.or_else(|| SampleAspect::new(raw.sar[0], raw.sar[1])).unwrap_or_default(),
        };
        let sizes = picture.plane_sizes();
        for ((plane, (row_bytes, rows)), (data, stride)) in
            picture.planes.iter_mut().zip(sizes).zip(raw.planes.iter().zip(raw.strides))
        {
            if rows == 0 {
                continue;
            }
            let stride = usize::try_from(stride).ok().filter(|s| *s >= row_bytes && !data.is_null())?;
            // SAFETY: by FFmpeg's contract a frame of this format and size has `rows` rows, `stride`
            // bytes apart, and the frame holds them as long as it is borrowed.
            let data = unsafe { std::slice::from_raw_parts(*data, stride * (rows - 1) + row_bytes) };
            *plane = Plane { data, stride };
        }
        if reading.one_field && raw.is_interlaced != 0 {
            picture = picture.one_field(raw.is_top_field_first != 0);
        }
        Some(picture)
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        // SAFETY: owned, and nobody uses it afterwards.
        unsafe { sys::clipmill_av_frame_free(self.raw.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_are_as_long_as_the_headers_say() {
        let mut sizes = [0; 3];
        // SAFETY: three numbers are written.
        unsafe { sys::clipmill_av_sizes(sizes.as_mut_ptr()) };
        let ours = [size_of::<sys::Stream>(), size_of::<sys::Packet>(), size_of::<sys::Picture>()];
        assert_eq!(sizes.map(|s| s as usize), ours);
    }
}
