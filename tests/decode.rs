//! The decode stage by itself: the same frames whichever library decodes them, in however many threads,
//! and whatever came before; pictures as a player shows them; every frame of odd streams.

use std::{fs, iter::repeat_n, path::Path};

use stages::{
    decode::{Backend, Decode, Settings, sample::Sampling},
    item::FrameInfo,
};
use support::{
    clips::{
        Clip, Drawn, FORMS, Form, H264_MKV, H264_MP4, H264_TS, MJPEG_AVI, MPEG4_AVI, MPEG4_B_AVI, Show,
        VP8_WEBM, VP9_WEBM, form, make, record,
    },
    decoding::{Decoded, decode, decode_by, settings},
    packets::{Coded, Packet, encode},
    written::avi,
};
use tempfile::TempDir;

const BACKENDS: [Backend; 2] = [Backend::Libav, Backend::Gstreamer];

/// Fails unless frames and tensors are the same, bit by bit.
#[track_caller]
fn check_same(one: &Decoded, other: &Decoded, what: &str) {
    assert_eq!(one.frames, other.frames, "{what}");
    let bits = |d: &Decoded| -> Vec<Vec<u32>> {
        d.tensors.iter().map(|t| t.iter().map(|v| v.to_bits()).collect()).collect()
    };
    let (one, other) = (bits(one), bits(other));
    let differ: Vec<usize> = (0..one.len()).filter(|i| one[*i] != other[*i]).collect();
    assert!(differ.is_empty(), "{what}: other pixels in frames {differ:?} of {}", one.len());
}

fn folder() -> TempDir {
    TempDir::new().unwrap()
}

/// Bytes without a pattern, the same every time.
fn noise(n: usize) -> Vec<u8> {
    (0..n as u32).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 13 ^ i >> 3) as u8).collect()
}

#[test]
fn nothing_is_left_of_the_clip_before() {
    let folder = folder();
    for form in [MPEG4_AVI, H264_MP4, VP8_WEBM] {
        let good = make(folder.path(), &Clip::wandering(form)).path;
        let bytes = fs::read(&good).unwrap();
        let (half, third) = (bytes.len() / 2, bytes.len() / 3);
        let noisy = [&bytes[..third], &noise(third), &bytes[2 * third..]].concat();
        let bad = [
            ("cut.mp4", bytes[..half].to_vec()),
            ("noisy.mp4", noisy),
            ("no-movie.mp4", b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\x08moov\0\0\0\x08mdat".to_vec()),
            ("text.mp4", b"This is no video. ".repeat(100)),
        ];
        let bad = bad.map(|(name, bytes)| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        });
        for backend in BACKENDS {
            for sampling in [Sampling::Count(8), Sampling::All] {
                let mut stage = Decode::open(settings(backend, sampling)).unwrap();
                let before = decode(&mut stage, &good).unwrap();
                for bad in &bad {
                    // Whatever comes of it.
                    let _ = decode(&mut stage, bad);
                    let after = decode(&mut stage, &good).unwrap();
                    check_same(&before, &after, &format!("{} after {}", good.display(), bad.display()));
                }
            }
        }
    }
}

#[test]
fn both_libraries_give_the_same_frames() {
    let folder = folder();
    let mut wrong = Vec::new();
    for form in FORMS {
        let made = make(folder.path(), &Clip::wandering(*form));
        for sampling in [Sampling::Count(8), Sampling::EveryMs(130), Sampling::All] {
            let [one, other] = BACKENDS.map(|backend| decode_by(settings(backend, sampling), &made.path));
            let mut note = |what: String| wrong.push(format!("{form:?}, {sampling:?}: {what}"));
            let told = |d: &Decoded| -> Vec<(u32, i64, bool)> {
                let first = d.frames[0].pts.nanos;
                // To the nearest millisecond.
                let ms = |f: &FrameInfo| (f.pts.nanos - first + 500_000).div_euclid(1_000_000);
                d.frames.iter().map(|f| (f.frame_index, ms(f), f.is_keyframe)).collect()
            };
            let (a, b) = (told(&one), told(&other));
            let is_near = |(a, b): (&(u32, i64, bool), &(u32, i64, bool))| {
                (a.0, a.2) == (b.0, b.2) && (a.1 - b.1).abs() <= 1
            };
            if a.len() != b.len() || !a.iter().zip(&b).all(is_near) {
                note(format!("libav chose {a:?}, GStreamer {b:?}"));
                continue;
            }
            let differences = one
                .tensors
                .iter()
                .zip(&other.tensors)
                .map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f32>() / a.len() as f32);
            let most = differences.fold(0.0, f32::max);
            if most > 0.002 {
                note(format!("pictures differ by {most}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn threads_change_nothing() {
    let folder = folder();
    for form in [H264_MP4, MPEG4_B_AVI, VP9_WEBM] {
        let made = make(folder.path(), &Clip::wandering(form));
        for (sampling, plan) in
            [(Sampling::Count(8), true), (Sampling::Count(8), false), (Sampling::All, false)]
        {
            let by = |threads| {
                decode_by(Settings { threads, plan, ..settings(Backend::Libav, sampling) }, &made.path)
            };
            let one = by(1);
            for threads in [2, 4] {
                check_same(&one, &by(threads), &format!("{form:?}, {sampling:?}, {threads} threads"));
            }
        }
    }
}

/// Grey pictures, drawn by row and column.
fn drawn(n_frames: u64, luma: impl Fn(usize, usize) -> u8) -> Vec<Drawn> {
    const FRAME_NS: u64 = 40_000_000;
    let mut i420: Vec<u8> = (0..64 * 96).map(|at| luma(at / 96, at % 96)).collect();
    i420.extend(repeat_n(128, 64 * 96 / 2));
    (0..n_frames).map(|n| Drawn { at_ns: n * FRAME_NS, lasts_ns: FRAME_NS, i420: i420.clone() }).collect()
}

/// Mean brightness of a clip's frames, which are alike.
#[track_caller]
fn brightness(settings: Settings, path: &Path) -> f32 {
    let seen = decode_by(settings, path).brightness();
    let mean = seen.iter().sum::<f32>() / seen.len() as f32;
    assert!(seen.iter().all(|b| (b - mean).abs() < 0.05), "{}: {seen:?}", path.display());
    mean
}

#[test]
fn samples_that_are_not_square_are_stretched() {
    let folder = folder();
    let square = Clip::counting(H264_MP4).caps();
    let wide = square.replace("pixel-aspect-ratio=1/1", "pixel-aspect-ratio=2/1");
    for form in [H264_MP4, H264_MKV, MPEG4_AVI, VP8_WEBM] {
        // The middle third is white. Where samples are twice as wide as high, it is all that the square in
        // the middle shows; where they are square, so much is black beside it.
        for (caps, wanted) in [(&square, 0.5), (&wide, 1.0)] {
            let pictures = drawn(10, |_, column| if (32..64).contains(&column) { 235 } else { 16 });
            let path = folder.path().join(format!("{wanted}-{}.{}", form.name, form.extension));
            record(&path, form, caps, pictures);
            for backend in BACKENDS {
                let seen = brightness(settings(backend, Sampling::All), &path);
                assert!(
                    (seen - wanted).abs() < 0.05,
                    "{}, {backend:?}: {seen}, not {wanted}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn interlaced_pictures_are_read_by_one_field() {
    const H264: &str = "x264enc name=enc pass=quant quantizer=5 interlaced=true ! h264parse";
    const MPEG2: &str = "mpeg2enc name=enc format=3 quantisation=1 interlace-mode=1 ! mpegvideoparse";
    let folder = folder();
    let progressive = Clip::counting(H264_MP4).caps();
    let interlaced = progressive.replace("=progressive", "=interleaved,field-order=top-field-first");
    let forms = [
        (H264_MP4, &progressive, 0.5),
        (form("h264-fields", "mp4", ["h264", "mp4"], H264, "mp4mux"), &interlaced, 0.0),
        (form("h264-fields", "ts", ["h264", "mpegts"], H264, "mpegtsmux"), &interlaced, 0.0),
        (form("mpeg2-fields", "ts", ["mpeg2video", "mpegts"], MPEG2, "mpegtsmux"), &interlaced, 0.0),
    ];
    for (form, caps, wanted) in forms {
        // The upper field is black, the lower white.
        let pictures = drawn(10, |row, _| if row % 2 == 1 { 235 } else { 16 });
        let path = folder.path().join(format!("{}.{}", form.name, form.extension));
        record(&path, form, caps, pictures);
        for backend in BACKENDS {
            for (one_field, wanted) in [(true, wanted), (false, 0.5)] {
                let mut settings = settings(backend, Sampling::All);
                settings.reading.one_field = one_field;
                let seen = brightness(settings, &path);
                assert!(
                    (seen - wanted).abs() < 0.06,
                    "{}, {backend:?}, one_field = {one_field}: {seen}, not {wanted}",
                    path.display()
                );
            }
        }
    }
}

/// Checks that by `all` every frame of a clip is there, in its order, by both libraries; their times.
#[track_caller]
fn check_all(path: &Path, is_full_range: bool) -> [Vec<i64>; 2] {
    BACKENDS.map(|backend| {
        let all = decode_by(settings(backend, Sampling::All), path);
        let what = format!("{}, {backend:?}", path.display());
        assert_eq!(all.pictured(is_full_range), Vec::from_iter(0..50), "{what}");
        let indices: Vec<u32> = all.frames.iter().map(|f| f.frame_index).collect();
        assert_eq!(indices, Vec::from_iter(0..50), "{what}");
        let times: Vec<i64> = all.frames.iter().map(|f| f.pts.nanos).collect();
        assert!(times.is_sorted(), "{what}: {times:?}");
        times
    })
}

/// Checks that a plan changes nothing.
#[track_caller]
fn check_planned(path: &Path) {
    for sampling in [Sampling::Count(8), Sampling::EveryMs(130), Sampling::Keyframes] {
        let by = |plan| decode_by(Settings { plan, ..settings(Backend::Libav, sampling) }, path);
        check_same(&by(true), &by(false), &format!("{}, planned or not", path.display()));
    }
}

/// H.264 whose packets bring their own headers.
const H264_STREAM_TS: Form = form(
    "h264",
    "ts",
    ["h264", "mpegts"],
    "x264enc name=enc pass=quant quantizer=5 b-adapt=false bframes=2 byte-stream=true \
     option-string=scenecut=0:keyint=10:min-keyint=10 ! h264parse \
     ! video/x-h264,stream-format=byte-stream,alignment=au",
    "mpegtsmux",
);

/// Packets of two clips after another, of which the second stands on its side.
fn turned_half_way(form: Form) -> Coded {
    let lying = Clip::counting(form);
    let standing = Clip { width: lying.height, height: lying.width, ..lying };
    let mut first = encode(&lying.caps(), form.encoder, lying.pictures()[..25].to_vec());
    let second = encode(&standing.caps(), form.encoder, standing.pictures()[25..].to_vec());
    first.packets.extend(second.packets);
    first
}

#[test]
fn sizes_may_change_on_the_way() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    avi(&at("mjpeg.avi"), b"MJPG", (96, 64), 25, &turned_half_way(MJPEG_AVI).packets);
    for form in [H264_STREAM_TS, VP8_WEBM, VP9_WEBM] {
        turned_half_way(form).mux(form.muxer, &at(&format!("{}.{}", form.name, form.extension)));
    }
    for name in ["mjpeg.avi", "h264.ts", "vp8.webm", "vp9.webm"] {
        check_all(&at(name), name == "mjpeg.avi");
        check_planned(&at(name));
    }
}

#[test]
fn times_may_be_missing_or_alike_or_go_back() {
    let folder = folder();
    let changed = |form: Form, name: &str, change: fn(usize, &mut Packet)| {
        let clip = Clip { show: Show::Wander, ..Clip::counting(form) };
        let mut coded = encode(&clip.caps(), form.encoder, clip.pictures());
        coded.packets.iter_mut().enumerate().for_each(|(n, packet)| change(n, packet));
        let path = folder.path().join(format!("{name}-{}.{}", form.name, form.extension));
        coded.mux(form.muxer, &path);
        path
    };
    let alike = |n: usize, packet: &mut Packet| {
        if n % 10 == 5 {
            packet.pts_ns = packet.pts_ns.map(|t| t - 40_000_000);
            packet.dts_ns = packet.pts_ns;
        }
    };
    let back = |n: usize, packet: &mut Packet| {
        if n % 10 == 5 {
            packet.pts_ns = packet.pts_ns.map(|t| t - 60_000_000);
            packet.dts_ns = packet.pts_ns;
        }
    };
    let missing = |n: usize, packet: &mut Packet| {
        if n % 10 == 5 {
            (packet.pts_ns, packet.dts_ns) = (None, None);
        }
    };
    const PLAIN: &str = "x264enc name=enc pass=quant quantizer=5 bframes=0 key-int-max=10 ! h264parse";
    let mp4 = form("h264", "mp4", ["h264", "mp4"], PLAIN, "mp4mux");
    for form in [VP8_WEBM, H264_MKV] {
        let path = changed(form, "alike", alike);
        check_planned(&path);
        for times in check_all(&path, false) {
            let n_alike = times.windows(2).filter(|pair| pair[0] == pair[1]).count();
            assert_eq!(n_alike, 5, "{form:?}: {times:?}");
        }
        check_all(&changed(form, "back", back), false);
    }
    for path in [changed(mp4, "alike", alike), changed(H264_STREAM_TS, "missing", missing)] {
        check_all(&path, false);
        check_planned(&path);
    }
}

/// Two recordings in one file: the clock of the second starts again.
#[test]
fn recordings_put_together_follow_one_another() {
    let folder = folder();
    let one = fs::read(make(folder.path(), &Clip { show: Show::Wander, ..Clip::counting(H264_TS) }).path);
    let both = folder.path().join("both.ts");
    fs::write(&both, one.unwrap().repeat(2)).unwrap();
    let all = decode_by(settings(Backend::Libav, Sampling::All), &both);
    assert_eq!(all.pictured(false), Vec::from_iter((0..50).chain(0..50)));
    let seconds = all.frames.last().unwrap().pts.nanos as f64 / 1e9;
    assert!((3.9..4.1).contains(&seconds), "the last frame is at {seconds} s");
    check_planned(&both);
}

/// A clip opens no file but its own.
#[test]
fn playlists_are_refused() {
    let folder = folder();
    let clip = make(folder.path(), &Clip::counting(H264_TS)).path;
    let name = clip.file_name().unwrap().to_str().unwrap();
    let lists = [
        format!("ffconcat version 1.0\nfile {name}\n"),
        format!("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n", clip.display()),
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5904 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
            .to_owned(),
    ];
    for backend in [Backend::Auto, Backend::Libav, Backend::Gstreamer] {
        let mut stage = Decode::open(settings(backend, Sampling::All)).unwrap();
        for list in &lists {
            let path = folder.path().join("list.mp4");
            fs::write(&path, list).unwrap();
            let refused = decode(&mut stage, &path).expect_err(list);
            assert!(refused.starts_with("unsupported"), "{backend:?}: {refused}");
        }
    }
}

/// A packet that cannot be read after one too large to keep.
#[test]
fn a_break_after_a_large_packet_is_survived() {
    let folder = folder();
    let path = folder.path().join("broken.y4m");
    let mut file = b"YUV4MPEG2 W2048 H1536 F25:1 Ip C420\nFRAME\n".to_vec();
    file.extend(std::iter::repeat_n(128u8, 2048 * 1536 * 3 / 2));
    file.extend(noise(100_000));
    fs::write(&path, &file).unwrap();
    for plan in [true, false] {
        for sampling in [Sampling::Count(2), Sampling::All] {
            let settings = Settings { plan, ..settings(Backend::Libav, sampling) };
            assert_eq!(decode_by(settings, &path).frames.len(), 1);
        }
    }
}
