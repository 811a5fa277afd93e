//! One clip by a plan, on the device.
//!
//! The pictures are those that the software decoder would be given, and they must come out as the packets
//! promised: each with the lowest rank that is still to come. Whatever else comes, the device is left, and
//! the software decoder goes on after the last frame that was handed on.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    sync::atomic::{AtomicBool, Ordering},
};

use kernels::{
    ffi::libav::{self, Stream},
    picture::{Layout, Look, PixelFormat, Reading},
};

use super::{
    bitstream::{Codec, Feed},
    pool::{Pool, Refused, tell_of_failures, throw_away},
    session::Session,
};
use crate::{
    decode::{
        FrameSink, StreamEnd,
        libav::{
            clip::{Left, Slot},
            packets::Packets,
            plan::{Plan, Segment},
        },
        surface::Surface,
    },
    item::{FrameInfo, Pts},
};

/// What to decode on the device.
pub(in crate::decode) struct Planned<'a> {
    pub(in crate::decode) packets: &'a mut Packets,
    pub(in crate::decode) plan: &'a Plan<'a>,
    pub(in crate::decode) stream: &'a Stream,
    pub(in crate::decode) reading: Reading,
    pub(in crate::decode) sink: &'a mut dyn FrameSink,
    pub(in crate::decode) end: &'a mut StreamEnd,
    /// Time of the last frame that was handed on.
    pub(in crate::decode) last: &'a mut Option<Pts>,
    /// Gets the session's place, so that it is free when the clip is given up.
    pub(in crate::decode) slot: &'a Slot,
    /// Set when nobody wants the clip any more.
    pub(in crate::decode) stop: &'a AtomicBool,
}

/// Why the device does not decode a clip, or not all of it.
fn surprised(why: impl Into<String>) -> Left {
    let why: String = why.into();
    tracing::debug!(why, "the GPU's decoder is left");
    Left::Surprised
}

impl Planned<'_> {
    /// Decodes with a session of the pool, which gets it back if all went well.
    pub(super) fn run(mut self, pool: &Pool) -> Result<(), Left> {
        let codec = Codec::of(self.stream.codec).ok_or_else(|| surprised("unknown to the GPU"))?;
        let look = self.look()?;
        let feed =
            Feed::new(codec, self.stream).ok_or_else(|| surprised("headers that break their format"))?;
        let caps = codec.caps((look.width as u32, look.height as u32));
        let longest = self.plan.segments.iter().map(|s| s.chosen.len()).max();
        if codec.is_by_order() && longest > Some(most_held(look)) {
            return Err(surprised("a group that is too long to be held"));
        }
        let (progress, stop) = (self.sink.progress().clone(), self.stop);
        let taken = pool.take(codec, &caps, || {
            progress.step();
            !stop.load(Ordering::Relaxed)
        });
        let mut session = taken.map_err(|refused| match refused {
            Refused::Stopped => Left::Closed,
            Refused::Failed(why) => surprised(why),
        })?;
        self.slot.lend(Some(session.open().clone()));
        // Whoever gave the clip up before did not find the place.
        if stop.load(Ordering::Relaxed) {
            self.slot.lend(None);
            pool.give(session);
            return Err(Left::Closed);
        }
        let decoded = self.segments(&feed, look, codec.is_by_order(), &mut session);
        self.slot.lend(None);
        match decoded {
            Ok(()) => pool.give(session),
            Err(Left::Closed) => throw_away(session),
            Err(Left::Surprised) => {
                tell_of_failures();
                throw_away(session);
            }
        }
        decoded
    }

    /// How the clip's pictures look, told by the software decoder from the first: what the device does not
    /// decode, or would not decode to the same samples, is found before it is asked.
    fn look(&mut self) -> Result<Look, Left> {
        let frame = self.first_picture()?.ok_or_else(|| surprised("the first picture cannot be decoded"))?;
        let look = |one_field| {
            let reading = Reading { one_field, ..self.reading };
            frame.with_picture(reading, self.stream.sample_aspect, |picture| picture.look())
        };
        let (look, field) = (look(false)?, look(true)?);
        const NV12: PixelFormat = PixelFormat { layout: Layout::SemiPlanar, ..PixelFormat::I420 };
        if look.format != PixelFormat::I420 && look.format != NV12 {
            return Err(surprised(format!("samples as {:?}", look.format)));
        }
        // GStreamer 1.22 takes the size of what is shown from these codecs' headers, and not the offset
        // (`gst_nv_h264_dec_new_sequence`).
        if frame.is_offset() && matches!(self.stream.codec, "h264" | "hevc") {
            return Err(surprised("a picture that is cut to the left or above"));
        }
        if look.width % 2 + look.height % 2 > 0 {
            return Err(surprised("a size that is odd"));
        }
        // Of these, the device tells the fields of each picture; of others, elements guess.
        let tells_fields = matches!(self.stream.codec, "mpeg1video" | "mpeg2video");
        let may_split = self.stream.is_interlaced && matches!(self.stream.codec, "h264" | "hevc");
        if (look.height != field.height || may_split) && !tells_fields {
            return Err(surprised("interlaced"));
        }
        let hides = matches!(self.stream.codec, "vp8" | "vp9" | "av1");
        if !hides && self.plan.has_hidden() {
            return Err(surprised("pictures that are not shown"));
        }
        Ok(look)
    }

    /// The picture that decoding starts with, by the software decoder.
    fn first_picture(&mut self) -> Result<Option<libav::Frame>, Left> {
        let start = self.plan.segments.first().map(|s| (s, s.places.start));
        let Some(picture) = start.and_then(|(segment, place)| self.plan.picture(segment, place)) else {
            return Ok(None);
        };
        let mut decoder = libav::Decoder::open(self.packets.input(), 1, None)?;
        let Some(packet) = self.packets.get(picture.packet)? else { return Ok(None) };
        let (from, to) = picture.bytes;
        if to as usize > packet.bytes().len() {
            return Ok(None);
        }
        decoder.send_part(packet, from as usize..to as usize, 0, false)?;
        decoder.drain()?;
        let frame = decoder.receive()?.ok();
        Ok(frame.filter(|_| !decoder.has_complained()))
    }

    fn segments(
        &mut self,
        feed: &Feed,
        look: Look,
        is_by_order: bool,
        session: &mut Session,
    ) -> Result<(), Left> {
        let (plan, mut out) = (self.plan, Out::new(look, is_by_order));
        let mut is_start = true;
        for (i, segment) in plan.segments.iter().enumerate() {
            self.segment(segment, feed, session, &mut out, &mut is_start)?;
            // Where the next one follows at once, nothing is in the way of going on.
            let goes_on = !is_by_order
                && plan.segments.get(i + 1).is_some_and(|next| next.places.start == segment.places.end);
            if goes_on {
                continue;
            }
            session.drain().map_err(surprised)?;
            self.receive(session, &mut out)?;
            if !out.to_come.is_empty() || out.next != segment.chosen.end {
                return Err(surprised(format!("{} pictures did not come", out.to_come.len())));
            }
            self.hand_on(&mut out)?;
            session.reset().map_err(surprised)?;
            is_start = true;
        }
        Ok(())
    }

    /// Decodes the segment's pictures.
    fn segment(
        &mut self,
        segment: &Segment,
        feed: &Feed,
        session: &mut Session,
        out: &mut Out,
        is_start: &mut bool,
    ) -> Result<(), Left> {
        for place in segment.places.clone() {
            let Some(picture) = self.plan.picture(segment, place) else { continue };
            let packet = self.packets.get(picture.packet)?.ok_or_else(|| surprised("a packet is missing"))?;
            self.sink.progress().step();
            let (from, to) = picture.bytes;
            let bytes = packet.bytes().get(from as usize..to as usize);
            let pieces = bytes.and_then(|bytes| feed.pieces(bytes, *is_start));
            out.to_come.extend(picture.rank.map(Reverse));
            for piece in pieces.ok_or_else(|| surprised("a packet that breaks its format"))? {
                session.push(piece, picture.rank, picture.is_key).map_err(surprised)?;
            }
            *is_start = false;
            self.receive(session, out)?;
        }
        Ok(())
    }

    fn receive(&mut self, session: &mut Session, out: &mut Out) -> Result<(), Left> {
        while let Some(picture) = session.picture() {
            let (rank, surface) = picture.map_err(surprised)?;
            self.sink.progress().step();
            if out.to_come.pop() != Some(Reverse(rank)) {
                return Err(surprised(format!("picture {rank} came out of turn")));
            }
            if surface.size() != (out.look.width, out.look.height) || surface.format().depth != 8 {
                return Err(surprised("the pictures change in mid-stream"));
            }
            let tells_fields = matches!(self.stream.codec, "mpeg1video" | "mpeg2video");
            if surface.top_field_first().is_some() && !tells_fields {
                return Err(surprised("interlaced in mid-stream"));
            }
            let Some(wanted) = self.plan.chosen.get(out.next) else { continue };
            if self.plan.rank(wanted.place as u32) != Some(rank) {
                continue;
            }
            out.next += 1;
            let Look { colour, sample_aspect, .. } = out.look;
            let surface = Surface::cuda(surface, colour, self.stream.orientation, sample_aspect);
            out.held.push_back((wanted.info, surface));
            if !out.is_by_order {
                self.hand_on(out)?;
            }
        }
        Ok(())
    }

    /// Hands on what is held.
    fn hand_on(&mut self, out: &mut Out) -> Result<(), Left> {
        while let Some((info, surface)) = out.held.pop_front() {
            if self.end.width == 0 {
                (self.end.width, self.end.height) = (out.look.width as u32, out.look.height as u32);
            }
            self.sink.frame(info, surface)?;
            *self.last = Some(info.pts);
        }
        Ok(())
    }
}

impl Out {
    fn new(look: Look, is_by_order: bool) -> Self {
        Self { look, next: 0, to_come: BinaryHeap::new(), is_by_order, held: VecDeque::new() }
    }
}

/// What came, and what is to come.
struct Out {
    look: Look,
    /// The chosen frame that comes next, of [`Plan::chosen`].
    next: usize,
    /// Ranks of the pictures that were pushed and did not come yet.
    to_come: BinaryHeap<Reverse<u32>>,
    /// Whether the element tells pictures apart by their order alone. Then none is handed on before all came,
    /// since one that is lost gives its time to the next.
    is_by_order: bool,
    held: VecDeque<(FrameInfo, Surface)>,
}

/// Surfaces that a session holds at most, by what they take of the device's memory: some hundred small ones, as
/// long as groups usually are.
fn most_held(look: Look) -> usize {
    const MOST_BYTES: usize = 64 << 20;
    /// By which the device's rows are wide (`cuMemAllocPitch`).
    const PITCH: usize = 512;
    MOST_BYTES / (look.width.next_multiple_of(PITCH) * look.height * 3 / 2).max(1)
}
