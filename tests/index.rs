//! The vector index: what it finds, what it notices, what an added shard and a rebuild do.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use half::f16;
use stages::index::{
    ledger::Ledger,
    vectors::{
        Builder, Condition, Damage, Filter, Hit, How, Kind, Question, Settings, VectorIndex, diverse, verify,
    },
};
use support::rows::{MadeClip, add_clips};
use tempfile::TempDir;

const DIM: usize = 48;
const SHARD_ROWS: u64 = 500;
/// Makes lists of whatever there is.
const LISTS: Settings = Settings { exact_rows: 100, recall: 0.99 };
const ALL: Settings = Settings { exact_rows: 1_000_000, recall: 0.99 };

fn unit(values: impl IntoIterator<Item = f32>) -> Vec<f32> {
    let values: Vec<f32> = values.into_iter().collect();
    let norm = values.iter().map(|v| v * v).sum::<f32>().sqrt();
    values.iter().map(|v| v / norm).collect()
}

/// A vector that looks like chance, the same for the same number.
fn chance(number: usize) -> Vec<f32> {
    let mut x = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    unit((0..DIM).map(|_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }))
}

fn mix(a: &[f32], b: &[f32], share: f32) -> Vec<f32> {
    unit(a.iter().zip(b).map(|(a, b)| a + b * share))
}

/// Clips of ten frames: twenty scenes of the same kind look alike, frames of a clip more so.
fn clips(n: usize) -> Vec<MadeClip> {
    let clip = |i: usize| {
        let scene = mix(&chance(1_000_000 + i % 20), &chance(i), 0.7);
        MadeClip {
            path: format!("clips/{}/{i}.mp4", i % 20),
            label: (!i.is_multiple_of(7)).then(|| format!("scene {}", i % 20)),
            vectors: (0..10).map(|f| mix(&scene, &chance(2_000_000 + i * 10 + f), 0.3)).collect(),
        }
    };
    (0..n).map(clip).collect()
}

/// A run of so many clips, with an index.
fn run(n: usize, settings: &Settings) -> TempDir {
    let folder = TempDir::new().unwrap();
    add_clips(folder.path(), &clips(n), SHARD_ROWS);
    refresh(folder.path(), settings, false).unwrap();
    folder
}

fn refresh(run: &Path, settings: &Settings, anew: bool) -> anyhow::Result<()> {
    let (_ledger, standing) = Ledger::open(run)?;
    let mut builder = Builder::open(run, &run.join("vectors"), DIM, anew)?;
    builder.complete(&standing, anew)?;
    builder.tune(settings, &mut || Ok((0..50).map(|i| chance(3_000_000 + i)).collect()), &mut |_| ())
}

fn open(run: &Path) -> VectorIndex {
    let (index, missing) = VectorIndex::open(run, &run.join("vectors")).unwrap();
    assert_eq!(missing, [0u32; 0]);
    index
}

/// Shard and row of the nearest rows, by the float16 values and nothing but arithmetic.
fn truth(clips: &[MadeClip], query: &[f32], n: usize) -> Vec<(u32, usize)> {
    let stored = |v: &f32| f16::from_f32(*v).to_f32();
    let rows = clips.iter().flat_map(|c| &c.vectors).enumerate();
    let score = |v: &Vec<f32>| v.iter().zip(query).map(|(a, b)| stored(a) * b).sum::<f32>();
    let mut scored: Vec<(f32, usize)> = rows.map(|(i, v)| (score(v), i)).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let place = |i: usize| ((i / SHARD_ROWS as usize) as u32, i % SHARD_ROWS as usize);
    scored[..n].iter().map(|(_, i)| place(*i)).collect()
}

fn found(index: &VectorIndex, query: &[f32], n: usize, lists: Option<usize>) -> Vec<(u32, usize)> {
    let found = index.nearest(query, Kind::Frame, n, lists).unwrap();
    found.into_iter().map(|n| (n.shard, n.row)).collect()
}

fn hits(index: &VectorIndex, vector: &[f32], clips: usize, filter: &Filter) -> (Vec<Hit>, How) {
    let answers = index.find(&[Question { vector, kind: Kind::Frame, clips, filter }]).unwrap();
    let [answer] = <[_; 1]>::try_from(answers).unwrap();
    (answer.hits, answer.how)
}

fn filter(conditions: &[&str]) -> Filter {
    Filter(conditions.iter().map(|c| c.parse::<Condition>().unwrap()).collect())
}

#[test]
fn a_scan_of_all_is_exact() {
    let run = run(300, &ALL);
    let index = open(run.path());
    assert_eq!((index.n_rows(), index.n_lists()), (3000, None));
    let clips = clips(300);
    for i in 0..40 {
        let query = mix(&clips[i * 7].vectors[3], &chance(4_000_000 + i), 0.4);
        assert_eq!(found(&index, &query, 25, None), truth(&clips, &query, 25));
    }
}

#[test]
fn lists_find_what_the_probe_says() {
    let run = run(600, &LISTS);
    let index = open(run.path());
    let recall = index.recall().unwrap().clone();
    assert_eq!((recall.target, recall.rows), (0.99, 6000));
    let n_lists = index.n_lists().unwrap();
    for points in [&recall.frame, &recall.text] {
        assert_eq!(points.iter().map(|p| p.rows).collect::<Vec<_>>(), [10, 100]);
        for p in points {
            assert!(p.recall >= 0.99 && p.queries >= 50 && p.lists <= n_lists, "{p:?}");
        }
    }
    let clips = clips(600);
    let (mut hits, mut n) = (0, 0);
    for i in 0..100 {
        let query = mix(&clips[i * 5].vectors[4], &chance(5_000_000 + i), 0.3);
        let truth = truth(&clips, &query, 10);
        assert_eq!(found(&index, &query, 10, Some(n_lists)), truth, "all lists are all rows");
        assert_eq!(found(&index, &query, 10, Some(0)), truth);
        let found = found(&index, &query, 10, Some(recall.frame[0].lists));
        hits += truth.iter().filter(|row| found.contains(row)).count();
        n += truth.len();
    }
    assert!(hits as f64 / n as f64 > 0.97, "{hits} of {n}");
    // Of few lists something is missed: the measure is one.
    let missed = (0..100).any(|i| {
        found(&index, &chance(6_000_000 + i), 10, Some(1)) != truth(&clips, &chance(6_000_000 + i), 10)
    });
    assert!(missed);
}

/// Names, inodes and times of writing.
fn marks(folder: &Path) -> BTreeMap<String, (u64, i64, i64)> {
    let mark = |e: fs::DirEntry| {
        let meta = e.metadata().unwrap();
        (e.file_name().into_string().unwrap(), (meta.ino(), meta.mtime(), meta.mtime_nsec()))
    };
    fs::read_dir(folder).unwrap().map(|e| mark(e.unwrap())).collect()
}

#[test]
fn a_shard_more_touches_no_other() {
    let run = run(200, &LISTS);
    let folder = run.path().join("vectors");
    let before = marks(&folder);
    assert_eq!(before.len(), 2 * 4 + 2, "{before:?}");
    add_clips(run.path(), &clips(250)[200..], SHARD_ROWS);
    refresh(run.path(), &LISTS, false).unwrap();
    let after = marks(&folder);
    assert_eq!(after.len(), before.len() + 2);
    for (name, mark) in before.iter().filter(|(name, _)| *name != "index.json") {
        assert_eq!(after.get(name), Some(mark), "{name}");
    }
    let index = open(run.path());
    let query = clips(250)[240].vectors[0].clone();
    assert_eq!(found(&index, &query, 1, None), truth(&clips(250), &query, 1));
    // Four times as many rows have other centroids.
    add_clips(run.path(), &clips(800)[250..], SHARD_ROWS);
    refresh(run.path(), &LISTS, false).unwrap();
    let grown = marks(&folder);
    let lists = |marks: &BTreeMap<String, _>| -> Vec<String> {
        marks.keys().filter(|n| n.starts_with("lists-00000") || n.starts_with("codebook")).cloned().collect()
    };
    assert!(lists(&grown).len() == 2 && lists(&grown) != lists(&after), "{grown:?}");
    assert_eq!(grown["rows-00000"], before["rows-00000"]);
    assert_eq!(verify(run.path()).unwrap(), [""; 0]);
}

fn files(run: &Path) -> Vec<PathBuf> {
    let of =
        |name: &str| fs::read_dir(run.join(name)).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    ["vectors", "frames", "clips", "manifests"].into_iter().flat_map(of).collect()
}

/// A search that touches every block of the index.
fn search_all(run: &Path) -> anyhow::Result<()> {
    let (index, _) = VectorIndex::open(run, &run.join("vectors"))?;
    let query = chance(7);
    index.nearest(&query, Kind::Frame, 10_000, Some(0))?;
    let question =
        Question { vector: &query, kind: Kind::Frame, clips: 10_000, filter: &filter(&["label!=x"]) };
    index.find(&[question]).map(drop)
}

#[test]
fn a_flipped_byte_is_found_named_and_mended() {
    let run = run(120, &LISTS);
    search_all(run.path()).unwrap();
    assert_eq!(verify(run.path()).unwrap(), [""; 0]);
    for path in files(run.path()) {
        let whole = fs::read(&path).unwrap();
        let is_index = path.starts_with(run.path().join("vectors"));
        for at in [0, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            let wrong = verify(run.path()).unwrap();
            let is_named =
                wrong.iter().any(|line| line.contains(path.file_name().unwrap().to_str().unwrap()));
            assert!(is_named, "{}, byte {at}: {wrong:?}", path.display());
            if is_index {
                let told = search_all(run.path()).unwrap_err();
                assert_eq!(told.downcast_ref::<Damage>().unwrap().path, path, "{told:#}");
                refresh(run.path(), &LISTS, true).unwrap();
                assert_eq!(verify(run.path()).unwrap(), [""; 0]);
                search_all(run.path()).unwrap();
            }
            fs::write(&path, &whole).unwrap();
        }
    }
    assert_eq!(verify(run.path()).unwrap(), [""; 0]);
}

#[test]
fn what_is_cut_off_or_foreign_is_made_anew() {
    let run_a = run(120, &LISTS);
    let run_b = {
        let folder = TempDir::new().unwrap();
        let mut other = clips(120);
        other.reverse();
        add_clips(folder.path(), &other, SHARD_ROWS);
        refresh(folder.path(), &LISTS, false).unwrap();
        folder
    };
    let folder = run_a.path().join("vectors");
    let expected = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    let query = chance(9);
    let right = found(&open(run_a.path()), &query, 10, Some(0));
    let mend = |what: &str| {
        let told = VectorIndex::open(run_a.path(), &folder).map(drop).unwrap_err();
        assert!(told.is::<Damage>() || told.root_cause().is::<std::io::Error>(), "{what}: {told:#}");
        refresh(run_a.path(), &LISTS, false).unwrap();
        assert_eq!(found(&open(run_a.path()), &query, 10, Some(0)), right, "{what}");
        assert_eq!(verify(run_a.path()).unwrap(), [""; 0], "{what}");
    };
    for path in &expected {
        let len = fs::metadata(path).unwrap().len();
        fs::File::options().write(true).open(path).unwrap().set_len(len / 2).unwrap();
        mend(&format!("{} cut off", path.display()));
        fs::remove_file(path).unwrap();
        mend(&format!("{} removed", path.display()));
        fs::write(path, b"something else altogether, and long enough to be read").unwrap();
        mend(&format!("{} replaced", path.display()));
    }
    fs::remove_dir_all(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(run_b.path().join("vectors")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    mend("another run's");
}

/// A ledger that lost its last line says nothing of the last shard: its index stands alone.
#[test]
fn a_shard_that_the_ledger_lost_is_noticed() {
    let run = run(120, &ALL);
    let ledger = run.path().join("ledger");
    let text = fs::read_to_string(&ledger).unwrap();
    let last = text.trim_end().rfind('\n').unwrap();
    fs::write(&ledger, &text[..=last]).unwrap();
    let wrong = verify(run.path()).unwrap();
    assert!(
        wrong.len() == 1 && wrong[0].contains("it holds shard 2, which the ledger does not"),
        "{wrong:?}"
    );
    assert!(VectorIndex::open(run.path(), &run.path().join("vectors")).unwrap_err().is::<Damage>());
    // A line whose end alone was changed is not one that was cut off.
    fs::write(&ledger, text.trim_end().to_owned() + " ").unwrap();
    assert!(format!("{:#}", verify(run.path()).unwrap_err()).contains("a line has no end"));
    fs::write(&ledger, text).unwrap();
    assert_eq!(verify(run.path()).unwrap(), [""; 0]);
}

#[test]
fn deleted_clips_are_not_found() {
    let run = run(120, &LISTS);
    let query = clips(120)[33].vectors[5].clone();
    let open_filter = Filter::default();
    let before = hits(&open(run.path()), &query, 5, &open_filter).0;
    assert_eq!(before[0].path, "clips/13/33.mp4");
    let (mut ledger, _) = Ledger::open(run.path()).unwrap();
    ledger.delete(vec![before[0].clip_id]).unwrap();
    drop(ledger);
    for anew in [false, true] {
        refresh(run.path(), &LISTS, anew).unwrap();
        let index = open(run.path());
        for filter in [&open_filter, &filter(&["label=scene 13"])] {
            let after = hits(&index, &query, 5, filter).0;
            assert!(after.len() == 5 && after.iter().all(|h| h.clip_id != before[0].clip_id), "{after:?}");
        }
        let rows = found(&index, &query, 20, Some(0));
        assert!(rows.iter().all(|row| !(330..340).contains(&(row.0 as usize * 500 + row.1))), "{rows:?}");
    }
    assert_eq!(verify(run.path()).unwrap(), [""; 0]);
}

#[test]
fn a_filter_gives_the_best_of_what_it_lets_pass() {
    let clips = clips(400);
    for settings in [&ALL, &LISTS] {
        let run = run(400, settings);
        let index = open(run.path());
        let query = mix(&clips[45].vectors[1], &chance(8_000_000), 0.5);
        type Case<'a> = (&'a [&'a str], &'a dyn Fn(usize) -> bool);
        let passes: [Case<'_>; 6] = [
            (&["label=scene 5"], &|i| i % 20 == 5 && !i.is_multiple_of(7)),
            (&["label="], &|i| i.is_multiple_of(7)),
            (&["path=clips/1?/*"], &|i| i % 20 >= 10),
            (&["path!=*/5/*", "label!="], &|i| i % 20 != 5 && !i.is_multiple_of(7)),
            (&["duration>9"], &|_| true),
            (&["duration>10"], &|_| false),
        ];
        for (conditions, passes) in passes {
            let (found, _) = hits(&index, &query, 10, &filter(conditions));
            let dot =
                |v: &Vec<f32>| v.iter().zip(&query).map(|(a, b)| f16::from_f32(*a).to_f32() * b).sum::<f32>();
            let best = |i: usize| clips[i].vectors.iter().map(dot).fold(f32::MIN, f32::max);
            let mut expected: Vec<usize> = (0..400).filter(|i| passes(*i)).collect();
            expected.sort_by(|a, b| best(*b).total_cmp(&best(*a)));
            let expected: Vec<String> = expected.iter().take(10).map(|i| clips[*i].path.clone()).collect();
            let found: Vec<String> = found.into_iter().map(|h| h.path).collect();
            assert_eq!(found, expected, "{conditions:?}");
        }
        // Of every clip its first frame alone.
        let (found, _) = hits(&index, &query, 10, &filter(&["time<1"]));
        let dot = |i: &usize| {
            let row = clips[*i].vectors[0].iter().zip(&query);
            row.map(|(a, b)| f16::from_f32(*a).to_f32() * b).sum::<f32>()
        };
        let mut expected: Vec<usize> = (0..400).collect();
        expected.sort_by(|a, b| dot(b).total_cmp(&dot(a)));
        let expected: Vec<String> = expected.iter().take(10).map(|i| clips[*i].path.clone()).collect();
        assert_eq!(found.into_iter().map(|h| h.path).collect::<Vec<_>>(), expected);
        let (found, how) = hits(&index, &query, 3, &filter(&["label=scene 5", "time>=3", "time<0:04"]));
        assert!(found.len() == 3 && found.iter().all(|h| h.pts_ns == 3_000_000_000), "{found:?}");
        assert!(found.iter().all(|h| (h.start_ns, h.end_ns) == (3_000_000_000, 4_000_000_000)));
        assert!(matches!(how, How::Matching { of: 4000, .. }), "{how:?}");
    }
}

/// Where a filter lets too many rows pass to score them all, more lists are visited than without it.
#[test]
fn a_filter_among_many_rows_visits_more_lists() {
    let folder = TempDir::new().unwrap();
    let clips = clips(11_000);
    add_clips(folder.path(), &clips, 1_000_000);
    refresh(folder.path(), &LISTS, false).unwrap();
    let index = open(folder.path());
    let half = filter(&["path=clips/1?/*"]);
    let (mut right, mut n) = (0, 0);
    for i in 0..20 {
        let query = mix(&clips[i * 511].vectors[2], &chance(9_000_000 + i), 0.3);
        let dot = |v: &Vec<f32>| v.iter().zip(&query).map(|(a, b)| a * b).sum::<f32>();
        let best = |c: &MadeClip| c.vectors.iter().map(dot).fold(f32::MIN, f32::max);
        let passing = clips.iter().enumerate().filter(|(i, _)| i % 20 >= 10);
        let mut scored: Vec<(f32, &str)> = passing.map(|(_, c)| (best(c), c.path.as_str())).collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (found, how) = hits(&index, &query, 5, &half);
        let How::Lists { lists, .. } = how else { panic!("{how:?}") };
        let How::Lists { lists: without, .. } = hits(&index, &query, 5, &Filter::default()).1 else {
            panic!()
        };
        assert!(lists > without, "{lists}, {without} without a filter");
        right += found.iter().filter(|h| scored[..5].iter().any(|(_, path)| *path == h.path)).count();
        n += 5;
    }
    assert!(right as f64 / n as f64 > 0.9, "{right} of {n}");
}

#[test]
fn the_moment_is_where_it_looks_so() {
    let folder = TempDir::new().unwrap();
    let (goal, lawn) = (chance(1), chance(2));
    let frame = |i: usize| {
        let near = if (12..17).contains(&i) { &goal } else { &lawn };
        mix(near, &chance(100 + i), if i == 14 { 0.05 } else { 0.3 })
    };
    let still = MadeClip { path: "still.mp4".into(), label: None, vectors: vec![lawn.clone(); 5] };
    let match_ = MadeClip { path: "match.mp4".into(), label: None, vectors: (0..40).map(frame).collect() };
    add_clips(folder.path(), &[match_, still], SHARD_ROWS);
    refresh(folder.path(), &ALL, false).unwrap();
    let index = open(folder.path());
    let span = |h: &Hit| (h.pts_ns / 1_000_000_000, h.start_ns / 1_000_000_000, h.end_ns / 1_000_000_000);
    let found = hits(&index, &goal, 2, &Filter::default()).0;
    assert_eq!((found[0].path.as_str(), span(&found[0])), ("match.mp4", (14, 12, 17)));
    assert_eq!(found[0].frame_index, 14 * 25);
    // A clip that always looks the same is one moment, to its end.
    let found = hits(&index, &lawn, 2, &Filter::default()).0;
    assert_eq!((found[0].path.as_str(), span(&found[0])), ("still.mp4", (0, 0, 5)));
}

#[test]
fn more_frames_of_a_clip_than_are_asked_for_hide_no_clip() {
    let folder = TempDir::new().unwrap();
    let near = chance(1);
    let crowd = MadeClip {
        path: "crowd.mp4".into(),
        label: None,
        vectors: (0..900).map(|i| mix(&near, &chance(100 + i), 0.1)).collect(),
    };
    let mut all = vec![crowd];
    all.extend(clips(60));
    add_clips(folder.path(), &all, SHARD_ROWS);
    for settings in [&ALL, &LISTS] {
        refresh(folder.path(), settings, false).unwrap();
        let index = open(folder.path());
        let found = hits(&index, &near, 12, &Filter::default()).0;
        assert!(found.len() == 12 && found[0].path == "crowd.mp4", "{found:?}");
        let everything = hits(&index, &near, 1000, &Filter::default()).0;
        assert_eq!(everything.len(), 61);
    }
}

#[test]
fn diverse_hits_are_unlike_one_another() {
    let folder = TempDir::new().unwrap();
    let query = chance(1);
    // Five copies of the best clip, then others.
    let clip = |i: usize| {
        let near = if i < 5 { mix(&query, &chance(50), 0.5) } else { mix(&query, &chance(50 + i), 0.7) };
        MadeClip {
            path: format!("{}{i}.mp4", if i < 5 { "copy" } else { "other" }),
            label: None,
            vectors: vec![mix(&near, &chance(500 + i), 0.02)],
        }
    };
    add_clips(folder.path(), &(0..12).map(clip).collect::<Vec<_>>(), SHARD_ROWS);
    refresh(folder.path(), &ALL, false).unwrap();
    let found = hits(&open(folder.path()), &query, 12, &Filter::default()).0;
    let copies = |hits: &[Hit]| hits.iter().take(4).filter(|h| h.path.starts_with("copy")).count();
    assert_eq!(copies(&found), 4);
    let best = found[0].clone();
    let chosen = diverse(found, 4, |hit| hit);
    assert_eq!((chosen.len(), &chosen[0], copies(&chosen)), (4, &best, 1));
}

#[test]
fn questions_together_are_answered_as_alone() {
    for settings in [&ALL, &LISTS] {
        let run = run(300, settings);
        let index = open(run.path());
        let vectors: Vec<Vec<f32>> = (0..11).map(|i| mix(&chance(1_000_000 + i), &chance(i), 0.7)).collect();
        let open_filter = Filter::default();
        let question = |i: usize| Question {
            vector: &vectors[i],
            kind: Kind::Frame,
            clips: 1 + i,
            filter: &open_filter,
        };
        let questions: Vec<Question<'_>> = (0..11).map(question).collect();
        let together = index.find(&questions).unwrap();
        for (answer, question) in together.iter().zip(&questions) {
            let (alone, how) = hits(&index, question.vector, question.clips, &open_filter);
            assert_eq!((&answer.hits, answer.how), (&alone, how));
        }
    }
}

#[test]
fn queries_that_cannot_be_compared_are_refused() {
    let run = run(50, &ALL);
    let index = open(run.path());
    let told = |vector: &[f32]| index.nearest(vector, Kind::Frame, 1, None).unwrap_err().to_string();
    assert_eq!(told(&[1.0, 0.0]), "the query has 2 values, the run's vectors 48");
    assert_eq!(told(&[f32::NAN; DIM]), "the query is no vector of numbers");
}
