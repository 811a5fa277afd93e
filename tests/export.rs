//! `clipmill export`: every format is read by what it is for, and holds what the shards hold.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use stages::model::Home;
use support::{
    clips::{Clip, GREEN, H264_MP4, MPEG4_AVI, RED, make_at},
    run::{Outcome, Site, binary, clipmill, outcome},
};

const FORMATS: [&str; 5] = ["clip-retrieval", "npy", "faiss-input", "lance-input", "webdataset"];

/// A run of seven clips in several shards, by a manifest with gaps, and with texts that formats stumble
/// over. Its columns `caption`, `id` and `vector` have names that formats have for themselves.
fn run_with_odd_texts(embedding: &str) -> Site {
    let site = Site::new();
    let rows = [
        ("a.avi", Some("plain")),
        ("ünï/видео 视频.mp4", Some("naïve, \"quoted\"")),
        ("two.words and.dots.avi", Some("line one\nline two\r\n\ttabbed")),
        ("no label.avi", None),
        ("emoji 🎬.avi", Some("🎬, 'x'; NA")),
        ("number.avi", Some("007")),
        ("comma, \"quote\".avi", None),
    ];
    let mut list = String::new();
    for (i, (path, label)) in rows.iter().enumerate() {
        let form = if path.ends_with("mp4") { H264_MP4 } else { MPEG4_AVI };
        let clip =
            if i % 2 == 0 { Clip::counting(form) } else { Clip::coloured(form, [RED, GREEN][i / 2 % 2]) };
        // GStreamer's text for a pipeline has quotes of its own.
        make_at(&site.path("made"), &clip);
        fs::create_dir_all(site.path(path).parent().unwrap()).unwrap();
        fs::rename(site.path("made"), site.path(path)).unwrap();
        let caption = (i != 1).then(|| format!("caption {i}, of the manifest"));
        let row = serde_json::json!({
            "path": path, "label": label, "caption": caption, "id": i, "vector": "a word", "a.dotted name": "x\ny",
            "a_dotted name": "-",
        });
        list += &format!("{row}\n");
    }
    fs::write(site.path("list.jsonl"), list).unwrap();
    let clips = format!("{:?}", site.path("list.jsonl"));
    let embedding = format!("{embedding:?}");
    let settings = [
        ("input.clips", clips.as_str()),
        ("sample.every_ms", "200"),
        ("index.shard_rows", "20"),
        ("index.embedding", &embedding),
    ];
    site.run(&settings).expect(0);
    site
}

fn export(run: &Path, to: &str, out: &Path, more: &[&str]) -> Outcome {
    let args = ["export", run.to_str().unwrap(), "--to", to, "--out", out.to_str().unwrap()];
    clipmill(&[&args[..], more].concat())
}

/// Every file below a folder with its bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

/// The names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A Python with the packages of `tests/data/readers-requirements.txt`.
fn readers() -> Option<PathBuf> {
    let python = std::env::var_os("CLIPMILL_READERS_PYTHON")
        .map_or_else(|| Home::from_env().folder().join("readers-venv/bin/python"), PathBuf::from);
    let mut imports = Command::new(&python);
    imports.args(["-c", "import embedding_reader, faiss, lancedb, pandas, pyarrow, webdataset"]);
    if !python.is_file() || outcome(imports).code != Some(0) {
        let why = format!(
            "{} is not there or lacks what tests/data/readers-requirements.txt names; `make readers` installs it",
            python.display()
        );
        support::skip(&why, "CLIPMILL_REQUIRE_MODEL");
        return None;
    }
    Some(python)
}

/// Exports all formats, by the default and by small files, and has each read by what it is for.
fn check_all(python: &Path, site: &Site, run: &Path) {
    let mut command = Command::new(python);
    command.arg(support::data("exports.py")).arg(run);
    let mut wanted = Vec::new();
    for of in ["frames", "clips"] {
        let n_rows = fs::read_dir(run.join(of)).unwrap().map(|e| n_rows(&e.unwrap().path())).sum::<usize>();
        for to in FORMATS {
            // Of ten and more parts the names must sort as the numbers do.
            for rows in ["", "1", "3", "4096"] {
                let (more, per_file) = match (rows, to) {
                    ("", "npy") => (vec![], n_rows),
                    ("", "webdataset") => (vec![], 10_000),
                    ("", _) => (vec![], 1_000_000),
                    (_, "npy") => continue,
                    (rows, _) => (vec!["--rows-per-file", rows], rows.parse().unwrap()),
                };
                let out = site.path(&format!("exports/{of}-{to}-{rows}"));
                let told = export(run, to, &out, &[&["--of", of], &more[..]].concat()).expect(0);
                let line = format!("exported: {n_rows} rows of {of} in {} file", files(&out).len());
                assert!(told.last_line().starts_with(&line), "{line}: {}", told.stderr);
                assert!(told.last_line().ends_with(out.to_str().unwrap()), "{}", told.stderr);
                assert_eq!(told.stdout, "");
                command.arg(&out).args([to, of, &per_file.to_string()]);
                wanted.push(format!("{to}: {n_rows} {of} of "));
            }
        }
    }
    let read = outcome(command).expect(0).stdout;
    let lines: Vec<&str> = read.lines().collect();
    assert_eq!(lines.len(), wanted.len(), "{read}");
    for (line, wanted) in lines.iter().zip(wanted) {
        assert!(line.starts_with(&wanted), "{wanted}: {read}");
    }
}

fn n_rows(shard: &Path) -> usize {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(shard).unwrap()).unwrap();
    builder.metadata().file_metadata().num_rows() as usize
}

#[test]
fn every_format_is_read_by_what_it_is_for() {
    let Some(python) = readers() else { return };
    let site = run_with_odd_texts("float16");
    check_all(&python, &site, &site.path("out"));
}

#[test]
fn vectors_of_float32_stay_what_they_are() {
    let Some(python) = readers() else { return };
    let site = run_with_odd_texts("float32");
    check_all(&python, &site, &site.path("out"));
}

#[test]
fn the_same_run_gives_the_same_bytes() {
    let site = run_with_odd_texts("float16");
    for to in FORMATS {
        let more: &[&str] = if to == "npy" { &[] } else { &["--rows-per-file", "30"] };
        let out = site.path(to);
        export(&site.path("out"), to, &out, more).expect(0);
        let first = files(&out);
        assert!(first.len() > 1 && first.values().all(|bytes| !bytes.is_empty()), "{to}");
        fs::remove_dir_all(&out).unwrap();
        export(&site.path("out"), to, &out, more).expect(0);
        assert!(files(&out) == first, "{to} differs from its repetition");
    }
}

#[test]
fn nothing_that_is_there_is_written_over() {
    let site = Site::new();
    make_at(&site.path("clips/a.avi"), &Clip::counting(MPEG4_AVI));
    site.run(&[]).expect(0);
    let run = site.path("out");
    let out = site.path("place/export");
    let again = || export(&run, "webdataset", &out, &[]);

    // An empty folder may be given, and a new one in a new one.
    fs::create_dir_all(&out).unwrap();
    again().expect(0).says(&["exported: ", "rows of frames in 1 file: "]);
    let first = files(&site.path("place"));
    assert_eq!(names(&site.path("place")), ["export"]);
    // A full one may not, be it an export, the run itself, or a file.
    again().expect(2).says(&["--out: ", "place/export: holds 00000.tar, needs a new or empty folder"]);
    export(&run, "npy", &run, &[]).expect(2).says(&["out: holds ", "needs a new or empty folder"]);
    export(&run, "npy", &out.join("00000.tar"), &[]).expect(2).says(&["00000.tar: is a file"]);
    assert_eq!(files(&site.path("place")), first);

    // What a killed export left goes; what is not ours stays.
    fs::remove_dir_all(&out).unwrap();
    let partial = site.path("place/export.partial");
    fs::create_dir_all(partial.join("img_emb")).unwrap();
    fs::write(partial.join("img_emb/img_emb_0.npy"), "half").unwrap();
    again().expect(2).says(&["place/export.partial is in the way", "hint: remove it"]);
    assert_eq!(names(&partial), ["img_emb"]);
    let lock = File::create(partial.join("clipmill-export.lock")).unwrap();
    lock.lock().unwrap();
    again().expect(2).says(&["export.partial is being written by another export"]);
    assert_eq!(names(&partial), ["clipmill-export.lock", "img_emb"]);
    drop(lock);
    again().expect(0);
    assert_eq!(files(&site.path("place")), first);

    // The current folder cannot be replaced under who stands in it.
    let here = site.path("here");
    fs::create_dir(&here).unwrap();
    let mut command = Command::new(binary());
    command.current_dir(&here).arg("export").arg(&run).args(["--to", "npy", "--out", "."]);
    outcome(command).expect(2).says(&["--out: .: cannot be replaced", "name a folder in it"]);
    let mut command = Command::new(binary());
    command.current_dir(&here).arg("export").arg(&run).args(["--to", "npy", "--out", "mine"]);
    outcome(command).expect(0).says(&["in 2 files: mine"]);
    assert_eq!(names(&here.join("mine")), ["embeddings.npy", "rows.csv"]);
}

#[test]
fn what_cannot_be_exported_is_told() {
    let site = Site::new();
    make_at(&site.path("clips/a.avi"), &Clip::counting(MPEG4_AVI));
    site.run(&[]).expect(0);
    let (run, out) = (site.path("out"), site.path("export"));
    export(&site.path("nowhere"), "npy", &out, &[]).expect(2).says(&["nowhere holds no run", "run.json"]);
    export(&run, "xml", &out, &[]).expect(2).says(&["'xml'", "clip-retrieval", "webdataset"]);
    export(&run, "npy", &out, &["--rows-per-file", "5"]).expect(2).says(&["--rows-per-file is not for npy"]);
    export(&run, "lance-input", &out, &["--rows-per-file", "0"]).expect(2);
    export(&run, "npy", &out, &["--of", "words"]).expect(2).says(&["'words'", "frames", "clips"]);
    assert!(!out.exists());

    // A disk that fills up: as tests/full_disk.rs does it.
    for (to, file) in
        [("npy", "embeddings.npy"), ("webdataset", "00000.tar"), ("lance-input", "rows-00000.parquet")]
    {
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\""]).arg(binary());
        command.arg("export").arg(&run).args(["--to", to, "--out"]).arg(&out);
        let told = outcome(command).expect(1).says(&[file, "File too large"]);
        assert_eq!(told.stderr.matches("File too large").count(), 1, "{}", told.stderr);
        assert_eq!(names(&site.path("")), ["clips", "config.toml", "model", "out"], "nothing is left");
    }

    fs::write(run.join("ledger"), "").unwrap();
    export(&run, "npy", &out, &[]).expect(2).says(&["holds no finished shard"]);
    fs::remove_dir_all(run.join("frames")).unwrap();
    fs::write(run.join("ledger"), "{\"shard\":{\"shard\":0,\"n_frames\":9,\"clips\":[]}}\n").unwrap();
    export(&run, "npy", &out, &[]).expect(2).says(&["frames/shard-00000.parquet"]);
}
