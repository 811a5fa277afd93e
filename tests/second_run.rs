//! What a second run makes of what it finds.

use std::fs;

use support::{
    clips::{Clip, H264_MP4, MPEG4_AVI, make_at},
    run::Site,
};

#[test]
fn a_reject_is_tried_again_when_its_file_changed() {
    let site = Site::new();
    make_at(&site.path("clips/good.avi"), &Clip::counting(MPEG4_AVI));
    fs::write(site.path("clips/later.mp4"), "not yet a video").unwrap();
    site.run(&[]).expect(3).says(&["1 of 2 clips indexed", "1 rejected"]);
    // The same file is the same reject, and is told as an old one.
    site.run(&[]).expect(3).says(&["1 rejected", "1 by an earlier run, not tried again"]);
    assert_eq!(site.table("rejects").len(), 1);
    make_at(&site.path("clips/later.mp4"), &Clip::counting(H264_MP4));
    site.run(&[]).expect(0).says(&["2 of 2 clips indexed (1 unchanged from an earlier run)"]);
    assert_eq!(site.table("clips").len(), 2);
    // An empty table is still a table.
    assert_eq!(site.record()["outcome"]["counts"]["rejected"], 0);
}

#[test]
fn a_clip_that_could_not_be_read_is_tried_again() {
    let site = Site::new();
    make_at(&site.path("good.avi"), &Clip::counting(MPEG4_AVI));
    fs::write(site.path("list.txt"), "good.avi\naway.avi\n").unwrap();
    let settings = [("input.clips", format!("{:?}", site.path("list.txt")))];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(k, v)| (*k, v.as_str())).collect();
    site.run(&settings).expect(3).says(&["unreadable: No such file"]);
    site.run(&settings).expect(3).says(&["unreadable: No such file"]);
    assert_eq!(site.table("rejects").len(), 1);
    fs::rename(site.path("good.avi"), site.path("away.avi")).unwrap();
    let last = site.run(&settings).expect(0);
    assert!(last.last_line().contains("1 changed or gone since they were indexed"), "{}", last.last_line());
    assert_eq!(site.table("clips").len(), 2);
}

#[test]
fn shards_without_their_ledger_are_not_touched() {
    let site = Site::new();
    make_at(&site.path("clips/a.avi"), &Clip::counting(MPEG4_AVI));
    site.run(&[]).expect(0);
    fs::remove_file(site.path("out/ledger")).unwrap();
    site.run(&[]).expect(2).says(&["ledger is missing, but there is", "shard-00000.parquet"]);
    assert_eq!(site.table("clips").len(), 1);
}

#[test]
fn keyframes_alone_leave_a_clip_whole() {
    let site = Site::new();
    let clip = Clip { n_frames: 58, ..Clip::counting(H264_MP4) };
    make_at(&site.path("clips/a.mp4"), &clip);
    let outcome = site.run(&[("sample.keyframes", "true"), ("decode.damaged", "\"reject\"")]).expect(0);
    assert!(!outcome.stderr.contains("CRITICAL"), "{}", outcome.stderr);
    let clips = site.table("clips");
    assert_eq!(clips.words("status"), ["ok"]);
    // The last keyframe is eight frames before the end.
    let lasts = 58 * 1_000_000_000 / clip.fps as i64;
    let off = clips.numbers("duration_ns")[0] - lasts;
    assert!(off.abs() < 1_000_000, "{off}");
}
