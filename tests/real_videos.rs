//! Real videos, the odd ones among them: each ends once, has as many frames as FFmpeg finds, and the same
//! ones by a plan as without.
//!
//! The videos are not in the repository: `$CLIPMILL_VIDEOS`, else `../shared/videos` beside the
//! workspace, with a `MANIFEST.tsv` that says what each of them is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use support::run::Site;

/// Lines of a table with tabs, without its header.
fn lines(path: PathBuf) -> Vec<Vec<String>> {
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().skip(1).map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

/// What became of a video: its frames, or the reason of its reject.
type Ends = BTreeMap<String, Vec<Result<i64, String>>>;

fn index_all(site: &Site, folder: &str, paths: &[String]) -> Ends {
    let list: String = paths.iter().map(|p| format!("{folder}/{p}\n")).collect();
    fs::write(site.path("list.txt"), list).unwrap();
    let list = format!("{:?}", site.path("list.txt"));
    let settings = [("input.clips", list.as_str()), ("sample.all", "true"), ("decode.stall_s", "5")];
    let done = site.run_with(&settings, &["--quiet"]).expect(3);
    let (clips, rejects) = (site.table("clips"), site.table("rejects"));
    let mut ends = Ends::new();
    let own = |path: String| path.trim_start_matches(folder).trim_start_matches('/').to_owned();
    for (path, n) in clips.words("path").into_iter().zip(clips.numbers("n_frames")) {
        ends.entry(own(path)).or_default().push(Ok(n));
    }
    for (path, detail) in rejects.words("path").into_iter().zip(rejects.words("detail")) {
        ends.entry(own(path)).or_default().push(Err(detail));
    }
    let line = format!("finished: {} of {} clips indexed", clips.len(), paths.len());
    assert!(done.last_line().starts_with(&line), "{}", done.last_line());
    assert_eq!(clips.numbers("n_frames"), clips.numbers("n_sampled"), "each frame is a row");
    ends
}

/// The folder of real videos, if it is there.
fn videos() -> Option<PathBuf> {
    let folder = std::env::var_os("CLIPMILL_VIDEOS")
        .map_or_else(|| support::root().join("../shared/videos"), PathBuf::from);
    match folder.canonicalize() {
        Ok(folder) => Some(folder),
        Err(_) => {
            support::skip(&format!("there is no {}", folder.display()), "CLIPMILL_REQUIRE_VIDEOS");
            None
        }
    }
}

/// Whatever is odd about a file, a plan chooses the frames that decoding everything would, bit by bit.
#[test]
fn plans_choose_what_whole_decoding_chooses() {
    let Some(folder) = videos() else { return };
    let paths: Vec<PathBuf> =
        lines(folder.join("MANIFEST.tsv")).iter().map(|row| folder.join(&row[0])).collect();
    // Few files a process, so that each is done in time; two processes at once, for two cores.
    const TOGETHER: usize = 16;
    let check = |first: usize| {
        for some in paths.chunks(TOGETHER).skip(first).step_by(2) {
            let mut arguments = vec!["check", "--decode"];
            arguments.extend(some.iter().map(|p| p.to_str().unwrap()));
            let done = support::run::clipmill(&arguments);
            // Some cannot be decoded, by either way.
            assert!(matches!(done.code, Some(0 | 3)), "{}\n{}", done.stdout, done.stderr);
            assert!(!done.stdout.contains("DIFFERENT"), "{}", done.stdout);
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|first| drop(scope.spawn(move || check(first)))));
}

#[test]
fn every_real_video_ends_once_and_has_its_frames() {
    let Some(folder) = videos() else { return };
    let manifest = lines(folder.join("MANIFEST.tsv"));
    let paths: Vec<String> = manifest.iter().map(|row| row[0].clone()).collect();
    let site = Site::new();
    let ends = index_all(&site, folder.to_str().unwrap(), &paths);

    let mut wrong = Vec::new();
    let listed: BTreeSet<&String> = paths.iter().collect();
    wrong.extend(ends.keys().filter(|p| !listed.contains(p)).map(|p| format!("{p}: is not in the list")));
    wrong.extend(
        paths
            .iter()
            .filter(|p| ends.get(*p).map_or(0, Vec::len) != 1)
            .map(|p| format!("{p}: ends as {:?}", ends.get(p))),
    );

    let frames: BTreeMap<String, i64> = lines(support::data("real_videos_pyav.tsv"))
        .into_iter()
        .map(|row| (row[0].clone(), row[1].parse().unwrap()))
        .collect();
    for row in &manifest {
        let is_without =
            ["audio-only", "no-packets"].iter().any(|note| row[11].split(',').any(|n| n == *note));
        assert!(
            !is_without || frames[&row[0]] == 0,
            "{}: {} frames, but it is {}",
            row[0],
            frames[&row[0]],
            row[11]
        );
    }
    let exceptions: BTreeMap<String, i64> = lines(support::data("real_videos_exceptions.tsv"))
        .into_iter()
        .map(|row| {
            assert!(
                row.len() == 3 && !row[2].is_empty(),
                "an exception has a path, a count and a reason: {row:?}"
            );
            (row[0].clone(), row[1].parse().unwrap())
        })
        .collect();
    wrong.extend(
        exceptions
            .keys()
            .filter(|p| !listed.contains(p))
            .map(|p| format!("exception {p}: is not in the list")),
    );
    for row in &manifest {
        let path = &row[0];
        let Some([end]) = ends.get(path).map(Vec::as_slice) else { continue };
        // A clip without frames must be a reject, so 0 stands for both.
        wrong.extend((end == &Ok(0)).then(|| format!("{path}: is indexed without a frame")));
        let (found, truth) = (*end.as_ref().unwrap_or(&0), frames[path]);
        match exceptions.get(path) {
            Some(known) if found != *known => {
                wrong.push(format!("exception {path}: {end:?}, not {known} frames"))
            }
            Some(known) if truth == *known => {
                wrong.push(format!("exception {path}: is none, {known} is right"))
            }
            None if found != truth => {
                wrong.push(format!("{path}: {end:?}, not {truth} frames ({})", row[11]))
            }
            _ => (),
        }
    }
    assert!(wrong.is_empty(), "{} faults in {} videos:\n{}", wrong.len(), paths.len(), wrong.join("\n"));
}
