//! Bad input costs its own clip and nothing else: every clip ends once, and all that counts them
//! agrees.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::Command,
};

use support::{
    clips::{Clip, H264_FAST_MP4, H264_MP4, MPEG4_AVI, make_at, make_sound},
    run::{Outcome, Site},
};

/// How a clip ends, as the tables have it.
#[derive(Clone, Debug, PartialEq)]
enum End {
    /// With rows, and this status.
    Rows(&'static str),
    /// As a reject: stage, and one of these reasons.
    Reject(&'static str, &'static [&'static str]),
}

use End::{Reject, Rows};

const OK: End = Rows("ok");
const DAMAGED: End = Rows("damaged");
const WITHOUT_INDEX: End = Reject("decode", &["corrupt", "empty"]);
const UNREADABLE: End = Reject("load", &["unreadable"]);

/// Checks that each of the inputs, by the ends of their paths, ends once and so; and that last line,
/// run.json and tables agree on the numbers.
#[track_caller]
fn check_ends(site: &Site, done: &Outcome, wanted: &BTreeMap<String, End>) {
    let (clips, rejects, frames) = (site.table("clips"), site.table("rejects"), site.table("frames"));
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, status) in clips.names().into_iter().zip(clips.words("status")) {
        found.entry(name).or_default().push(status);
    }
    for (row, name) in rejects.names().into_iter().enumerate() {
        let [stage, reason] = ["stage", "reason"].map(|column| rejects.words(column)[row].clone());
        found.entry(name).or_default().push(format!("{stage}: {reason}"));
    }
    let mut wrong = Vec::new();
    for (name, end) in wanted {
        let allowed: Vec<String> = match end {
            Rows(status) => vec![(*status).to_owned()],
            Reject(stage, reasons) => reasons.iter().map(|reason| format!("{stage}: {reason}")).collect(),
        };
        match found.remove(name).as_deref() {
            Some([one]) if allowed.contains(one) => (),
            other => wrong.push(format!("{name}: {other:?}, not {allowed:?}")),
        }
    }
    wrong.extend(found.iter().map(|(name, ends)| format!("{name}: {ends:?}, but it was not in the list")));
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), done.stderr);

    let n = |wanted_end: fn(&End) -> bool| wanted.values().filter(|e| wanted_end(e)).count();
    let (listed, rejected) = (wanted.len(), n(|e| matches!(e, Reject(..))));
    let (indexed, damaged) = (listed - rejected, n(|e| *e == DAMAGED));
    let mut line = format!("finished: {indexed} of {listed} clips indexed");
    if damaged > 0 {
        line += &format!(" ({damaged} damaged, their good part kept)");
    }
    if rejected > 0 {
        line += &format!(", {rejected} rejected ({})", site.path("out/rejects.parquet").display());
    }
    line += &format!("; {} frames in ", frames.len());
    assert!(done.last_line().starts_with(&line), "{:?}, not {line:?}", done.last_line());
    let record = site.record();
    assert_eq!(record["status"], "finished");
    let counts = &record["outcome"]["counts"];
    for (name, number) in [
        ("listed", listed),
        ("indexed", indexed),
        ("rejected", rejected),
        ("damaged", damaged),
        ("frames", frames.len()),
    ] {
        assert_eq!(counts[name], number, "{name} in {counts}");
    }
    let told = |start: &str| done.stderr.lines().filter(|l| l.starts_with(start)).count();
    assert_eq!((told("rejected clip "), told("damaged clip ")), (rejected, damaged), "{}", done.stderr);
    assert_eq!(frames.len() as i64, clips.numbers("n_sampled").iter().sum::<i64>());
}

fn ends(of: &[(&str, End)]) -> BTreeMap<String, End> {
    of.iter().map(|(name, end)| ((*name).to_owned(), end.clone())).collect()
}

/// Copies the first part of a file.
fn cut(from: &Path, to: &Path, share: f64) {
    let bytes = fs::read(from).unwrap();
    fs::write(to, &bytes[..(bytes.len() as f64 * share) as usize]).unwrap();
}

/// Bytes without a pattern, the same every time (xorshift).
fn noise(n: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(n).collect()
}

/// Good clips, and cut ones made of them.
fn make_files(site: &Site) {
    let at = |name: &str| site.path(&format!("clips/{name}"));
    make_at(&at("good.avi"), &Clip::noisy(MPEG4_AVI));
    make_at(&at("late-index.mp4"), &Clip::noisy(H264_MP4));
    make_at(&at("early-index.mp4"), &Clip::noisy(H264_FAST_MP4));
    cut(&at("late-index.mp4"), &at("cut-late-index.mp4"), 0.5);
    cut(&at("early-index.mp4"), &at("cut-early-index.mp4"), 0.5);
    cut(&at("good.avi"), &at("cut.avi"), 0.5);
}

#[test]
fn every_bad_file_of_a_folder_is_one_reject() {
    let site = Site::new();
    let at = |name: &str| site.path(&format!("clips/{name}"));
    make_files(&site);
    fs::write(at("empty.mp4"), "").unwrap();
    fs::write(at("noise.mp4"), noise(60_000)).unwrap();
    fs::write(at("noise.avi"), [b"RIFF\xFF\xFF\0\0AVI LIST".to_vec(), noise(60_000)].concat()).unwrap();
    fs::write(at("text.mp4"), "This is a text about a video.\n".repeat(100)).unwrap();
    fs::write(at("zeros.mkv"), vec![0; 60_000]).unwrap();
    make_sound(&at("sound.mp4"));
    fs::copy(at("late-index.mp4"), at("mp4-named.avi")).unwrap();
    symlink("nowhere.mp4", at("dangling.mp4")).unwrap();
    symlink("good.avi", at("link.avi")).unwrap();
    // No clips: their names are no videos', or they are hidden.
    fs::write(at("notes.md"), "notes").unwrap();
    fs::write(at(".hidden.mp4"), "hidden").unwrap();
    let undecodable: End = Reject("decode", &["corrupt", "unsupported", "empty"]);
    let done = site.run(&[]).expect(3);
    let mut wanted = ends(&[
        ("good.avi", OK),
        ("link.avi", OK),
        ("late-index.mp4", OK),
        ("early-index.mp4", OK),
        ("mp4-named.avi", OK),
        ("cut-late-index.mp4", WITHOUT_INDEX),
        ("cut-early-index.mp4", DAMAGED),
        ("cut.avi", DAMAGED),
        ("empty.mp4", Reject("load", &["empty"])),
        ("sound.mp4", Reject("decode", &["unsupported", "empty"])),
        ("dangling.mp4", UNREADABLE),
    ]);
    for name in ["noise.mp4", "noise.avi", "text.mp4", "zeros.mkv"] {
        wanted.insert(name.into(), undecodable.clone());
    }
    check_ends(&site, &done, &wanted);
    let clips = site.table("clips");
    assert_eq!(clips.of("mp4-named.avi").words("container"), ["mp4"]);
    for name in ["cut-early-index.mp4", "cut.avi"] {
        let clip = clips.of(name);
        assert!(clip.texts("detail")[0].is_some(), "{name}");
        let n = clip.numbers("n_frames")[0];
        assert!((25..60).contains(&n), "half of {name} has {n} of 75 frames");
    }

    // Rejects are not tried again, nor told again.
    let again = site.run(&[]).expect(3);
    assert!(
        again.last_line().contains("7 of 15 clips indexed (7 unchanged from an earlier run), 8 rejected"),
        "{}",
        again.last_line()
    );
    assert_eq!(site.table("rejects").len(), 8);
}

#[test]
fn damaged_clips_can_be_rejected_instead() {
    let site = Site::new();
    make_files(&site);
    let done = site.run(&[("decode.damaged", "\"reject\"")]).expect(3);
    let corrupt = Reject("decode", &["corrupt"]);
    let mut wanted = ends(&[("good.avi", OK), ("late-index.mp4", OK), ("early-index.mp4", OK)]);
    for name in ["cut-early-index.mp4", "cut.avi"] {
        wanted.insert(name.into(), corrupt.clone());
    }
    wanted.insert("cut-late-index.mp4".into(), WITHOUT_INDEX);
    check_ends(&site, &done, &wanted);
}

#[test]
fn every_bad_entry_of_a_manifest_is_one_reject() {
    let site = Site::new();
    make_at(&site.path("clips/good.avi"), &Clip::noisy(MPEG4_AVI));
    fs::create_dir(site.path("clips/folder.mp4")).unwrap();
    let made = Command::new("mkfifo").arg(site.path("clips/pipe.mp4")).status().unwrap();
    assert!(made.success());
    fs::copy(site.path("clips/good.avi"), site.path("clips/locked.avi")).unwrap();
    fs::set_permissions(site.path("clips/locked.avi"), fs::Permissions::from_mode(0o000)).unwrap();
    let locked = match fs::File::open(site.path("clips/locked.avi")) {
        Err(_) => UNREADABLE,
        Ok(_) => {
            support::skip("files of no permissions can be read here: this is root", "CLIPMILL_REQUIRE_USER");
            OK
        }
    };
    let list = "# a comment\nclips/good.avi\nclips/missing.mp4\nclips/folder.mp4\nclips/pipe.mp4\nclips/locked.avi\n\n/dev/null\nclips/no folder/x.mp4\n";
    fs::write(site.path("list.txt"), list).unwrap();
    let done = site.run(&[("input.clips", &format!("{:?}", site.path("list.txt")))]).expect(3);
    let wanted = ends(&[
        ("good.avi", OK),
        ("missing.mp4", UNREADABLE),
        ("folder.mp4", UNREADABLE),
        ("pipe.mp4", UNREADABLE),
        ("locked.avi", locked),
        ("null", UNREADABLE),
        ("x.mp4", UNREADABLE),
    ]);
    check_ends(&site, &done, &wanted);
    let details = site.table("rejects");
    assert!(details.of("folder.mp4").words("detail")[0].contains("is a folder"));
    assert!(details.of("pipe.mp4").words("detail")[0].contains("not a regular file"));
    assert!(details.of("missing.mp4").words("detail")[0].contains("No such file"));
}

#[test]
fn a_list_of_nothing_but_bad_clips_finishes() {
    let site = Site::new();
    fs::write(site.path("list.txt"), "a.mp4\nb.mp4\na.mp4\n").unwrap();
    let done = site.run(&[("input.clips", &format!("{:?}", site.path("list.txt")))]).expect(3);
    assert!(done.last_line().contains("0 of 3 clips indexed, 2 rejected"), "{}", done.last_line());
    assert!(done.last_line().contains("1 listed twice"), "{}", done.last_line());
    assert_eq!(site.table("rejects").names(), ["a.mp4", "b.mp4"]);
}

#[test]
fn what_cannot_start_is_told_with_its_name() {
    let site = Site::new();
    make_at(&site.path("clips/good.avi"), &Clip::noisy(MPEG4_AVI));
    let at = |name: &str| format!("{:?}", site.path(name));
    let check = |settings: &[(&str, &str)], says: &[&str]| {
        site.run(settings).expect(2).says(&["error: "]).says(says);
        assert!(!site.path("out").exists(), "{settings:?} made the output folder");
    };
    fs::write(site.path("no-path.csv"), "file,label\nclips/good.avi,x\n").unwrap();
    check(&[("input.clips", &at("no-path.csv"))], &["no-path.csv", "has no column \"path\"", "file, label"]);
    fs::write(site.path("no-verb.csv"), "path,label\nclips/good.avi,x\n").unwrap();
    check(
        &[("input.clips", &at("no-verb.csv")), ("input.label", "\"verb\"")],
        &["no-verb.csv", "has no column \"verb\"", "path, label"],
    );
    fs::write(site.path("gap.csv"), "path,label\nclips/good.avi,x\n,y\n").unwrap();
    check(&[("input.clips", &at("gap.csv"))], &["gap.csv:3", "has no path"]);
    check(&[("input.clips", &at("clipz"))], &["input.clips", "clipz does not exist"]);
    check(&[("input.label", "\"verb\"")], &["input.label", "\"verb\"", "no manifest"]);
    fs::create_dir(site.path("no-clips")).unwrap();
    check(&[("input.clips", &at("no-clips"))], &["no-clips holds no clips"]);
    check(&[("encode.model", "\"no-such-model\"")], &["\"no-such-model\" is not installed"]);
    check(&[("encode.model", &at("no-model"))], &["no-model"]);
    fs::rename(site.path("model/image.onnx"), site.path("model/moved.onnx")).unwrap();
    check(&[], &["model.toml", "image.onnx", "which is not in"]);
    fs::rename(site.path("model/moved.onnx"), site.path("model/image.onnx")).unwrap();

    fs::create_dir(site.path("others")).unwrap();
    fs::write(site.path("others/thesis.tex"), "years of work").unwrap();
    check(&[("output.dir", &at("others"))], &["output.dir", "others", "thesis.tex"]);
    assert_eq!(fs::read_dir(site.path("others")).unwrap().count(), 1);
    check(&[("output.dir", &at("others/thesis.tex"))], &["output.dir", "thesis.tex is a file"]);
    assert_eq!(fs::read_to_string(site.path("others/thesis.tex")).unwrap(), "years of work");
    site.run(&[]).expect(0);
}
