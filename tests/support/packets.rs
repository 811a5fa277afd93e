//! Coded packets between encoder and muxer, where a test changes them.

use std::path::Path;

use gst::prelude::*;
use gstreamer as gst;
use gstreamer_app as gst_app;

use super::clips::{Drawn, finish, launch, push};

/// A coded picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// When it is shown.
    pub pts_ns: Option<u64>,
    /// When it is decoded.
    pub dts_ns: Option<u64>,
    /// For how long it is shown.
    pub lasts_ns: u64,
    /// Whether it decodes alone.
    pub is_key: bool,
}

/// Packets in the order of decoding.
#[derive(Clone, Debug)]
pub struct Coded {
    /// One a picture, or more.
    pub packets: Vec<Packet>,
    caps: gst::Caps,
}

/// Runs elements from raw pictures to packets. No time is before 0.
pub fn encode(caps: &str, encoder: &str, pictures: Vec<Drawn>) -> Coded {
    gst::init().unwrap();
    let text =
        format!("appsrc name=src format=time caps=\"{caps}\" ! {encoder} ! appsink name=out sync=false");
    let pipeline = launch(&text);
    let element = |name| pipeline.by_name(name).unwrap();
    let sink = element("out").downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    push(&element("src").downcast().unwrap(), pictures);
    let (mut found, mut caps) = (Vec::new(), None);
    while let Some(sample) = sink.try_pull_sample(gst::ClockTime::from_seconds(20)) {
        let packet = sample.buffer().unwrap();
        let segment = sample.segment().unwrap().downcast_ref::<gst::ClockTime>().unwrap();
        let time = |t: Option<gst::ClockTime>| {
            segment.to_running_time_full(t).map(|time| match time {
                gst::Signed::Positive(t) => t.nseconds() as i64,
                gst::Signed::Negative(t) => -(t.nseconds() as i64),
            })
        };
        caps = sample.caps_owned();
        found.push((
            packet.map_readable().unwrap().to_vec(),
            [time(packet.pts()), time(packet.dts())],
            packet.duration().map_or(0, |d| d.nseconds()),
            !packet.flags().contains(gst::BufferFlags::DELTA_UNIT),
        ));
    }
    assert!(sink.is_eos(), "{text}: no end");
    pipeline.set_state(gst::State::Null).unwrap();
    let start = found.iter().flat_map(|(_, times, ..)| times.iter().flatten()).min().copied();
    let packets = found.into_iter().map(|(bytes, times, lasts_ns, is_key)| {
        let [pts_ns, dts_ns] = times.map(|time| Some((time? - start?.min(0)) as u64));
        Packet { bytes, pts_ns, dts_ns, lasts_ns, is_key }
    });
    Coded { packets: packets.collect(), caps: caps.unwrap() }
}

impl Coded {
    /// Times of an even pace, for encoders that do not tell them; `is_b` says of a packet whether it
    /// is shown before the one that it follows.
    pub fn pace(&mut self, frame_ns: u64, is_b: fn(&[u8]) -> bool) {
        let (mut held, mut order) = (None, Vec::new());
        for (i, packet) in self.packets.iter().enumerate() {
            let shown = if is_b(&packet.bytes) { Some(i) } else { held.replace(i) };
            order.extend(shown);
        }
        order.extend(held);
        for (rank, i) in order.into_iter().enumerate() {
            let packet = &mut self.packets[i];
            packet.dts_ns = Some(i as u64 * frame_ns);
            packet.pts_ns = Some((rank as u64 + 1) * frame_ns);
            packet.lasts_ns = frame_ns;
        }
    }

    /// The same under another name of GStreamer's.
    pub fn called(mut self, caps: &str) -> Self {
        self.caps = caps.parse().unwrap();
        self
    }

    /// Writes them with a muxer.
    pub fn mux(&self, muxer: &str, path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let source = format!("appsrc name=src format=time caps=\"{}\"", self.caps);
        // By name: of its pads for sound and pictures, a muxer would offer the first.
        let pad = if muxer.starts_with("mpeg") { "" } else { "video_0" };
        let text = format!("{source} ! m.{pad} {muxer} name=m ! filesink location=\"{}\"", path.display());
        let pipeline = launch(&text);
        let source = pipeline.by_name("src").unwrap().downcast::<gst_app::AppSrc>().unwrap();
        pipeline.set_state(gst::State::Playing).unwrap();
        for packet in &self.packets {
            let mut buffer = gst::Buffer::from_mut_slice(packet.bytes.clone());
            let fields = buffer.get_mut().unwrap();
            fields.set_pts(packet.pts_ns.map(gst::ClockTime::from_nseconds));
            fields.set_dts(packet.dts_ns.map(gst::ClockTime::from_nseconds));
            fields.set_duration(gst::ClockTime::from_nseconds(packet.lasts_ns));
            if !packet.is_key {
                fields.set_flags(gst::BufferFlags::DELTA_UNIT);
            }
            source.push_buffer(buffer).unwrap();
        }
        source.end_of_stream().unwrap();
        finish(&pipeline, &text);
    }
}

/// Where a start code begins whose last byte is `code`.
pub fn start_code(bytes: &[u8], code: u8) -> Option<usize> {
    bytes.windows(4).position(|w| w == [0, 0, 1, code])
}

/// Whether an MPEG-2 packet is a B-picture (ISO 13818-2, 6.2.3).
pub fn mpeg2_is_b(packet: &[u8]) -> bool {
    start_code(packet, 0).is_some_and(|at| packet[at + 5] >> 3 & 7 == 3)
}

/// Whether an MPEG-4 packet is a B-picture (ISO 14496-2, 6.2.5).
pub fn mpeg4_is_b(packet: &[u8]) -> bool {
    start_code(packet, 0xB6).is_some_and(|at| packet[at + 4] >> 6 == 2)
}

/// A P-picture of MPEG-4 that is not coded: nothing to see. `avenc_mpeg4` counts time in 16 bits.
pub const NOT_CODED: &[u8] = &[0, 0, 1, 0xB6, 0b0101_0000, 0, 0b0000_1001];

/// What DivX says of its packed streams; decoders know them by it.
const PACKED_MARK: &[u8] = b"\0\0\x01\xB2DivX503b1393p";

/// MPEG-4 as DivX packed it for AVI, so that no player had to wait: the first B-picture comes along with
/// the picture that it needs, the others early by one, and a picture that is not coded fills up.
pub fn packed(packets: &[Packet]) -> Vec<Packet> {
    let mut chunks: Vec<Packet> = Vec::new();
    let filler = Packet { bytes: NOT_CODED.to_vec(), is_key: false, ..packets[0].clone() };
    let mut after_b = false;
    for packet in packets {
        match (mpeg4_is_b(&packet.bytes), after_b) {
            (true, false) => chunks.last_mut().unwrap().bytes.extend(&packet.bytes),
            (false, true) => chunks.extend([filler.clone(), packet.clone()]),
            _ => chunks.push(packet.clone()),
        }
        after_b = mpeg4_is_b(&packet.bytes);
    }
    if after_b {
        chunks.push(filler);
    }
    assert_eq!(chunks.len(), packets.len());
    let vop = start_code(&chunks[0].bytes, 0xB6).unwrap();
    chunks[0].bytes.splice(vop..vop, PACKED_MARK.iter().copied());
    chunks
}
