//! Decoding on a device: the rows of the software decoder, decoders that are kept, and clips that fall back.
//!
//! The device is a fake that really decodes MPEG-1, 2 and 4 and paints the rest (`fake_gpu/nvcuvid.cpp`), so
//! the first are compared bit by bit.

use std::{
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Duration,
};

use kernels::{
    gpu::Gpu,
    picture::{Matrix, Reading},
    preprocess::on_gpu::Float,
};
use stages::{
    decode::{Backend, Decode, Settings, nvdec::Nvdec, route::Router, sample::Sampling},
    lane::{Lane, Wanted},
    model::Home,
};
use support::{
    clips::{Clip, H264_MKV, H264_MP4, H264_TS, MJPEG_AVI, MPEG4_AVI, MPEG4_B_AVI, VP8_WEBM, VP9_WEBM, make},
    decoding::{Decoded, RECIPE, decode, decode_by, settings},
    fake_gpu::inside,
    nvcuvid::{Fake, nvdec},
    packets::{Coded, encode, mpeg2_is_b, mpeg4_is_b, packed, start_code},
    written::avi,
};
use tempfile::TempDir;

const SAMPLINGS: [Sampling; 5] =
    [Sampling::All, Sampling::EveryMs(300), Sampling::Fps(2.0), Sampling::Count(5), Sampling::Keyframes];
const FRAME_NS: u64 = 40_000_000;

fn on(nvdec: &Nvdec, sampling: Sampling) -> Settings {
    Settings { nvdec: Some(nvdec.clone()), ..settings(Backend::Auto, sampling) }
}

fn decoder(decoded: &Decoded) -> &str {
    &decoded.end.as_ref().unwrap().decoder
}

#[track_caller]
fn check_same(software: &Decoded, device: &Decoded, what: &str) {
    assert_eq!(software.frames, device.frames, "{what}");
    assert!(software.tensors == device.tensors, "{what}: other samples");
    let (software, device) = (software.end.as_ref().unwrap(), device.end.as_ref().unwrap());
    let told = |end: &stages::item::ClipEnd| {
        (end.codec.clone(), end.width, end.height, end.duration_ns, end.n_frames, end.n_sampled)
    };
    assert_eq!(told(software), told(device), "{what}");
}

fn check_file(nvdec: &Nvdec, path: &Path, codec: &str) {
    for sampling in SAMPLINGS {
        let what = format!("{} {sampling:?}", path.display());
        let software = decode_by(settings(Backend::Libav, sampling), path);
        let device = decode_by(on(nvdec, sampling), path);
        assert_eq!(decoder(&device), format!("nvdec:{codec}"), "{what}");
        check_same(&software, &device, &what);
    }
}

/// MPEG-4 with B-frames, as packets.
fn mpeg4_b() -> Coded {
    let clip = Clip::wandering(MPEG4_B_AVI);
    let mut coded =
        encode(&clip.caps(), "avenc_mpeg4 gop-size=10 bitrate=4000000 max-bframes=2", clip.pictures());
    coded.pace(FRAME_NS, mpeg4_is_b);
    coded
}

/// MPEG-1 or 2 with open groups. The encoder gives packets no times of their own.
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
    coded
}

/// Calls pictures two fields each, the upper one first (ISO 13818-2, 6.2.2.3 and 6.2.3.1).
fn interlace(packet: &mut [u8]) {
    for at in 0..packet.len().saturating_sub(9) {
        let [0, 0, 1, 0xB5, kind, ..] = packet[at..] else { continue };
        match kind >> 4 {
            // progressive_sequence
            1 => packet[at + 5] &= !8,
            // top_field_first, chroma_420_type, progressive_frame
            8 => {
                packet[at + 7] = packet[at + 7] & !1 | 0x80;
                packet[at + 8] &= 0x7F;
            }
            _ => (),
        }
    }
}

fn packed_avi(folder: &Path) -> PathBuf {
    let path = folder.join("packed.avi");
    avi(&path, b"DX50", (96, 64), 25, &packed(&mpeg4_b().packets));
    path
}

#[test]
fn mpeg4_is_the_same_bit_by_bit() {
    if !inside("mpeg4_is_the_same_bit_by_bit", &[]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let nvdec = nvdec(2);
    for form in [MPEG4_AVI, MPEG4_B_AVI] {
        check_file(&nvdec, &make(folder.path(), &Clip::wandering(form)).path, "mpeg4");
    }
    check_file(&nvdec, &packed_avi(folder.path()), "mpeg4");
    let counts = Fake::get().counts();
    assert_eq!((counts.created, counts.mapped), (1, 0), "one decoder for all of one size");
}

#[test]
fn mpeg2_is_the_same_bit_by_bit() {
    if !inside("mpeg2_is_the_same_bit_by_bit", &[]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let nvdec = nvdec(2);
    // The two differ in what the encoder calls its formats.
    for (format, codec) in [(0, "mpeg1video"), (3, "mpeg2video")] {
        let coded = mpeg2(format);
        for (muxer, name) in
            [("mpegtsmux", "clip.ts"), ("mpegpsmux", "clip.mpg"), ("matroskamux", "clip.mkv")]
        {
            let path = folder.path().join(format!("{codec}-{name}"));
            coded.mux(muxer, &path);
            check_file(&nvdec, &path, codec);
        }
    }
    assert_eq!(Fake::get().counts().created, 2);
}

#[test]
fn what_gstreamer_parses_comes_in_order_and_complete() {
    if !inside("what_gstreamer_parses_comes_in_order_and_complete", &[]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let nvdec = nvdec(8);
    for form in [H264_MP4, H264_MKV, H264_TS, VP8_WEBM, VP9_WEBM] {
        let made = make(folder.path(), &Clip::wandering(form));
        for sampling in SAMPLINGS {
            let software = decode_by(settings(Backend::Libav, sampling), &made.path);
            let device = decode_by(on(&nvdec, sampling), &made.path);
            let what = format!("{} {sampling:?}", form.name);
            assert_eq!(decoder(&device), format!("nvdec:{}", form.codec), "{what}");
            assert_eq!(software.frames, device.frames, "{what}");
        }
    }
    assert_eq!(Fake::get().counts().mapped, 0);
}

#[test]
fn one_decoder_serves_many_clips() {
    if !inside("one_decoder_serves_many_clips", &[]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let nvdec = nvdec(4);
    let fake = Fake::get();
    for (form, n) in [(MPEG4_B_AVI, 50), (H264_MP4, 10)] {
        let path = make(folder.path(), &Clip::wandering(form)).path;
        let before = fake.counts().created;
        let mut stage = Decode::open(on(&nvdec, Sampling::All)).unwrap();
        let first = decode(&mut stage, &path).unwrap();
        let free = || Gpu::open(0).unwrap().memory().unwrap().0;
        let before_them = free();
        for _ in 1..n {
            let next = decode(&mut stage, &path).unwrap();
            assert_eq!(decoder(&next), format!("nvdec:{}", form.codec));
            check_same(&first, &next, form.name);
        }
        assert_eq!(fake.counts().created - before, 1, "{}", form.name);
        assert_eq!(free(), before_them, "surfaces that were dropped are lent again");
    }
    // There is no room for a third size besides: the oldest goes.
    let one = support::nvcuvid::nvdec(1);
    for width in [96, 112, 128] {
        let made = make(folder.path(), &Clip { width, ..Clip::wandering(MPEG4_AVI) });
        assert_eq!(decoder(&decode_by(on(&one, Sampling::All), &made.path)), "nvdec:mpeg4");
    }
    let counts = fake.counts();
    assert_eq!(counts.created - counts.destroyed, 3);
}

#[test]
fn a_session_that_failed_is_thrown_away() {
    if !inside("a_session_that_failed_is_thrown_away", &[]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let fake = Fake::get();
    for form in [MPEG4_B_AVI, H264_MP4] {
        let path = make(folder.path(), &Clip::wandering(form)).path;
        for sampling in [Sampling::All, Sampling::EveryMs(300)] {
            let software = decode_by(settings(Backend::Libav, sampling), &path);
            let nvdec = nvdec(4);
            let mut stage = Decode::open(on(&nvdec, sampling)).unwrap();
            let faults = [
                ("create", &fake.fail_create, 1),
                ("decode", &fake.fail_decode, 9),
                ("map", &fake.fail_map, 5),
            ];
            for (name, fault, at) in faults {
                let what = format!("{} {sampling:?} {name}", form.name);
                fault.store(at, Ordering::SeqCst);
                let failed = decode(&mut stage, &path).unwrap();
                fault.store(0, Ordering::SeqCst);
                assert!(decoder(&failed).starts_with("libav:"), "{what}: {}", decoder(&failed));
                // Frames before the fault came from the device, and none comes twice.
                assert_eq!(software.frames, failed.frames, "{what}");
                if form == MPEG4_B_AVI {
                    check_same(&software, &failed, &what);
                }
                let next = decode(&mut stage, &path).unwrap();
                assert_eq!(decoder(&next), format!("nvdec:{}", form.codec), "{what}");
                assert_eq!(software.frames, next.frames, "{what}");
            }
        }
    }
    assert_eq!(fake.counts().mapped, 0);
}

#[test]
fn a_picture_that_is_lost_is_noticed() {
    if !inside("a_picture_that_is_lost_is_noticed", &[]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = make(folder.path(), &Clip::wandering(MPEG4_AVI)).path;
    let nvdec = nvdec(1);
    for sampling in SAMPLINGS {
        let software = decode_by(settings(Backend::Libav, sampling), &path);
        let run = || decode_by(on(&nvdec, sampling), &path);
        Fake::get().lose_picture.store(3, Ordering::SeqCst);
        let lost = run();
        assert!(decoder(&lost).starts_with("libav:"), "{sampling:?}: {}", decoder(&lost));
        check_same(&software, &lost, "with one lost");
        check_same(&software, &run(), "the next");
    }
}

/// A long group is proved whole, or left to the software decoder.
#[test]
fn a_picture_that_is_lost_in_a_long_group_is_noticed() {
    if !inside("a_picture_that_is_lost_in_a_long_group_is_noticed", &[]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let clip = Clip::wandering(MPEG4_AVI);
    let make = |name: &str, clip: &Clip| {
        let mut coded = encode(
            &clip.caps(),
            "avenc_mpeg4 gop-size=50 sc-threshold=1000000000 bitrate=4000000",
            clip.pictures(),
        );
        coded.pace(FRAME_NS, mpeg4_is_b);
        let path = folder.path().join(name);
        coded.mux("avimux", &path);
        path
    };
    let nvdec = nvdec(1);
    let path = make("long.avi", &clip);
    let software = decode_by(settings(Backend::Libav, Sampling::All), &path);
    let run = || decode_by(on(&nvdec, Sampling::All), &path);
    Fake::get().lose_picture.store(3, Ordering::SeqCst);
    let lost = run();
    assert!(decoder(&lost).starts_with("libav:"), "{}", decoder(&lost));
    check_same(&software, &lost, "with one lost");
    let whole = run();
    assert_eq!(decoder(&whole), "nvdec:mpeg4");
    check_same(&software, &whole, "the next");
    // More than may be held.
    let path = make("large.avi", &Clip { width: 1280, height: 720, ..clip });
    let device = decode_by(on(&nvdec, Sampling::All), &path);
    assert!(decoder(&device).starts_with("libav:"), "{}", decoder(&device));
    assert_eq!(decoder(&decode_by(on(&nvdec, Sampling::EveryMs(300)), &path)), "nvdec:mpeg4");
}

#[test]
fn workers_without_a_router_wait_for_sessions() {
    if !inside("workers_without_a_router_wait_for_sessions", &[]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = make(folder.path(), &Clip::wandering(MPEG4_AVI)).path;
    let nvdec = nvdec(1);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut stage = Decode::open(on(&nvdec, Sampling::All)).unwrap();
                for _ in 0..8 {
                    assert_eq!(decoder(&decode(&mut stage, &path).unwrap()), "nvdec:mpeg4");
                }
            });
        }
    });
    let counts = Fake::get().counts();
    assert_eq!(counts.created, 1, "one session");
}

#[test]
fn a_session_that_hangs_is_replaced() {
    if !inside("a_session_that_hangs_is_replaced", &[]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = make(folder.path(), &Clip::wandering(MPEG4_AVI)).path;
    let nvdec = nvdec(1);
    let stall = Duration::from_secs(1);
    let mut stage = Decode::open(Settings { stall, ..on(&nvdec, Sampling::All) }).unwrap();
    Fake::get().hang_one.store(5, Ordering::SeqCst);
    let hung = decode(&mut stage, &path).unwrap_err();
    assert!(hung.starts_with("timed out"), "{hung}");
    for _ in 0..3 {
        assert_eq!(decoder(&decode(&mut stage, &path).unwrap()), "nvdec:mpeg4");
    }
    drop((stage, nvdec));
    // It goes on, when nobody but it holds the device.
    Fake::get().hang_one.store(0, Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(300));
}

#[test]
fn where_damage_rejects_a_clip_the_device_is_not_used() {
    if !inside("where_damage_rejects_a_clip_the_device_is_not_used", &[]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = make(folder.path(), &Clip::wandering(MPEG4_AVI)).path;
    let decoded = decode_by(Settings { keep_damaged: false, ..on(&nvdec(1), Sampling::All) }, &path);
    assert_eq!(decoder(&decoded), "libav:mpeg4");
}

#[test]
fn a_session_that_hangs_costs_its_clip_only() {
    if !inside("a_session_that_hangs_costs_its_clip_only", &[]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = make(folder.path(), &Clip::wandering(MPEG4_AVI)).path;
    let fake = Fake::get();
    let nvdec = nvdec(4).routed(Router::new(1, 1));
    let stall = Duration::from_secs(1);
    let mut stage = Decode::open(Settings { stall, ..on(&nvdec, Sampling::All) }).unwrap();
    // Until the router has seen enough of both to send a clip to the device.
    fake.hang_decode.store(5, Ordering::SeqCst);
    let hung = (0..20).find_map(|_| decode(&mut stage, &path).err()).unwrap();
    assert!(hung.starts_with("timed out"), "{hung}");
    let software = decode_by(settings(Backend::Libav, Sampling::All), &path);
    // It hangs still, and its place is not taken for ever: the CPU's are there.
    fake.hang_decode.store(0, Ordering::SeqCst);
    for _ in 0..5 {
        check_same(&software, &decode(&mut stage, &path).unwrap(), "after a hang");
    }
}

#[test]
fn what_the_device_does_not_take_is_decoded_in_software() {
    if !inside("what_the_device_does_not_take_is_decoded_in_software", &[]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let nvdec = nvdec(4);
    let check = |name: &str, path: &Path| {
        let software = decode_by(settings(Backend::Libav, Sampling::All), path);
        let device = decode_by(on(&nvdec, Sampling::All), path);
        assert!(decoder(&device).starts_with("libav:"), "{name}: {}", decoder(&device));
        check_same(&software, &device, name);
    };
    let coded = |name: &str, caps: &str, encoder: &str, muxer: &str, clip: &Clip| {
        let path = folder.path().join(name);
        encode(caps, encoder, clip.pictures()).mux(muxer, &path);
        path
    };
    let clip = Clip::wandering(H264_MP4);
    let x264 = "x264enc key-int-max=10 bframes=0 ! h264parse";
    let deep = format!("videoconvert ! video/x-raw,format=I420_10LE ! {x264}");
    check("10 bits", &coded("deep.mp4", &clip.caps(), &deep, "mp4mux", &clip));
    let full = format!("videoconvert ! video/x-raw,format=Y444 ! {x264}");
    check("4:4:4", &coded("full.mp4", &clip.caps(), &full, "mp4mux", &clip));
    // GStreamer 1.22 knows how large the shown part is, and not where it lies.
    let cut = "x264enc key-int-max=10 bframes=0 option-string=\"crop-rect=0,8,0,0\" ! h264parse";
    check("cut above", &coded("cut.mp4", &clip.caps(), cut, "mp4mux", &clip));
    // Smaller than the device takes.
    let small = Clip { width: 40, height: 32, ..Clip::wandering(H264_MP4) };
    check("small", &make(folder.path(), &small).path);
    // JPEG as such, whose full range the fake knows as little as its samples.
    let made = make(folder.path(), &Clip::wandering(MJPEG_AVI));
    let device = decode_by(on(&nvdec, Sampling::All), &made.path);
    let software = decode_by(settings(Backend::Libav, Sampling::All), &made.path);
    check_same(&software, &device, "jpeg");
    // A decoder for each codec, and none of them used for what fell back.
    assert!(Fake::get().counts().created <= 1);
}

#[test]
fn a_size_that_changes_and_fields_are_as_in_software() {
    if !inside("a_size_that_changes_and_fields_are_as_in_software", &[]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let nvdec = nvdec(4);
    let part = |name: &str, width, height| {
        let clip = Clip { width, height, ..Clip::wandering(H264_TS) };
        make(&folder.path().join(name), &clip).path
    };
    let parts = [part("a", 96, 64), part("b", 128, 96)].map(|path| std::fs::read(path).unwrap());
    let grown = folder.path().join("grown.ts");
    std::fs::write(&grown, parts.concat()).unwrap();
    let mut coded = mpeg2(3);
    coded.packets.iter_mut().for_each(|packet| interlace(&mut packet.bytes));
    let fields = folder.path().join("fields.ts");
    coded.mux("mpegtsmux", &fields);
    for (path, on_device) in [(&grown, "libav:"), (&fields, "nvdec:")] {
        for sampling in SAMPLINGS {
            let software = decode_by(settings(Backend::Libav, sampling), path);
            let device = decode_by(on(&nvdec, sampling), path);
            let what = format!("{} {sampling:?}", path.display());
            assert_eq!(software.frames, device.frames, "{what}");
            if on_device == "nvdec:" {
                check_same(&software, &device, &what);
                let reading = Reading { one_field: false, unspecified: Matrix::Bt601 };
                let both = decode_by(Settings { reading, ..settings(Backend::Libav, sampling) }, path);
                assert!(both.tensors != software.tensors, "{what}: it has fields");
            } else if sampling == Sampling::All {
                assert!(decoder(&device).starts_with(on_device), "{what}: {}", decoder(&device));
            }
        }
    }
}

/// From the decoder's surface to the tensor, nothing leaves the device.
#[test]
fn surfaces_are_read_where_they_lie() {
    if !inside("surfaces_are_read_where_they_lie", &[]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let nvdec = nvdec(4);
    let path = make(folder.path(), &Clip::wandering(MPEG4_AVI)).path;
    let wanted =
        Wanted { recipe: &RECIPE, float: Float::Single, batch: 4, decoders: 8, encoders: 1, bytes: 1 << 20 };
    let lane = Lane::open(0, &Home::at(folder.path().to_owned()), &wanted).unwrap();
    let software = decode_by(settings(Backend::Libav, Sampling::All), &path);
    let device = decode_by(Settings { lane: Some(lane), ..on(&nvdec, Sampling::All) }, &path);
    assert_eq!((software.frames, decoder(&device)), (device.frames.clone(), "nvdec:mpeg4"));
    let differences =
        software.tensors.iter().flatten().zip(device.tensors.iter().flatten()).map(|(a, b)| (a - b).abs());
    let most = differences.fold(0.0, f32::max);
    println!("the device's tensors differ by {most} at most");
    assert!(most < 0.01, "{most}");
}

#[test]
fn damage_is_told_as_without_a_device() {
    if !inside("damage_is_told_as_without_a_device", &[]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let nvdec = nvdec(4);
    let mut stage = Decode::open(on(&nvdec, Sampling::All)).unwrap();
    let mut software = Decode::open(settings(Backend::Libav, Sampling::All)).unwrap();
    for form in [MPEG4_B_AVI, H264_MP4] {
        let good = make(folder.path(), &Clip::wandering(form)).path;
        let bytes = std::fs::read(&good).unwrap();
        let third = bytes.len() / 3;
        let noise: Vec<u8> = (0..200u32).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 13) as u8).collect();
        let mut hit = bytes.clone();
        hit[third..third + noise.len()].copy_from_slice(&noise);
        for (name, bytes) in [("cut", bytes[..2 * third].to_vec()), ("hit", hit)] {
            let path = folder.path().join(format!("{name}.{}", form.extension));
            std::fs::write(&path, bytes).unwrap();
            let (by_software, by_device) = (decode(&mut software, &path), decode(&mut stage, &path));
            let what = format!("{} {name}", form.name);
            match (by_software, by_device) {
                // The device decodes damage to what it likes; it may not be another number of frames.
                (Ok(software), Ok(device)) => assert_eq!(software.frames, device.frames, "{what}"),
                (Err(software), Err(device)) => assert_eq!(software, device, "{what}"),
                (software, device) => panic!("{what}: {:?} and {:?}", software.err(), device.err()),
            }
            let whole = decode(&mut software, &good).unwrap();
            assert_eq!(whole.frames, decode(&mut stage, &good).unwrap().frames, "after {what}");
        }
    }
}

#[test]
fn real_clips_are_the_same() {
    if !inside("real_clips_are_the_same", &[]) {
        return;
    }
    let videos = support::root().join("../shared/videos");
    if !videos.is_dir() {
        return support::skip("there are no real clips", "REQUIRE_VIDEOS");
    }
    let nvdec = nvdec(4);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&videos).unwrap().flatten().filter(|e| e.path().is_dir()) {
        files.extend(std::fs::read_dir(entry.path()).unwrap().flatten().map(|e| e.path()));
    }
    files.retain(|f| f.extension().is_some_and(|e| ["avi", "mpg", "mpeg", "ts"].iter().any(|x| e == *x)));
    files.sort();
    let mut n_on_device = 0;
    for file in &files {
        let run = |settings| decode(&mut Decode::open(settings).unwrap(), file);
        let software = run(settings(Backend::Libav, Sampling::EveryMs(500)));
        let device = run(on(&nvdec, Sampling::EveryMs(500)));
        match (software, device) {
            (Ok(software), Ok(device)) => {
                n_on_device += u32::from(decoder(&device).starts_with("nvdec:"));
                if decoder(&device) != "nvdec:h264" && decoder(&device) != "nvdec:hevc" {
                    check_same(&software, &device, &file.display().to_string());
                }
            }
            (Err(software), Err(device)) => assert_eq!(software, device, "{}", file.display()),
            (software, device) => panic!("{}: {:?}, {:?}", file.display(), software.err(), device.err()),
        }
    }
    println!("{n_on_device} of {} files on the device", files.len());
    assert!(n_on_device > 0 || files.is_empty());
}
