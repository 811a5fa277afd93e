//! Lists of clips: folders, globs and all four kinds of manifest.

use std::{fs, path::Path, sync::Arc};

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use parquet::arrow::ArrowWriter;
use stages::clips::{ClipList, Entry, Label};

fn read(clips: &Path, label: Label) -> Vec<Entry> {
    let list = ClipList::open(clips.to_str().unwrap(), label).unwrap();
    let entries: Vec<Entry> = list.iter().unwrap().map(Result::unwrap).collect();
    assert_eq!(entries.len() as u64, list.n_clips());
    entries
}

fn error(clips: &str, label: Label) -> String {
    format!("{:#}", ClipList::open(clips, label).err().expect("is refused"))
}

/// The last parts of the paths, and the labels.
fn names(entries: &[Entry]) -> Vec<(String, Option<&str>)> {
    let name = |e: &Entry| Path::new(&e.path).file_name().unwrap().to_string_lossy().into_owned();
    entries.iter().map(|e| (name(e), e.label.as_deref())).collect()
}

#[test]
fn a_folder_gives_its_videos_by_name_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["b/2.AVI", "b/1.mp4", "a/9.webm", "a/notes.txt", "a/.hidden.mp4", ".git/x.mp4", "top.mkv"] {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    fs::create_dir(dir.path().join("folder.mp4")).unwrap();
    let entries = read(dir.path(), Label::Parent);
    let top = dir.path().file_name().unwrap().to_str().unwrap();
    let want = [("9.webm", "a"), ("1.mp4", "b"), ("2.AVI", "b"), ("top.mkv", top)];
    assert_eq!(names(&entries), want.map(|(n, l)| (n.to_owned(), Some(l))));
    // A glob finds what a shell would.
    let glob = read(&dir.path().join("*/*.mp4"), Label::None);
    assert_eq!(names(&glob), [("1.mp4".to_owned(), None)]);
    // One file is a list of one.
    assert_eq!(names(&read(&dir.path().join("top.mkv"), Label::None)), [("top.mkv".to_owned(), None)]);
}

#[test]
fn every_kind_of_manifest_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let csv = write("m.csv", "take,path,label\n1,a.mp4,cat\n2,\"sub/b, c.mp4\",\n");
    let jsonl = write(
        "m.jsonl",
        "{\"path\": \"a.mp4\", \"label\": \"cat\", \"take\": 1}\n\n{\"take\": 2, \"path\": \"sub/b, c.mp4\", \"label\": null}\n",
    );
    let fields = ["take", "path", "label"]
        .map(|n| Field::new(n, if n == "take" { DataType::Int64 } else { DataType::Utf8 }, true));
    let schema = Arc::new(Schema::new(fields.to_vec()));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![1, 2])),
        Arc::new(StringArray::from(vec!["a.mp4", "sub/b, c.mp4"])),
        Arc::new(StringArray::from(vec![Some("cat"), None])),
    ];
    let parquet = dir.path().join("m.parquet");
    let mut writer = ArrowWriter::try_new(fs::File::create(&parquet).unwrap(), schema.clone(), None).unwrap();
    writer.write(&RecordBatch::try_new(schema, columns).unwrap()).unwrap();
    writer.close().unwrap();

    let entry = |path: &str, label: Option<&str>, take: &str| Entry {
        path: dir.path().join(path).to_string_lossy().into_owned(),
        label: label.map(str::to_owned),
        extra: vec![Some(take.to_owned())],
    };
    let want = [entry("a.mp4", Some("cat"), "1"), entry("sub/b, c.mp4", None, "2")];
    for manifest in [&csv, &jsonl, &parquet] {
        assert_eq!(read(manifest, Label::Auto), want, "{}", manifest.display());
        let list = ClipList::open(manifest.to_str().unwrap(), Label::Auto).unwrap();
        assert_eq!(list.extra_columns(), ["take"]);
        // Another column as the label.
        let by_take = read(manifest, Label::Column("take".into()));
        assert_eq!(by_take[1].label.as_deref(), Some("2"));
    }
    let txt = write("m.txt", "# clips\n a.mp4 \n\nsub/b, c.mp4\n");
    assert_eq!(names(&read(&txt, Label::Auto)), [("a.mp4".to_owned(), None), ("b, c.mp4".to_owned(), None)]);
}

#[test]
fn a_list_that_makes_no_sense_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let check = |name: &str, text: &str, label: Label, want: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        let found = error(path.to_str().unwrap(), label);
        assert!(found.contains(name) && found.contains(want), "{found}");
    };
    check("no-path.csv", "file,label\na.mp4,x\n", Label::Auto, "has no column \"path\"; it has file, label");
    check("no-label.csv", "path\na.mp4\n", Label::Column("kind".into()), "has no column \"kind\"");
    check("short.csv", "path,take\na.mp4,1\nb.mp4\n", Label::Auto, "record 2");
    check("empty-path.csv", "path,take\n,1\n", Label::Auto, ":2: the row has no path");
    check("broken.jsonl", "{\"path\": \"a.mp4\"}\nnot json\n", Label::Auto, ":2: not a JSON object");
    check(
        "clash.csv",
        "path,codec\na.mp4,x\n",
        Label::Auto,
        "\"codec\" has the name of one of clipmill's own",
    );
    check("none.txt", "# nothing\n", Label::Auto, "holds no clips");
    check("bad.parquet", "not parquet", Label::Auto, "");
    let folder = dir.path().join("empty");
    fs::create_dir(&folder).unwrap();
    assert!(error(folder.to_str().unwrap(), Label::None).contains("holds no clips"));
    assert!(error("/no/such/folder", Label::None).contains("/no/such/folder does not exist"));
    assert!(error("/no/such/*.mp4", Label::None).contains("holds no clips"));
    assert!(error(dir.path().to_str().unwrap(), Label::Column("x".into())).contains("is no manifest"));
}

/// Streaming: a million entries are counted and read without being held.
#[test]
fn a_million_entries_stream() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("million.txt");
    let text: String = (0..1_000_000).map(|i| format!("clips/{i:07}.mp4\n")).collect();
    fs::write(&path, text).unwrap();
    let list = ClipList::open(path.to_str().unwrap(), Label::None).unwrap();
    assert_eq!(list.n_clips(), 1_000_000);
    let mut iter = list.iter().unwrap();
    assert!(iter.next().unwrap().unwrap().path.ends_with("clips/0000000.mp4"));
    assert!(iter.last().unwrap().unwrap().path.ends_with("clips/0999999.mp4"));
}
