//! Clips in, rows out: what a run writes, that it goes on where it was, and what its options do.

use std::fs;

use arrow::datatypes::DataType;
use support::{
    clips::{
        self, Clip, FORMS, H264_MP4, MJPEG_AVI, MPEG4_AVI, Made, RED, Show, VP8_WEBM, YUY2_AVI, make, make_at,
    },
    onnx::{DIM, Seen},
    run::{Site, Table, vector_type},
};

/// A clip of every form in `clips/`, half of them in each of two folders.
fn folder_of_all(site: &Site) -> Vec<Made> {
    let place = |n: usize| site.path(if n.is_multiple_of(2) { "clips/even" } else { "clips/odd" });
    FORMS.iter().enumerate().map(|(n, form)| make(&place(n), &Clip::counting(*form))).collect()
}

fn columns(table: &Table) -> Vec<(String, DataType, bool)> {
    let fields = table.schema().fields().iter();
    fields.map(|f| (f.name().clone(), f.data_type().clone(), f.is_nullable())).collect()
}

fn wanted_columns(names: &[(&str, DataType)], with_gaps: &[&str]) -> Vec<(String, DataType, bool)> {
    names.iter().map(|(name, kind)| ((*name).to_owned(), kind.clone(), with_gaps.contains(name))).collect()
}

fn length(vector: &[f32]) -> f32 {
    vector.iter().map(|v| v * v).sum::<f32>().sqrt()
}

#[test]
fn a_folder_becomes_the_tables_that_the_schema_names() {
    use DataType::{Boolean, Float64, Int64, UInt32, UInt64, Utf8};
    let site = Site::new();
    let made = folder_of_all(&site);
    let done = site.run(&[("input.label", "\"parent\""), ("sample.every_ms", "500")]).expect(0);
    assert!(
        done.last_line().starts_with("finished: 10 of 10 clips indexed; 40 frames in "),
        "{}",
        done.last_line()
    );

    let (frames, clips, rejects) = (site.table("frames"), site.table("clips"), site.table("rejects"));
    let own = [("clip_id", UInt64), ("path", Utf8), ("label", Utf8)];
    let of_frames = [
        ("frame_index", UInt32),
        ("pts_ns", Int64),
        ("is_keyframe", Boolean),
        ("embedding", vector_type(DIM)),
    ];
    assert_eq!(columns(&frames), wanted_columns(&[&own[..], &of_frames].concat(), &["label"]));
    let of_clips = [
        ("content_hash", Utf8),
        ("codec", Utf8),
        ("container", Utf8),
        ("width", UInt32),
        ("height", UInt32),
        ("fps", Float64),
        ("duration_ns", Int64),
        ("n_frames", UInt32),
        ("n_sampled", UInt32),
        ("decoder", Utf8),
        ("status", Utf8),
        ("detail", Utf8),
        ("embedding", vector_type(DIM)),
        ("model", Utf8),
        ("model_hash", Utf8),
        ("preprocess_hash", Utf8),
    ];
    assert_eq!(columns(&clips), wanted_columns(&[&own[..], &of_clips].concat(), &["label", "detail"]));
    let of_rejects = [("stage", Utf8), ("reason", Utf8), ("detail", Utf8)];
    assert_eq!(columns(&rejects), wanted_columns(&[&own[..], &of_rejects].concat(), &["label"]));
    for table in [&frames, &clips, &rejects] {
        assert_eq!(table.schema().metadata().get("clipmill.schema_version").map(String::as_str), Some("1"));
    }

    assert!(rejects.is_empty());
    assert_eq!((clips.len(), frames.len()), (10, 40));
    assert_eq!(site.record()["status"], "finished");
    assert_eq!(clips.words("model"), vec!["tiny"; 10]);
    assert_eq!(clips.words("model_hash"), vec![site.record()["model_hash"].as_str().unwrap(); 10]);
    assert_eq!(clips.words("status"), vec!["ok"; 10]);
    for (made, form) in made.iter().zip(FORMS) {
        let name = made.path.file_name().unwrap().to_str().unwrap();
        let (clip, rows) = (clips.of(name), frames.of(name));
        assert_eq!(clip.words("path"), [made.path.to_str().unwrap()]);
        assert_eq!(clip.words("codec"), [form.codec], "{name}");
        assert_eq!(clip.words("container"), [form.container], "{name}");
        assert_eq!([clip.numbers("width"), clip.numbers("height")].concat(), [96, 64], "{name}");
        assert_eq!([clip.numbers("n_frames"), clip.numbers("n_sampled")].concat(), [50, 4], "{name}");
        let [fps, seconds] = [clip.floats("fps")[0], clip.numbers("duration_ns")[0] as f64 / 1e9];
        assert!((fps - 25.0).abs() < 0.01, "{name}: {fps} fps");
        assert!((seconds - 2.0).abs() < 0.005, "{name}: {seconds} s");
        assert!(clip.words("decoder")[0].starts_with("libav:"), "{name}");
        let hash = blake3::hash(&fs::read(&made.path).unwrap()).to_hex().to_string();
        assert_eq!(clip.words("content_hash"), [hash], "{name}");
        let folder = made.path.parent().unwrap().file_name().unwrap().to_str().unwrap();
        assert_eq!(clip.words("label"), [folder]);
        assert_eq!(rows.words("label"), vec![folder; 4]);
        assert_eq!(rows.numbers("clip_id"), vec![clip.numbers("clip_id")[0]; 4]);
        check_vectors(name, &clip.vectors("embedding")[0], &rows.vectors("embedding"));
    }
}

/// Frames' vectors have unit length; the clip's is their mean, brought to unit length.
fn check_vectors(name: &str, clip: &[f32], frames: &[Vec<f32>]) {
    // Half floats have 11 bits.
    const NEAR: f32 = 1.5e-3;
    for vector in frames.iter().map(Vec::as_slice).chain([clip]) {
        assert!((length(vector) - 1.0).abs() < NEAR, "{name}: length {}", length(vector));
    }
    let mut mean = vec![0.0; clip.len()];
    frames.iter().for_each(|f| mean.iter_mut().zip(f).for_each(|(m, v)| *m += v));
    let norm = length(&mean);
    for (found, m) in clip.iter().zip(&mean) {
        assert!((found - m / norm).abs() < NEAR, "{name}: {clip:?} is not the mean of {frames:?}");
    }
}

#[test]
fn columns_of_a_manifest_are_carried() {
    let site = Site::new();
    for form in [MPEG4_AVI, H264_MP4, VP8_WEBM] {
        make(&site.path("clips"), &Clip::counting(form));
    }
    let rows = "camera,path,verb,take\nfront,clips/vp8.webm,run,1\n,clips/h264.mp4,\"sit, then stand\",\nback,clips/mpeg4.avi,run,3\n";
    fs::write(site.path("list.csv"), rows).unwrap();
    let list = format!("{:?}", site.path("list.csv"));
    site.run(&[("input.clips", &list), ("input.label", "\"verb\"")]).expect(0);
    let clips = site.table("clips").sorted();
    assert_eq!(clips.names(), ["vp8.webm", "h264.mp4", "mpeg4.avi"]);
    assert_eq!(clips.words("label"), ["run", "sit, then stand", "run"]);
    let texts = |name: &str| clips.texts(name).into_iter().map(Option::unwrap_or_default).collect::<Vec<_>>();
    assert_eq!(texts("camera"), ["front", "", "back"]);
    assert_eq!(texts("take"), ["1", "", "3"]);
    assert_eq!(clips.texts("camera")[1], None);
    assert!(clips.schema().field_with_name("verb").is_err(), "the label is not carried twice");
}

#[test]
fn workers_and_batches_change_no_bit() {
    let site = Site::new();
    folder_of_all(&site);
    let run = |batch, workers, out: &str| {
        let out_dir = format!("{:?}", site.path(out));
        let settings = [
            ("sample.every_ms", "130"),
            ("encode.batch", batch),
            ("encode.workers", workers),
            ("decode.workers", workers),
            ("load.workers", workers),
            ("output.dir", &out_dir),
        ];
        site.run(&settings).expect(0);
        ["frames", "clips"].map(|name| Table::read(&site.path(out), name).sorted())
    };
    let one = run("1", "1", "one");
    assert_eq!(one[0].len(), 160);
    assert_eq!(one, run("7", "3", "many"));
    assert_eq!(one, run("64", "2", "large"));
}

#[test]
fn a_finished_run_has_nothing_to_do() {
    let site = Site::new();
    folder_of_all(&site);
    site.run(&[]).expect(0);
    let before = site.files();
    let again = site.run(&[]).expect(0);
    assert!(
        again.last_line().contains("10 of 10 clips indexed (10 unchanged from an earlier run); 0 frames"),
        "{}",
        again.last_line()
    );
    let counts = &site.record()["outcome"]["counts"];
    assert_eq!(
        (&counts["indexed"], &counts["indexed_before"], &counts["frames"]),
        (&10.into(), &10.into(), &0.into())
    );
    assert_eq!(before, site.files());
}

#[test]
fn a_run_goes_on_with_clips_that_were_added() {
    let site = Site::new();
    make(&site.path("clips"), &Clip::counting(MPEG4_AVI));
    make(&site.path("clips"), &Clip::counting(VP8_WEBM));
    site.run(&[]).expect(0);
    let before = site.table("frames");
    // Before, between and after those that are there.
    for name in ["clips/a.mp4", "clips/n.mp4", "clips/z.mp4"] {
        make_at(&site.path(name), &Clip::counting(H264_MP4));
    }
    site.run(&[]).expect(0).says(&["holds 2 clips already; going on", "5 of 5 clips indexed (2 unchanged"]);
    let (clips, frames) = (site.table("clips"), site.table("frames"));
    let mut ids = clips.numbers("clip_id");
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2, 3, 4]);
    let mut names = clips.names();
    names.sort();
    assert_eq!(names, ["a.mp4", "mpeg4.avi", "n.mp4", "vp8.webm", "z.mp4"]);
    assert_eq!(frames.len(), 20);
    assert_eq!(frames.only(|row| row < before.len()), before);
}

#[test]
fn a_run_with_other_settings_is_refused() {
    let site = Site::new();
    make(&site.path("clips"), &Clip::counting(MPEG4_AVI));
    site.run(&[("sample.every_ms", "500")]).expect(0);
    let before = site.files();
    site.run(&[("sample.every_ms", "250")]).expect(2).says(&["sample.every_ms: there 500, here 250"]);
    site.run(&[("sample.all", "true")])
        .expect(2)
        .says(&["sample.all: there not set, here true", "sample.every_ms: there 500"]);
    site.run(&[("sample.every_ms", "500"), ("decode.matrix", "\"bt709\"")])
        .expect(2)
        .says(&["decode.matrix: there \"bt601\", here \"bt709\"", "preprocessing hash: there"]);
    assert_eq!(before, site.files());
    // How fast it goes is no matter of the rows.
    site.run(&[("sample.every_ms", "500"), ("encode.batch", "3"), ("decode.workers", "1")]).expect(0);
    // Other weights of the same name are.
    fs::write(site.path("model/image.onnx"), "other weights").unwrap();
    site.run(&[("sample.every_ms", "500")]).expect(2).says(&["model hash: there"]);
}

#[test]
fn limit_set_and_quiet_do_what_they_say() {
    let site = Site::new();
    folder_of_all(&site);
    let some = site.run_with(&[], &["--limit", "3", "--quiet", "--set", "sample.count=2"]).expect(0);
    assert_eq!(some.stderr.lines().count(), 1, "{}", some.stderr);
    assert!(some.last_line().starts_with("finished: 3 of 3 clips indexed; 6 frames"), "{}", some.last_line());
    assert_eq!(some.stdout, "");
    let clips = site.table("clips");
    assert_eq!(clips.numbers("n_sampled"), [2, 2, 2]);
    assert_eq!(site.record()["limit"], 3);
    site.run_with(&[], &["--limit", "5", "--set", "sample.count=2"])
        .expect(0)
        .says(&["5 of 5 clips", "3 unchanged"]);
    site.run_with(&[], &["--set", "sample.count=2"]).expect(0).says(&["10 of 10 clips indexed (5 unchanged"]);
    assert_eq!(site.table("clips").len(), 10);
    site.run_with(&[], &["--limit", "0"]).expect(2);
    site.run_with(&[], &["--set", "sample.cuont=2"]).expect(2).says(&["sample.cuont", "sample.count"]);
}

#[test]
fn pictures_are_turned_as_players_turn_them() {
    let site = Site::new();
    // White is above in the file. A quarter clockwise brings it to the right.
    let turns = [(1.0, 0.0), (0.0, -1.0), (-1.0, 0.0), (0.0, 1.0)];
    for turn in 0..4 {
        let clip = Clip { show: Show::WhiteAbove, height: 96, turn, ..Clip::counting(H264_MP4) };
        make_at(&site.path(&format!("clips/{turn}.mp4")), &clip);
    }
    site.run(&[]).expect(0);
    let frames = site.table("frames");
    for (turn, (above, left)) in turns.iter().enumerate() {
        for vector in frames.of(&format!("{turn}.mp4")).vectors("embedding") {
            let seen = Seen::of(&vector);
            // Half of the picture is white: its mean is 1/2.
            assert!((seen.above * 2.0 - above).abs() < 0.1, "{turn}: {seen:?}");
            assert!((seen.left * 2.0 - left).abs() < 0.1, "{turn}: {seen:?}");
        }
    }
}

#[test]
fn other_sizes_and_speeds_come_through() {
    let site = Site::new();
    let sizes = [(16, 16, 1), (176, 144, 30), (640, 32, 60), (32, 480, 10)];
    for (width, height, fps) in sizes {
        let clip = Clip { width, height, fps, show: Show::Colour(clips::GREEN), ..Clip::counting(MJPEG_AVI) };
        make_at(&site.path(&format!("clips/{width}x{height}.avi")), &Clip { n_frames: 10, ..clip });
    }
    site.run(&[("sample.all", "true")]).expect(0);
    let clips = site.table("clips");
    for (width, height, fps) in sizes {
        let clip = clips.of(&format!("{width}x{height}.avi"));
        assert_eq!([clip.numbers("width")[0], clip.numbers("height")[0]], [width as i64, height as i64]);
        assert_eq!((clip.floats("fps")[0], clip.numbers("n_sampled")[0]), (fps as f64, 10));
    }
}

#[test]
fn a_format_that_the_kernels_do_not_read_is_converted() {
    let site = Site::new();
    let made = make_at(&site.path("clips/yuy2.avi"), &Clip::coloured(YUY2_AVI, RED));
    let other = make_at(&site.path("clips/mpeg4.avi"), &Clip::coloured(MPEG4_AVI, RED));
    site.run(&[("sample.count", "1")]).expect(0);
    let clips = site.table("clips");
    assert_eq!(clips.len(), 2, "{made:?} {other:?}");
    assert_eq!(clips.numbers("n_sampled"), [1, 1]);
    // The same colour gives the same vector, whichever way it came.
    let vectors = clips.vectors("embedding");
    let cosine: f32 = vectors[0].iter().zip(&vectors[1]).map(|(a, b)| a * b).sum();
    assert!(cosine > 0.999, "{cosine}");
}
