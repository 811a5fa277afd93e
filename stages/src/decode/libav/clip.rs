//! One clip from its file to the chosen frames.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use kernels::{
    ffi::libav::{Answer, Decoder, Error, Frame, Stream},
    mapped_file::MappedFile,
    picture::Reading,
};

use super::{
    packets::Packets,
    plan::{Plan, Segment},
    survey::Survey,
    timeline::{Span, Timeline},
};
use crate::{
    decode::{
        FrameSink, StreamEnd,
        choose::Chooser,
        container::Container,
        cores::Cores,
        nvdec::{
            self, Nvdec,
            pool::{Open, tell_of_failures},
        },
        route::{Features, Ticket, Way},
        sample::{PacketTimes, Sampling},
        surface::Surface,
        webp,
    },
    item::Pts,
    stage::{Closed, Reason},
};

/// What to decode, and how.
pub(super) struct Job {
    pub(super) file: Arc<MappedFile>,
    pub(super) sampling: Sampling,
    pub(super) plan: bool,
    /// 0 leaves it to `cores`.
    pub(super) threads: u32,
    pub(super) cores: Cores,
    pub(super) reading: Reading,
    pub(super) nvdec: Option<Nvdec>,
    pub(super) slot: Slot,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) sink: Box<dyn FrameSink>,
}

/// The clip's place among those under way, where there is a choice of decoders, and that of its session.
/// Whoever gives the clip up gives its places up.
#[derive(Clone, Default)]
pub(in crate::decode) struct Slot(Arc<Mutex<Places>>);

#[derive(Default)]
struct Places {
    ticket: Option<Ticket>,
    open: Option<Open>,
}

impl Slot {
    fn set(&self, ticket: Option<Ticket>) {
        let before = std::mem::replace(&mut self.lock().ticket, ticket);
        drop(before);
    }

    fn finished(&self) {
        let ticket = self.lock().ticket.take();
        ticket.into_iter().for_each(Ticket::finished);
    }

    fn failed(&self) {
        let ticket = self.lock().ticket.take();
        ticket.into_iter().for_each(Ticket::failed);
    }

    /// The clip is decoded in this session, or no more.
    pub(in crate::decode) fn lend(&self, open: Option<Open>) {
        self.lock().open = open;
    }

    pub(super) fn give_up(&self) {
        let open = self.lock().open.take();
        open.iter().for_each(Open::leave);
        self.set(None);
    }

    /// The clip was silent for too long, and is given up next.
    pub(super) fn hung(&self) {
        if self.lock().open.is_some() {
            tell_of_failures();
        }
        self.failed();
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a plan was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::decode) enum Left {
    /// Nobody takes frames any more.
    Closed,
    /// The stream is not what its packets promised: all of it must be decoded.
    Surprised,
}

impl From<Closed> for Left {
    fn from(_: Closed) -> Self {
        Left::Closed
    }
}

impl From<Error> for Left {
    fn from(error: Error) -> Self {
        tracing::debug!(%error, "a plan was left");
        Left::Surprised
    }
}

/// Decodes; the sink hears the end, whatever it is.
pub(super) fn decode(job: Job) {
    let Job { file, sampling, plan, threads, cores, reading, nvdec, slot, stop, mut sink } = job;
    let container = Container::of(file.bytes());
    if container == Container::AnimatedWebp {
        return webp::decode(&file, sampling, sink);
    }
    let mut end = StreamEnd { container: container.name().into(), ..StreamEnd::default() };
    let mut packets = match Packets::open(&file, &stop) {
        Ok(packets) => packets,
        // Nothing known began it, and nothing known was found in it.
        Err(Error::Invalid(_)) if container == Container::Other => {
            let detail = "not a video format that is known here".into();
            return sink.end(end, Err(Reason::Unsupported(detail)));
        }
        Err(error) => return sink.end(end, Err(reason(error, None))),
    };
    let stream = packets.stream();
    describe(&mut end, container, &stream);
    let mut timeline = Timeline::new(&stream);
    // H.264 in Matroska does not say how far its pictures are reordered; the packets' times do.
    let can_plan = plan && sampling != Sampling::All;
    // On the device, every clip is decoded by a plan.
    let nvdec = nvdec.filter(|nvdec| nvdec.knows(stream.codec));
    let must_survey = sampling.needs_packets()
        || nvdec.is_some()
        || (stream.codec == "h264" && container == Container::Matroska)
        || (can_plan && timeline.codec().is_some());
    let mut survey = None;
    if must_survey {
        match Survey::of(&mut packets, &mut timeline, || sink.progress().step()) {
            Ok(found) => survey = Some(found),
            Err(error) => return sink.end(end, Err(reason(error, None))),
        }
    }
    let reorder = survey.as_ref().and_then(|s| s.reorder).filter(|_| stream.codec == "h264");
    let mut last = None;
    if let (Some(nvdec), Some(survey)) = (&nvdec, &survey) {
        let choice = Choice { nvdec, sampling, reading, stream: &stream, survey, slot: &slot, stop: &stop };
        match choice.decode(&mut packets, sink.as_mut(), &mut end, &mut last) {
            Some(Ok(())) => {
                survey.end(&mut end);
                slot.finished();
                return sink.end(end, Ok(()));
            }
            Some(Err(Left::Closed)) => return,
            // Decoded anew, without what was handed on.
            Some(Err(Left::Surprised)) | None => (),
        }
    }
    let mut taken = cores.take();
    let mut opened = |packets: &Packets, n_frames: u64| -> Result<Decoder, Error> {
        taken.more(n_frames, u64::from(stream.size.0) * u64::from(stream.size.1));
        let threads = if threads == 0 { taken.threads() } else { threads };
        Decoder::open(packets.input(), threads, reorder)
    };
    let planned = survey.as_ref().filter(|_| can_plan);
    if let Some((survey, plan)) = planned.and_then(|s| Some((s, Plan::new(sampling, s)?))) {
        let result = opened(&packets, plan.n_pictures()).map_err(Left::from).and_then(|decoder| {
            end.decoder = format!("libav:{}", decoder.name());
            let (packets, sink) = (&mut packets, sink.as_mut());
            let (end, last) = (&mut end, &mut last);
            Planned { packets, decoder, plan: &plan, stream: &stream, sink, end, last }.run()
        });
        match result {
            Ok(()) => {
                survey.end(&mut end);
                slot.finished();
                return sink.end(end, Ok(()));
            }
            Err(Left::Closed) => return,
            Err(Left::Surprised) => tracing::debug!("a plan did not hold, so the clip is decoded whole"),
        }
    }
    let times = survey.map_or_else(PacketTimes::default, |s| s.times);
    let n_frames = match (times.pts.len() as u64, stream.n_frames) {
        (0, 0) => (stream.duration_ns as f64 / 1e9 * stream.fps) as u64,
        (0, stated) => stated,
        (surveyed, _) => surveyed,
    };
    // Keyframes are counted among the pictures that come, which a packet more or less does not change.
    let needs_times = matches!(sampling, Sampling::Count(_));
    let times = if needs_times { times } else { PacketTimes::default() };
    match opened(&packets, n_frames) {
        Err(error) => sink.end(end, Err(reason(error, None))),
        Ok(decoder) => {
            end.decoder = format!("libav:{}", decoder.name());
            let timeline = Timeline::new(&stream);
            let chooser = Chooser::new(sampling, times, sink).after(last);
            let whole = Whole {
                packets,
                decoder,
                timeline,
                stream,
                chooser,
                end,
                recent: VecDeque::new(),
                n_packets: 0,
                in_line: VecDeque::new(),
                last: None,
                good: None,
                n_faults: 0,
                fault: None,
            };
            if whole.run() {
                slot.finished();
            }
        }
    }
}

impl Survey {
    /// Tells of the stream what its packets told.
    fn end(&self, end: &mut StreamEnd) {
        end.n_frames = self.times.pts.len() as u32;
        end.first = self.times.pts.first().copied().unwrap_or_default();
        end.end = Pts { nanos: self.end }.max(self.times.end.unwrap_or_default());
    }
}

/// What the choice between the device and the CPU rests on.
struct Choice<'a> {
    nvdec: &'a Nvdec,
    sampling: Sampling,
    reading: Reading,
    stream: &'a Stream,
    survey: &'a Survey,
    slot: &'a Slot,
    stop: &'a AtomicBool,
}

impl Choice<'_> {
    /// Decodes on the device, if that is where the clip goes; `None` if it is not.
    fn decode(
        &self,
        packets: &mut Packets,
        sink: &mut dyn FrameSink,
        end: &mut StreamEnd,
        last: &mut Option<Pts>,
    ) -> Option<Result<(), Left>> {
        let plan = Plan::new(self.sampling, self.survey);
        let n_frames = self.survey.times.pts.len() as u64;
        let features = Features {
            codec: self.stream.codec,
            pixels: u64::from(self.stream.size.0) * u64::from(self.stream.size.1),
            n_pictures: plan.as_ref().map_or(n_frames, Plan::n_pictures),
            n_frames,
        };
        if let Some(router) = self.nvdec.router() {
            let ticket = match &plan {
                Some(_) => router.choose(features, || sink.progress().step()),
                None => router.note(features, Way::Cpu),
            };
            let way = ticket.way();
            self.slot.set(Some(ticket));
            if way == Way::Cpu {
                return None;
            }
        }
        let plan = plan?;
        let Self { reading, stream, slot, stop, .. } = *self;
        let planned =
            nvdec::clip::Planned { packets, plan: &plan, stream, reading, sink, end, last, slot, stop };
        let result = self.nvdec.decode(planned);
        if result.is_ok() {
            end.decoder = format!("nvdec:{}", stream.codec);
        } else if let (Err(Left::Surprised), Some(router)) = (&result, self.nvdec.router()) {
            // How long that took tells nothing of clips that the device decodes.
            self.slot.failed();
            self.slot.set(Some(router.note(features, Way::Cpu)));
        }
        Some(result)
    }
}

fn describe(end: &mut StreamEnd, container: Container, stream: &Stream) {
    end.codec = stream.codec.into();
    if container == Container::Other {
        end.container = stream.container.split(',').next().unwrap_or("other").into();
    }
    end.fps = stream.fps;
}

/// FFmpeg's error in our terms.
fn reason(error: Error, last_good: Option<Pts>) -> Reason {
    match error {
        Error::Missing(_) | Error::NotSupported(_) | Error::NoVideo => Reason::Unsupported(error.to_string()),
        _ => Reason::Corrupt { last_good, detail: error.to_string() },
    }
}

/// Decoding by a plan.
struct Planned<'a> {
    packets: &'a mut Packets,
    decoder: Decoder,
    plan: &'a Plan<'a>,
    stream: &'a Stream,
    sink: &'a mut dyn FrameSink,
    end: &'a mut StreamEnd,
    /// Time of the last frame that was handed on, perhaps by another decoder.
    last: &'a mut Option<Pts>,
}

impl Planned<'_> {
    fn run(&mut self) -> Result<(), Left> {
        for segment in &self.plan.segments {
            let mut out = Out { left: segment.chosen.clone(), last_rank: None };
            self.segment(segment, &mut out)?;
            if !out.left.is_empty() {
                return Err(Left::Surprised);
            }
            self.decoder.flush();
        }
        Ok(())
    }

    /// Decodes the segment's pictures.
    fn segment(&mut self, segment: &Segment, out: &mut Out) -> Result<(), Left> {
        for place in segment.places.clone() {
            let Some(picture) = self.plan.picture(segment, place) else { continue };
            let packet = self.packets.get(picture.packet)?.ok_or(Left::Surprised)?;
            self.sink.progress().step();
            let (from, to) = picture.bytes;
            let part = from as usize..to as usize;
            let only_if_needed = !self.plan.is_chosen(place);
            if part.end > packet.bytes().len()
                || self.decoder.send_part(packet, part, place as u32, only_if_needed)? == Answer::Again
            {
                return Err(Left::Surprised);
            }
            self.receive(out)?;
        }
        self.decoder.drain()?;
        self.receive(out)
    }

    fn receive(&mut self, out: &mut Out) -> Result<(), Left> {
        while let Ok(frame) = self.decoder.receive()? {
            let place = frame.ordinal();
            let rank = place.and_then(|place| self.plan.rank(place));
            // Times that contradict the decoder's order are not what the sampling rule would see.
            if self.decoder.has_complained() || rank <= out.last_rank {
                return Err(Left::Surprised);
            }
            out.last_rank = rank;
            let Some(wanted) = out.left.clone().next().map(|i| self.plan.chosen[i]) else { continue };
            if place == Some(wanted.place as u32) {
                out.left.start += 1;
                first_size(self.end, &frame);
                if self.last.is_some_and(|last| wanted.info.pts <= last) {
                    continue;
                }
                let surface = Surface::libav(frame, self.stream.orientation, self.stream.sample_aspect);
                self.sink.frame(wanted.info, surface)?;
                *self.last = Some(wanted.info.pts);
            }
        }
        Ok(())
    }
}

/// What came of a segment.
struct Out {
    /// The chosen frames still to come, of [`Plan::chosen`].
    left: Range<usize>,
    /// Of the picture that came last.
    last_rank: Option<u32>,
}

fn first_size(end: &mut StreamEnd, frame: &Frame) {
    if end.width == 0 {
        (end.width, end.height) = frame.size();
    }
}

/// Decoding of every picture.
struct Whole {
    packets: Packets,
    decoder: Decoder,
    timeline: Timeline,
    stream: Stream,
    chooser: Chooser,
    end: StreamEnd,
    /// Times of the last packets sent and whether they are keyframes; the last is `n_packets - 1`.
    recent: VecDeque<(Option<Span>, bool)>,
    n_packets: u32,
    /// Times that the next pictures take, where pictures are counted, and their packets.
    in_line: VecDeque<(u32, Span)>,
    last: Option<Span>,
    /// The last picture before the first fault.
    good: Option<Pts>,
    n_faults: u32,
    fault: Option<Error>,
}

/// Packets whose picture may still come; decoders hold back a few dozen.
const RECENT: usize = 256;

impl Whole {
    /// Whether all of it was decoded well.
    fn run(mut self) -> bool {
        let result = match self.all() {
            // Whoever closed hears nothing any more.
            Err(Closed) => return false,
            Ok(()) => self.verdict(),
        };
        let is_good = result.is_ok();
        if let Some(last) = self.last {
            self.end.end = Pts { nanos: last.end() };
        }
        self.chooser.end(self.end, result);
        is_good
    }

    fn verdict(&mut self) -> Result<(), Reason> {
        let last_good = self.good;
        match (self.fault.take(), self.last) {
            (Some(fault), Some(_)) => {
                let times =
                    if self.n_faults > 1 { format!(" ({} faults)", self.n_faults) } else { String::new() };
                Err(Reason::Corrupt { last_good, detail: format!("{fault}{times}") })
            }
            (Some(fault), None) => Err(reason(fault, None)),
            (None, Some(_)) => match self.decoder.complaint() {
                None => Ok(()),
                Some(detail) => Err(Reason::Corrupt {
                    last_good,
                    detail: format!("the decoder concealed damage: {detail}"),
                }),
            },
            (None, None) if self.n_packets > 0 => {
                let detail = format!("none of {} packets could be decoded", self.n_packets);
                Err(Reason::Corrupt { last_good: None, detail })
            }
            (None, None) => Err(Reason::Empty("the video stream has no frames".into())),
        }
    }

    fn fault(&mut self, error: Error) {
        self.n_faults += 1;
        self.fault.get_or_insert(error);
        self.note_good();
    }

    /// Remembers the last picture before the first fault.
    fn note_good(&mut self) {
        self.good = self.good.or(self.last.map(|s| Pts { nanos: s.start }));
    }

    fn all(&mut self) -> Result<(), Closed> {
        loop {
            let number = self.n_packets;
            match self.packets.get(number) {
                Ok(None) => break,
                Err(error) => {
                    self.fault(error);
                    break;
                }
                Ok(Some(packet)) => {
                    let told = self.timeline.packet(packet);
                    self.recent.push_back((told.span, packet.is_key));
                    if self.timeline.is_counted() {
                        self.in_line.extend(told.span.map(|span| (number, span)));
                    }
                    let sent = if packet.is_encrypted {
                        Err(Error::NotSupported("encrypted video".into()))
                    } else if packet.bytes().is_empty() {
                        Ok(())
                    } else {
                        self.decoder.send(packet, number).map(|_| ())
                    };
                    if let Err(error) = sent {
                        self.fault(error);
                    }
                }
            }
            self.chooser.progress();
            self.n_packets += 1;
            if self.recent.len() > RECENT {
                self.recent.pop_front();
            }
            self.receive()?;
        }
        if let Err(error) = self.decoder.drain() {
            self.fault(error);
        }
        self.receive()
    }

    fn receive(&mut self) -> Result<(), Closed> {
        /// A decoder that only fails must not be asked for ever.
        const MOST_FAULTS: usize = 64;
        let mut n_faults = 0;
        while n_faults < MOST_FAULTS {
            match self.decoder.receive() {
                Ok(Ok(frame)) => self.picture(frame)?,
                Ok(Err(_)) => break,
                // The next one may do.
                Err(error) => {
                    self.fault(error);
                    n_faults += 1;
                }
            }
        }
        Ok(())
    }

    fn picture(&mut self, frame: Frame) -> Result<(), Closed> {
        first_size(&mut self.end, &frame);
        if self.decoder.has_complained() {
            if self.last.is_none() && frame.ordinal() != Some(0) {
                // What a recording that starts in mid-stream lacks is no damage.
                self.decoder.forgive();
            } else {
                self.note_good();
            }
        }
        let from = frame.ordinal().and_then(|ordinal| {
            let ago = self.n_packets.checked_sub(ordinal)? as usize;
            self.recent.get(self.recent.len().checked_sub(ago)?)
        });
        let (span, is_key) = from.copied().unwrap_or((None, false));
        let span = if self.timeline.is_counted() { self.next_in_line(frame.ordinal()) } else { span };
        let span = self.settle(span);
        self.last = Some(span);
        let surface = Surface::libav(frame, self.stream.orientation, self.stream.sample_aspect);
        self.chooser.picture(Pts { nanos: span.start }, is_key, surface)
    }

    /// The time of the next packet in line. Where pictures come in the order of packets, a picture that
    /// was lost takes its time with it.
    fn next_in_line(&mut self, ordinal: Option<u32>) -> Option<Span> {
        if self.timeline.is_in_order() {
            while self.in_line.len() > 1 && self.in_line.front().map(|(number, _)| *number) < ordinal {
                self.in_line.pop_front();
            }
        }
        self.in_line.pop_front().map(|(_, span)| span)
    }

    /// A time for every picture, never going back: a missing one follows its predecessor.
    fn settle(&self, span: Option<Span>) -> Span {
        let lasts = self.timeline.frame_ns();
        match (span, self.last) {
            (Some(span), Some(last)) => Span { start: span.start.max(last.start), ..span },
            (Some(span), None) => span,
            (None, Some(last)) => Span { start: last.start.saturating_add(lasts), lasts },
            (None, None) => Span { start: 0, lasts },
        }
    }
}
