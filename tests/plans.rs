//! Whatever the order, the kinds and the times of a clip's packets: the frames that a plan decodes are
//! bit by bit those of decoding everything.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    iter::repeat_n,
    path::{Path, PathBuf},
};

use serde_json::Value;
use stages::{
    decode::{Backend, sample::Sampling},
    item::FrameInfo,
};
use support::{
    clips::{
        Clip, Form, H264_FAST_MP4, H264_MKV, H264_MP4, H264_TS, MJPEG_AVI, MPEG4_B_AVI, Made, THEORA_OGV,
        VP8_WEBM, VP9_WEBM, form, make, make_at, record, wander,
    },
    decoding::{decode_by, settings},
    packets::{Coded, NOT_CODED, Packet, encode, mpeg2_is_b, mpeg4_is_b, packed, start_code},
    run::clipmill,
    written::{Grey, avi, gif, mp4_box, mp4_number, webp},
};
use tempfile::TempDir;

const FRAME_NS: u64 = 40_000_000;

/// A clip, and what is known of it.
struct Case {
    made: Made,
    /// Which frames its pictures say they are.
    pictured: Vec<u32>,
    /// Whether grey is 0..255.
    is_full_range: bool,
}

impl From<Made> for Case {
    fn from(made: Made) -> Self {
        let is_full_range = made.path.extension().is_some_and(|e| e == "gif" || e == "webp");
        Self { pictured: (0..made.pts_ns.len() as u32).collect(), is_full_range, made }
    }
}

/// How many frames a rule of `check --decode` chooses.
fn n_chosen(rule: &str, made: &Made) -> usize {
    let length = (made.end_ns - made.pts_ns[0]) as f64;
    let times: Vec<f64> = match rule.split_once('=') {
        None => return made.keyframes.len(),
        Some(("count", n)) => {
            let n: u32 = n.parse().unwrap();
            (0..n).map(|i| length * f64::from(2 * i + 1) / f64::from(2 * n)).collect()
        }
        Some((unit, n)) => {
            let n: f64 = n.parse().unwrap();
            let step = if unit == "fps" { 1e9 / n } else { n * 1e6 };
            (0..).map(|i| f64::from(i) * step).take_while(|t| *t < length).collect()
        }
    };
    let shown = |t: &f64| made.pts_ns.iter().rposition(|p| (p - made.pts_ns[0]) as f64 <= *t);
    let mut frames: Vec<_> = times.iter().map(shown).collect();
    frames.dedup();
    frames.len()
}

/// Compares planned and whole decoding; what the program says of each rule, by file, and how the two
/// differ.
fn compare(files: &[&Path]) -> (BTreeMap<PathBuf, Vec<Value>>, Vec<String>) {
    let args = ["check", "--json", "--decode"].map(OsStr::new).into_iter();
    let done = clipmill(&args.chain(files.iter().map(|f| f.as_os_str())).collect::<Vec<_>>());
    let (mut told, mut wrong) = (BTreeMap::new(), Vec::new());
    for line in done.stdout.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let file = PathBuf::from(line["file"].as_str().unwrap());
        let rules = line["rules"].as_array().unwrap().clone();
        assert_eq!(rules.len(), 5);
        for rule in &rules {
            for difference in rule["differences"].as_array().unwrap() {
                wrong.push(format!("{}: {}: {difference}", name(&file), rule["rule"]));
            }
        }
        told.insert(file, rules);
    }
    let code = if wrong.is_empty() { 0 } else { 1 };
    assert_eq!((told.len(), done.code), (files.len(), Some(code)), "{}", done.stderr);
    (told, wrong)
}

/// Checks that planned and whole decoding are the same by every rule.
#[track_caller]
fn check_same(files: &[PathBuf]) {
    let (_, wrong) = compare(&files.iter().map(PathBuf::as_path).collect::<Vec<_>>());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Checks that as well, and that as many frames are chosen as the clip's making says; and that decoding
/// everything gives all pictures in their order.
#[track_caller]
fn check(cases: &[Case]) {
    let (told, mut wrong) = compare(&cases.iter().map(|case| case.made.path.as_path()).collect::<Vec<_>>());
    for Case { made, pictured, is_full_range } in cases {
        let mut note = |what: String| wrong.push(format!("{}: {what}", name(&made.path)));
        for rule in &told[&made.path] {
            let (named, whole) = (rule["rule"].as_str().unwrap(), &rule["whole"]);
            if whole["frames"] != n_chosen(named, made) {
                note(format!("{named}: {whole}, not {} frames", n_chosen(named, made)));
            }
        }
        let all = decode_by(settings(Backend::Libav, Sampling::All), &made.path);
        let first = all.frames[0].pts.nanos;
        let late_ms =
            |(frame, pts): (&FrameInfo, &i64)| (frame.pts.nanos - first - (pts - made.pts_ns[0])) / 1_000_000;
        let late: Vec<_> = all.frames.iter().zip(&made.pts_ns).map(late_ms).collect();
        if all.frames.len() != made.pts_ns.len() || late.iter().any(|ms| *ms != 0) {
            note(format!("{} of {} frames, late by ms: {late:?}", all.frames.len(), made.pts_ns.len()));
        }
        let seen = all.pictured(*is_full_range);
        if *pictured != seen {
            note(format!("the pictures are those of {seen:?}"));
        }
        let keys = all.frames.iter().filter(|f| f.is_keyframe).map(|f| f.frame_index);
        if !keys.clone().eq(made.keyframes.iter().copied()) {
            note(format!("keyframes are {:?}, not {:?}", Vec::from_iter(keys), made.keyframes));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// A place for a test's clips.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A clip of this form.
    fn made(&self, form: Form) -> Case {
        make(self.0.path(), &Clip::wandering(form)).into()
    }

    /// A clip of given packets, written by a muxer.
    fn muxed(&self, name: &str, coded: &Coded, muxer: &str) -> Case {
        coded.mux(muxer, &self.at(name));
        self.of(name, &coded.packets)
    }

    /// A clip that was written of these packets, one a frame at an even pace.
    fn of(&self, name: &str, packets: &[Packet]) -> Case {
        let mut shown: Vec<&Packet> = packets.iter().collect();
        shown.sort_by_key(|p| p.pts_ns);
        let keyframes = shown.iter().zip(0..).filter(|(p, _)| p.is_key).map(|(_, n)| n).collect();
        let pts_ns = (0..shown.len() as i64).map(|n| n * FRAME_NS as i64).collect();
        let end_ns = (shown.len() as u64 * FRAME_NS) as i64;
        Made { path: self.at(name), pts_ns, end_ns, keyframes }.into()
    }
}

/// H.264 with these settings of x264, at a quality that keeps the brightness.
macro_rules! h264 {
    ($options:literal) => {
        concat!("x264enc name=enc pass=quant quantizer=5 b-adapt=false ", $options, " ! h264parse")
    };
}

const CLOSED: &str =
    h264!("bframes=3 b-pyramid=true option-string=scenecut=0:keyint=12:min-keyint=12:open-gop=0");
const OPEN: &str =
    h264!("bframes=3 b-pyramid=true option-string=scenecut=0:keyint=12:min-keyint=12:open-gop=1");
const LONG: &str = h264!("bframes=2 option-string=scenecut=0:keyint=1000");
const INTRA: &str = h264!("key-int-max=1");

#[test]
fn h264_in_every_kind_of_group() {
    let place = Place::new();
    let mp4 = |name, encoder| form(name, "mp4", ["h264", "mp4"], encoder, "mp4mux");
    check(&[
        place.made(mp4("closed", CLOSED)),
        place.made(mp4("open", OPEN)),
        place.made(mp4("long", LONG)),
        place.made(mp4("intra", INTRA)),
    ]);
}

#[test]
fn h264_in_every_container() {
    let place = Place::new();
    let both = |extension, container: &'static str, muxer| {
        let h264 = |name, encoder| form(name, extension, ["h264", container], encoder, muxer);
        [place.made(h264("closed", CLOSED)), place.made(h264("open", OPEN))]
    };
    let [mkv, ts, flv, mov] = [
        both("mkv", "matroska", "matroskamux"),
        both("ts", "mpegts", "mpegtsmux"),
        both("flv", "flv", "flvmux"),
        both("mov", "mp4", "qtmux"),
    ];
    check(&[mkv, ts, flv, mov].into_iter().flatten().collect::<Vec<_>>());
}

/// AVI has no presentation times, and H.264 packets do not say which are shown later.
#[test]
fn h264_in_avi() {
    const PLAIN: &str = h264!("bframes=0 byte-stream=true option-string=scenecut=0:keyint=12:min-keyint=12");
    const B: &str = h264!("bframes=3 byte-stream=true option-string=scenecut=0:keyint=12:min-keyint=12");
    let place = Place::new();
    let avi = |name, encoder| form(name, "avi", ["h264", "avi"], encoder, "avimux");
    check(&[place.made(avi("plain", PLAIN)), place.made(avi("b", B))]);
}

const MPEG4: &str = "avenc_mpeg4 name=enc gop-size=12 pass=quant quantizer=1 sc-threshold=1000000000";
const MPEG4_B: &str =
    "avenc_mpeg4 name=enc gop-size=12 pass=quant quantizer=1 sc-threshold=1000000000 max-bframes=2";
const MPEG4_1B: &str =
    "avenc_mpeg4 name=enc gop-size=12 pass=quant quantizer=1 sc-threshold=1000000000 max-bframes=1";

/// MPEG-4 packets with the times that their order means.
fn mpeg4(encoder: &str) -> Coded {
    let clip = Clip::wandering(MPEG4_B_AVI);
    let mut coded = encode(&clip.caps(), encoder, clip.pictures());
    coded.pace(FRAME_NS, mpeg4_is_b);
    coded
}

#[test]
fn mpeg4_in_avi() {
    let place = Place::new();
    let mut cases = vec![place.made(form("plain", "avi", ["mpeg4", "avi"], MPEG4, "avimux"))];
    for (name, encoder) in [("one", MPEG4_1B), ("two", MPEG4_B)] {
        let coded = mpeg4(encoder);
        assert!(coded.packets.iter().any(|p| mpeg4_is_b(&p.bytes)), "no B-pictures");
        let write = |name: &str, packets: &[Packet]| {
            let name = format!("{name}.avi");
            avi(&place.at(&name), b"DX50", (96, 64), 25, packets);
            place.of(&name, &coded.packets)
        };
        cases.push(write(&format!("plain-{name}"), &coded.packets));
        cases.push(write(&format!("packed-{name}"), &packed(&coded.packets)));
    }
    check(&cases);
}

/// Recorders leave out pictures that they missed or that were alike: the one before stays.
#[test]
fn avi_with_pictures_left_out() {
    let place = Place::new();
    let left_out = |n: usize| n % 7 == 3 || n % 11 == 5;
    let case = |name: &str, fourcc: &[u8; 4], coded: Coded, filler: &[u8]| {
        let filler = Packet { bytes: filler.to_vec(), is_key: false, ..coded.packets[0].clone() };
        let mut packets = coded.packets.iter();
        let (mut chunks, mut at) = (Vec::new(), Vec::new());
        for n in 0.. {
            if left_out(n) {
                chunks.push(filler.clone());
            } else if let Some(packet) = packets.next() {
                at.push(n as i64 * FRAME_NS as i64);
                chunks.push(packet.clone());
            } else {
                break;
            }
        }
        avi(&place.at(name), fourcc, (96, 64), 25, &chunks);
        let mut case = place.of(name, &coded.packets);
        (case.made.pts_ns, case.made.end_ns) = (at, (chunks.len() as u64 * FRAME_NS) as i64);
        case
    };
    let mpeg4 = || mpeg4(MPEG4);
    let clip = Clip::wandering(MJPEG_AVI);
    let mjpeg = encode(&clip.caps(), "jpegenc quality=100", clip.pictures());
    check(&[
        case("empty.avi", b"XVID", mpeg4(), &[]),
        case("not-coded.avi", b"XVID", mpeg4(), NOT_CODED),
        Case { is_full_range: true, ..case("mjpeg.avi", b"MJPG", mjpeg, &[]) },
    ]);
}

#[test]
fn mpeg4_in_other_containers() {
    let place = Place::new();
    let coded = mpeg4(&format!("{MPEG4_B} ! mpeg4videoparse"));
    // What was moved over from AVI, packets and all: times are those of decoding.
    let mut moved = coded.clone().called("video/x-divx,divxversion=5,width=96,height=64,framerate=25/1");
    moved.packets.iter_mut().for_each(|p| p.pts_ns = p.dts_ns);
    moved.mux("matroskamux", &place.at("moved.mkv"));
    check(&[
        place.muxed("b.mp4", &coded, "mp4mux"),
        place.muxed("b.mkv", &coded, "matroskamux"),
        place.muxed("b.mov", &coded, "qtmux"),
        place.of("moved.mkv", &coded.packets),
    ]);
}

const MPEG1: u32 = 0;
const MPEG2: u32 = 3;

/// `mpeg2enc` gives its packets no times of their own; its groups are open.
fn mpeg2(format: u32) -> Coded {
    let clip = Clip::wandering(H264_TS);
    let encoder = format!(
        "mpeg2enc format={format} quantisation=1 bitrate=8000 bufsize=400 b-per-refframe=2 min-gop-size=12 \
         max-gop-size=12 ! mpegvideoparse"
    );
    let mut coded = encode(&clip.caps(), &encoder, clip.pictures());
    coded.pace(FRAME_NS, mpeg2_is_b);
    const GROUP: u8 = 0xB8;
    coded.packets.iter_mut().for_each(|p| p.is_key = start_code(&p.bytes, GROUP).is_some());
    assert!(coded.packets.iter().any(|p| mpeg2_is_b(&p.bytes)), "no B-pictures");
    coded
}

#[test]
fn mpeg1_and_2() {
    let place = Place::new();
    check(&[
        place.muxed("two.ts", &mpeg2(MPEG2), "mpegtsmux"),
        place.muxed("two.mpg", &mpeg2(MPEG2), "mpegpsmux"),
        place.muxed("two.mkv", &mpeg2(MPEG2), "matroskamux"),
        place.muxed("one.mpg", &mpeg2(MPEG1), "mpegpsmux"),
    ]);
}

/// Some muxers take the times of decoding for those of showing, which the pictures themselves contradict.
#[test]
fn times_that_contradict_the_order() {
    let place = Place::new();
    let contradicted = |name: &str, mut coded: Coded, muxer: &str| {
        coded.packets.iter_mut().for_each(|p| p.pts_ns = p.dts_ns);
        coded.mux(muxer, &place.at(name));
        place.at(name)
    };
    // Not H.264, whose packets do not tell their order: README names that limit.
    check_same(&[
        contradicted("mpeg2.ts", mpeg2(MPEG2), "mpegtsmux"),
        contradicted("mpeg4.mkv", mpeg4(&format!("{MPEG4_B} ! mpeg4videoparse")), "matroskamux"),
    ]);
}

/// Times that go back for a moment, in a stream that shows its pictures as they come.
#[test]
fn times_that_go_back() {
    let place = Place::new();
    let gone_back = |name: &str, form: Form| {
        let clip = Clip::wandering(form);
        let mut coded = encode(&clip.caps(), form.encoder, clip.pictures());
        for n in [8, 17, 31] {
            coded.packets[n].pts_ns = coded.packets[n].pts_ns.map(|t| t - 3 * FRAME_NS / 2);
            coded.packets[n].dts_ns = coded.packets[n].pts_ns;
        }
        coded.mux(form.muxer, &place.at(name));
        place.at(name)
    };
    check_same(&[gone_back("vp9.webm", VP9_WEBM), gone_back("vp8.webm", VP8_WEBM)]);
}

/// A recording that was cut off in the middle of a picture.
#[test]
fn clips_that_were_cut_off() {
    let place = Place::new();
    let cut = |form: Form| {
        let made = make(place.0.path(), &Clip::wandering(form));
        let bytes = fs::read(&made.path).unwrap();
        fs::write(&made.path, &bytes[..bytes.len() * 3 / 5]).unwrap();
        made.path
    };
    check_same(&[MPEG4_B_AVI, H264_FAST_MP4, H264_TS, H264_MKV, VP9_WEBM, MJPEG_AVI].map(cut));
}

#[test]
fn hidden_pictures() {
    let place = Place::new();
    // A texture that stays is worth a picture that is made for others alone.
    let clip = Clip::counting(VP9_WEBM);
    let pictures = || {
        let mut pictures = clip.pictures();
        for (n, picture) in pictures.iter_mut().enumerate() {
            for (at, luma) in picture.i420[..96 * 64].iter_mut().enumerate() {
                *luma = wander(0, at / 96, at % 96) + 4 * n as u8;
            }
        }
        pictures
    };
    // VP8's encoder makes such only if it has seen the whole clip before.
    let vp8 = |pass: &str| {
        let text = format!(
            "vp8enc keyframe-max-dist=25 target-bitrate=3000000 max-quantizer=4 lag-in-frames=10 \
             auto-alt-ref=true arnr-maxframes=5 deadline=1000 multipass-mode={pass} \
             multipass-cache-file=\"{}\"",
            place.at("notes").display()
        );
        encode(&clip.caps(), &text, pictures())
    };
    vp8("first-pass");
    let vp8 = vp8("last-pass");
    vp8.mux("webmmux", &place.at("vp8.webm"));
    let shown: Vec<Packet> = vp8.packets.iter().filter(|p| p.bytes[0] & 0x10 != 0).cloned().collect();
    assert!(shown.len() < vp8.packets.len(), "vp8enc hid no picture");
    let vp9 = encode(
        &clip.caps(),
        "vp9enc keyframe-max-dist=25 target-bitrate=3000000 max-quantizer=4 deadline=1 cpu-used=8 \
         lag-in-frames=10 auto-alt-ref=true",
        pictures(),
    );
    assert!(vp9.packets.iter().any(|p| p.bytes.last().unwrap() & 0xE0 == 0xC0), "vp9enc hid no picture");
    check(&[place.of("vp8.webm", &shown), place.muxed("vp9.webm", &vp9, "webmmux")]);
}

#[test]
fn other_codecs() {
    let place = Place::new();
    let mut cases = vec![
        Case { is_full_range: true, ..place.made(MJPEG_AVI) },
        place.made(VP9_WEBM),
        place.made(THEORA_OGV),
        place.made(form(
            "flv1",
            "flv",
            ["flv1", "flv"],
            "avenc_flv name=enc gop-size=10 pass=quant quantizer=1 sc-threshold=1000000000",
            "flvmux",
        )),
        place.made(form("ffv1", "mkv", ["ffv1", "matroska"], "avenc_ffv1 name=enc", "matroskamux")),
    ];
    const H265: &str = "x265enc name=enc qp=5 option-string=bframes=3:keyint=12:min-keyint=12:scenecut=0:\
                        open-gop=1:pools=1:log-level=error ! h265parse";
    const AV1: &str = "av1enc name=enc cpu-used=8 keyframe-max-dist=12 lag-in-frames=10 max-quantizer=4 \
                       target-bitrate=4000 ! av1parse";
    for (codec, encoder) in [("hevc", H265), ("av1", AV1)] {
        let element = encoder.split(' ').next().unwrap();
        if gstreamer::ElementFactory::find(element).is_none() {
            support::skip(&format!("there is no {element}"), "CLIPMILL_REQUIRE_CODECS");
            continue;
        }
        cases.push(place.made(form(codec, "mp4", [codec, "mp4"], encoder, "mp4mux")));
        cases.push(place.made(form(codec, "mkv", [codec, "matroska"], encoder, "matroskamux")));
    }
    check(&cases);
}

/// Times that wander about their pace, and a picture that stays for long.
#[test]
fn uneven_times() {
    let place = Place::new();
    let uneven = |name: &str, form: Form| {
        let clip = Clip::wandering(form);
        let mut pictures = clip.pictures();
        const OFF_MS: [u64; 5] = [0, 7, 19, 3, 11];
        for (n, picture) in pictures.iter_mut().enumerate() {
            let gap_ms = if n > 20 { 1_100 } else { 0 };
            picture.at_ns += 1_000_000 * (OFF_MS[n % 5] + gap_ms);
        }
        for n in 1..pictures.len() {
            pictures[n - 1].lasts_ns = pictures[n].at_ns - pictures[n - 1].at_ns;
        }
        Case::from(record(&place.at(name), form, &clip.caps(), pictures))
    };
    check(&[
        uneven("closed.mp4", form("", "", ["h264", ""], CLOSED, "mp4mux")),
        uneven("open.mkv", form("", "", ["h264", ""], OPEN, "matroskamux")),
        uneven("vp9.webm", VP9_WEBM),
    ]);
}

/// Changes an MP4 of H.264 with B-pictures.
fn changed_mp4(place: &Place, name: &str, change: impl Fn(&mut Vec<u8>)) -> Case {
    let clip = Clip::wandering(H264_MP4);
    let made = make_at(&place.at(name), &clip);
    let mut bytes = fs::read(&made.path).unwrap();
    change(&mut bytes);
    fs::write(&made.path, bytes).unwrap();
    made.into()
}

/// Moves the start of what an edit list shows to this frame.
fn show_from(place: &Place, frame: u32) -> Case {
    let mut case = changed_mp4(place, &format!("from-{frame}.mp4"), |bytes| {
        let list = mp4_box(bytes, b"elst");
        assert_eq!((bytes[list], mp4_number(bytes, list + 4)), (0, 1), "one edit of version 0");
        // Behind version, flags, count and duration.
        let start = list + 12;
        let ticks = mp4_number(bytes, mp4_box(bytes, b"mdhd") + 12);
        let moved = mp4_number(bytes, start) + ticks * frame / 25;
        bytes[start..start + 4].copy_from_slice(&moved.to_be_bytes());
    });
    let Made { pts_ns, keyframes, .. } = &mut case.made;
    pts_ns.drain(..frame as usize);
    keyframes.retain(|k| *k >= frame);
    keyframes.iter_mut().for_each(|k| *k -= frame);
    case.pictured = (frame..50).collect();
    case
}

#[test]
fn clips_that_do_not_start_at_nought() {
    let place = Place::new();
    let late = |name: &str, form: Form| {
        let clip = Clip::wandering(form);
        let mut pictures = clip.pictures();
        pictures.iter_mut().for_each(|p| p.at_ns += 2_000_000_000);
        Case::from(record(&place.at(name), form, &clip.caps(), pictures))
    };
    check(&[
        late("late.mp4", H264_MP4),
        late("late.mkv", form("", "", ["h264", ""], OPEN, "matroskamux")),
        late("late.ts", H264_TS),
        // Without its edit list, a clip starts when its first B-picture would have been shown.
        changed_mp4(&place, "first-time-above-0.mp4", |bytes| {
            let edits = mp4_box(bytes, b"edts");
            bytes[edits - 4..edits].copy_from_slice(b"free");
        }),
        changed_mp4(&place, "first-time-below-0.mp4", |bytes| {
            let edits = mp4_box(bytes, b"edts");
            bytes[edits - 4..edits].copy_from_slice(b"free");
            // Version 1 has offsets with a sign.
            let offsets = mp4_box(bytes, b"ctts");
            bytes[offsets] = 1;
            let ticks = mp4_number(bytes, mp4_box(bytes, b"mdhd") + 12);
            for entry in 0..mp4_number(bytes, offsets + 4) as usize {
                let at = offsets + 8 + 8 * entry + 4;
                let offset = mp4_number(bytes, at).wrapping_sub(ticks * 3 / 25);
                bytes[at..at + 4].copy_from_slice(&offset.to_be_bytes());
            }
        }),
        // In the middle of a group, and where one begins.
        show_from(&place, 5),
        show_from(&place, 10),
    ]);
}

/// Greys of a clip, with how long each is shown.
fn greys(ms: impl Fn(u64) -> u32) -> Vec<Grey> {
    let samples = |n| (0..64).flat_map(move |row| (0..96).map(move |column| wander(n, row, column)));
    (0..50).map(|n| (ms(n), samples(n).collect())).collect()
}

#[test]
fn gif_and_webp() {
    let place = Place::new();
    let ms = |n: u64| [40, 70, 30][n as usize % 3];
    let case = |name: &str, keyframes: Vec<u32>, write: fn(&Path, (u32, u32), &[Grey])| {
        write(&place.at(name), (96, 64), &greys(ms));
        let times: Vec<i64> = (0..=50).map(|n| (0..n).map(|i| i64::from(ms(i)) * 1_000_000).sum()).collect();
        let (pts_ns, end_ns) = (times[..50].to_vec(), times[50]);
        Case::from(Made { path: place.at(name), pts_ns, end_ns, keyframes })
    };
    check(&[case("a.gif", vec![0], gif), case("a.webp", vec![0], webp)]);
}

/// Packets of longer clips are read twice, not kept.
#[test]
fn clips_longer_than_what_is_kept() {
    const KEPT_BYTES: usize = 4 << 20;
    const FILLER_BYTES: u32 = 100_000;
    let place = Place::new();
    let clip = Clip::wandering(H264_MP4);
    // What decoders pass over makes packets long.
    let long = |name: &str, mut coded: Coded, filler: &[u8], write: &dyn Fn(&Coded, &Path)| {
        for packet in &mut coded.packets {
            packet.bytes.extend(filler.iter().copied().chain(repeat_n(0xFF, FILLER_BYTES as usize)));
            packet.bytes.push(0x80);
        }
        assert!(coded.packets.iter().map(|p| p.bytes.len()).sum::<usize>() > KEPT_BYTES);
        write(&coded, &place.at(name));
        place.of(name, &coded.packets)
    };
    let h264 = encode(&clip.caps(), OPEN, clip.pictures());
    // A filler unit with its length before it.
    let unit = [&(FILLER_BYTES + 2).to_be_bytes()[..], &[0x0C]].concat();
    const USER_DATA: &[u8] = &[0, 0, 1, 0xB2];
    let mjpeg = encode(&clip.caps(), "jpegenc quality=100", clip.pictures());
    let write_avi = |fourcc: &'static [u8; 4]| {
        move |coded: &Coded, path: &Path| avi(path, fourcc, (96, 64), 25, &coded.packets)
    };
    check(&[
        long("h264.mp4", h264.clone(), &unit, &|coded, path| coded.mux("mp4mux", path)),
        long("h264.mkv", h264.clone(), &unit, &|coded, path| coded.mux("matroskamux", path)),
        long("mpeg2.ts", mpeg2(MPEG2), USER_DATA, &|coded, path| coded.mux("mpegtsmux", path)),
        long("mpeg4.avi", mpeg4(MPEG4_B), USER_DATA, &write_avi(b"XVID")),
        Case { is_full_range: true, ..long("mjpeg.avi", mjpeg, &[], &write_avi(b"MJPG")) },
    ]);
}
