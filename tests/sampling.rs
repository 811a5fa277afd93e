//! Every rule chooses exactly the frames that it names, in every form of file: the pictures
//! themselves say which frame they are.

use std::collections::BTreeMap;

use support::{
    clips::{Clip, FORMS, Made, make},
    onnx::Seen,
    run::{Site, Table},
};

/// Frames of `made` shown at these times: of each time the last frame that is not later.
fn shown_at(made: &Made, times: impl Iterator<Item = f64>) -> Vec<i64> {
    let end = made.pts_ns.last().unwrap() + made.pts_ns[1];
    let times = times.take_while(|t| *t < end as f64);
    let mut frames: Vec<i64> =
        times.map(|t| made.pts_ns.iter().rposition(|p| *p as f64 <= t).unwrap() as i64).collect();
    frames.dedup();
    frames
}

/// How frames can be decoded; the rules choose the same by all of them.
const WAYS: &[(&str, &[(&str, &str)])] = &[
    ("libav", &[("decode.backend", "\"libav\"")]),
    ("libav-whole", &[("decode.backend", "\"libav\""), ("decode.plan", "false")]),
    ("gstreamer", &[("decode.backend", "\"gstreamer\"")]),
];

/// Runs with one rule in every way, and compares every clip's rows with what `expected` says of it.
#[track_caller]
fn check(rule: (&str, &str), expected: impl Fn(&Made) -> Vec<i64>) {
    let site = Site::new();
    let clips: Vec<Made> =
        FORMS.iter().map(|form| make(&site.path("clips"), &Clip::counting(*form))).collect();
    let mut wrong = Vec::new();
    for (way, settings) in WAYS {
        let out = site.path(way);
        let quoted = format!("{out:?}");
        site.run(&[settings, &[rule, ("output.dir", &quoted)][..]].concat()).expect(0);
        let frames = Table::read(&out, "frames");
        for (made, form) in clips.iter().zip(FORMS) {
            let name = made.path.file_name().unwrap().to_str().unwrap();
            let found = differences(&frames.of(name), made, &expected(made), form.codec == "mjpeg");
            wrong.extend(found.into_iter().map(|what| format!("{way}: {name}: {what}")));
        }
    }
    assert!(wrong.is_empty(), "{rule:?}:\n{}", wrong.join("\n"));
}

/// What is wrong with a clip's rows, alike faults in one line.
fn differences(rows: &Table, made: &Made, wanted: &[i64], is_full_range: bool) -> Vec<String> {
    let mut wrong: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    let chosen = rows.numbers("frame_index");
    let times = rows.numbers("pts_ns");
    let keys = rows.flags("is_keyframe");
    let first = times[0] - made.pts_ns[chosen[0] as usize];
    for (row, vector) in rows.vectors("embedding").iter().enumerate() {
        let index = chosen[row];
        let mut note = |what: String| wrong.entry(what).or_default().push(index);
        let (pictured, off) = Seen::of(vector).frame(is_full_range);
        if i64::from(pictured) != index || off > 0.4 {
            note(format!("the picture is that of a frame {} later, ±{off:.1}", i64::from(pictured) - index));
        }
        // Containers count in milliseconds, or finer. A transport stream's clock starts before its
        // pictures do, and AVI's counts packets, of which the first pictures wait for some.
        let is_loose = ["h264.ts", "mpeg4-b.avi"].iter().any(|name| made.path.ends_with(name));
        let start = if is_loose { first } else { 0 };
        let late_us = made.pts_ns.get(index as usize).map(|p| (times[row] - start - p) / 1000);
        if late_us.is_none_or(|us| us.abs() > 1000) {
            note(format!("{late_us:?} µs late"));
        }
        if keys[row] != made.keyframes.contains(&(index as u32)) {
            note(format!("is_keyframe is {}", keys[row]));
        }
    }
    let mut wrong: Vec<String> = wrong.iter().map(|(what, frames)| format!("{what}: {frames:?}")).collect();
    if chosen != wanted {
        wrong.push(format!("chose {chosen:?}, not {wanted:?}"));
    }
    wrong
}

#[test]
fn all_takes_every_frame() {
    check(("sample.all", "true"), |made| (0..made.pts_ns.len() as i64).collect());
}

#[test]
fn every_ms_takes_the_frame_shown_at_each_time() {
    // 520 ms is a frame's own time: that frame is shown then, not the one before.
    check(("sample.every_ms", "130"), |made| shown_at(made, (0..).map(|n| f64::from(n) * 130e6)));
}

#[test]
fn fps_takes_the_frame_shown_at_each_time() {
    check(("sample.fps", "7.3"), |made| shown_at(made, (0..).map(|n| f64::from(n) * 1e9 / 7.3)));
}

#[test]
fn more_than_there_are_takes_each_once() {
    check(("sample.fps", "60"), |made| (0..made.pts_ns.len() as i64).collect());
}

#[test]
fn count_takes_the_middles_of_equal_parts() {
    check(("sample.count", "8"), |made| {
        let length = (made.pts_ns.len() as i64 * made.pts_ns[1]) as f64;
        shown_at(made, (0..8).map(|n| length * f64::from(2 * n + 1) / 16.0))
    });
}

#[test]
fn keyframes_takes_those_that_the_encoder_made() {
    check(("sample.keyframes", "true"), |made| {
        let keys: Vec<i64> = made.keyframes.iter().map(|k| i64::from(*k)).collect();
        assert!(keys.len() >= 5, "the encoder made {keys:?}");
        keys
    });
}
