//! Searching a run: by words, by a picture, by another clip.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use stages::{index::ledger::Ledger, model::Home};
use support::{
    clips::{BLUE, Clip, GREEN, H264_MKV, H264_MP4, H264_TS, MPEG4_AVI, RED, VP9_WEBM, make_at, make_still},
    onnx::write_clip_model,
    run::{LIMIT, Outcome, Site, binary, clipmill, wait},
};

const COLOURS: [(&str, [u8; 3]); 4] =
    [("red", RED), ("green", GREEN), ("blue", BLUE), ("white", [235, 128, 128])];

/// A run over a clip of each colour, with the CLIP-shaped model.
fn coloured_run() -> Site {
    let site = Site::new();
    write_clip_model(&site.path("model"));
    for ((name, yuv), form) in COLOURS.iter().zip([MPEG4_AVI, H264_MP4, VP9_WEBM, H264_MKV]) {
        make_at(&site.path(&format!("clips/{name}/{name}.{}", form.extension)), &Clip::coloured(form, *yuv));
    }
    site.run(&[("input.label", "\"parent\"")]).expect(0);
    site
}

fn search(site: &Site, query: &[&str]) -> Outcome {
    let out = site.path("out");
    let mut args = vec!["search", out.to_str().unwrap()];
    args.extend(query);
    clipmill(&args)
}

/// The hits as JSON, checked for their form: ranks, falling scores, all fields.
#[track_caller]
fn hits(site: &Site, query: &[&str]) -> Vec<serde_json::Value> {
    let mut query = query.to_vec();
    query.push("--json");
    let found: Vec<serde_json::Value> = serde_json::from_str(&search(site, &query).expect(0).stdout).unwrap();
    for (i, hit) in found.iter().enumerate() {
        assert_eq!(hit["rank"], i + 1);
        let score = |h: &serde_json::Value| h["score"].as_f64().unwrap();
        assert!(
            score(hit) <= 1.01 && i.checked_sub(1).is_none_or(|before| score(&found[before]) >= score(hit)),
            "{hit}"
        );
        assert!(Path::new(hit["path"].as_str().unwrap()).is_file(), "{hit}");
        assert!(hit["clip_id"].is_u64() && hit["frame_index"].is_u64() && hit["pts_ns"].is_i64(), "{hit}");
        assert_eq!(hit["time"], "00:00");
    }
    found
}

#[test]
fn words_find_their_clip_first() {
    let site = coloured_run();
    for (name, _) in COLOURS {
        // Words that the model does not know say nothing; case is no matter.
        for words in [name.to_owned(), format!("something {}", name.to_uppercase())] {
            let found = hits(&site, &[&words]);
            assert_eq!(found.len(), 4);
            assert_eq!(found[0]["label"], name, "{words}: {found:?}");
            assert!(found[0]["score"].as_f64().unwrap() > 0.99, "{words}: {found:?}");
            assert!(found[1]["score"].as_f64().unwrap() < 0.95, "{words}: {found:?}");
        }
    }
    let shown = search(&site, &["green", "-k", "2"]).expect(0).stdout;
    let lines: Vec<&str> = shown.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].starts_with(" 1.  ") && lines[0].ends_with("green.mp4  [green]"),
        "{shown}"
    );
}

#[test]
fn a_picture_finds_its_clip_first() {
    let site = coloured_run();
    for (name, yuv) in COLOURS {
        for (encoder, extension) in [("pngenc", "png"), ("jpegenc quality=95", "jpg")] {
            let picture = site.path(&format!("{name}.{extension}"));
            make_still(&picture, encoder, yuv);
            let found = hits(&site, &["--image", picture.to_str().unwrap()]);
            assert_eq!(found[0]["label"], name, "{}: {found:?}", picture.display());
            assert!(found[0]["score"].as_f64().unwrap() > 0.99, "{}: {found:?}", picture.display());
        }
    }
}

#[test]
fn a_clip_finds_its_like_first() {
    let site = coloured_run();
    for (name, yuv) in COLOURS {
        let clip = site.path(&format!("query-{name}.ts"));
        make_at(&clip, &Clip::coloured(H264_TS, yuv));
        let found = hits(&site, &["--clip", clip.to_str().unwrap(), "-k", "3"]);
        assert_eq!((found.len(), &found[0]["label"]), (3, &name.into()), "{found:?}");
        assert!(found[0]["score"].as_f64().unwrap() > 0.99, "{found:?}");
    }
}

#[test]
fn hits_are_chosen_and_told_as_asked() {
    let site = coloured_run();
    let labels = |more: &[&str]| -> Vec<String> {
        let found = hits(&site, &[&["red"], more].concat());
        found.iter().map(|h| h["label"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(labels(&["--where", "label=green"]), ["green"]);
    assert_eq!(labels(&["--where", "path=*/red/*", "--where", "time<10"]), ["red"]);
    assert_eq!(labels(&["--where", "label!=red"]).len(), 3);
    assert_eq!(labels(&["--diverse", "-k", "2"])[0], "red");
    search(&site, &["red", "--where", "label=brown"]).expect(0).says(&["no clip matches"]);
    search(&site, &["red", "--where", "colour=red"]).expect(2).says(&["no field \"colour\"", "label=NAME"]);
    search(&site, &["red", "--explain"]).expect(0).says(&["scanned all", "nothing is missed"]);

    let csv = search(&site, &["red", "-k", "1", "--csv"]).expect(0).stdout;
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines[0], "query,rank,score,path,label,time_s,start_s,end_s,frame_index,clip_id,run");
    assert!(
        lines.len() == 2 && lines[1].starts_with("red,1,") && lines[1].contains(",red,0.000,0.000,"),
        "{csv}"
    );

    // The run beside a copy of it: every hit twice.
    let out = site.path("out");
    let copy = site.path("copy");
    let copied = Command::new("cp").arg("-r").arg(&out).arg(&copy).status().unwrap();
    assert!(copied.success());
    let both = hits(&site, &["red", "--with", copy.to_str().unwrap(), "-k", "2"]);
    assert!(both.iter().all(|h| h["label"] == "red") && both[0]["run"] != both[1]["run"], "{both:?}");
}

#[test]
fn many_queries_are_answered_at_once() {
    let site = coloured_run();
    let names: Vec<&str> = COLOURS.iter().map(|(name, _)| *name).collect();
    let file = site.path("queries.txt");
    fs::write(&file, (0..11).map(|i| format!("{}\n\n", names[i % 4])).collect::<String>()).unwrap();
    let told = search(&site, &["--queries", file.to_str().unwrap(), "-k", "1", "--json"]).expect(0).stdout;
    let lines: Vec<serde_json::Value> = told.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 11);
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(
            (line["query"].as_str(), line["hits"][0]["label"].as_str()),
            (Some(names[i % 4]), Some(names[i % 4]))
        );
    }
    // Vectors: those of the clips themselves find them, each its own.
    let clips = site.table("clips");
    let vectors = clips.vectors("embedding");
    let dim = vectors[0].len();
    let write = |name: &str, shape: &[usize], values: Vec<f32>| {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let path = site.path(name);
        fs::write(&path, [stages::files::npy_header(shape), bytes].concat()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let file = write("v.npy", &[4, dim], vectors.concat());
    let told = search(&site, &["--vectors", &file, "-k", "1", "--json"]).expect(0).stdout;
    for (i, line) in told.lines().enumerate() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["query"], i.to_string());
        assert!(line["hits"][0]["score"].as_f64().unwrap() > 0.999, "{line}");
    }
    let wrong = write("w.npy", &[1, 7], vec![1.0; 7]);
    let told = format!("the query has 7 values, the run's vectors {dim}");
    search(&site, &["--vectors", &wrong]).expect(2).says(&[&told, site.path("out").to_str().unwrap()]);
    search(&site, &["--vectors", file.replace("v.npy", "queries.txt").as_str()])
        .expect(2)
        .says(&["is no NumPy file"]);
    search(&site, &["--queries", "no/such.txt"]).expect(2).says(&["no/such.txt"]);
}

#[test]
fn an_index_that_is_not_whole_is_made_anew_or_named() {
    let site = coloured_run();
    let out = site.path("out");
    let index = |more: &[&str]| clipmill(&[&["index", out.to_str().unwrap()], more].concat());
    let right = search(&site, &["red"]).expect(0).stdout;
    assert!(index(&["--verify"]).expect(0).stdout.contains("every file is as it was written"));
    // Cut off, and gone: searching makes it anew.
    let rows = out.join("vectors/rows-00000");
    fs::write(&rows, &fs::read(&rows).unwrap()[..100]).unwrap();
    let told = search(&site, &["red"]).expect(0);
    assert_eq!(told.stdout, right);
    told.says(&["rows-00000 is damaged", "making it anew"]);
    fs::remove_dir_all(out.join("vectors")).unwrap();
    let told = search(&site, &["red"]).expect(0);
    assert_eq!(told.stdout, right);
    told.says(&["making its index"]);
    // A flipped byte is found by who reads it, named, and mended by a rebuild.
    let mut bytes = fs::read(&rows).unwrap();
    bytes[0] ^= 1;
    fs::write(&rows, bytes).unwrap();
    search(&site, &["red"]).expect(2).says(&["rows-00000 is damaged", "--rebuild"]);
    let told = index(&["--verify"]).expect(1);
    assert!(told.stdout.contains("rows-00000 is damaged"), "{}", told.stdout);
    assert!(index(&["--rebuild"]).expect(0).stdout.contains("nothing is missed"));
    assert_eq!(search(&site, &["red"]).expect(0).stdout, right);
    // Other files of the run are not the index's to mend.
    for name in [
        "run.json",
        "ledger",
        "rejects.parquet",
        "frames/shard-00000.parquet",
        "manifests/shard-00000.json",
        "manifests/rejects.json",
    ] {
        let path = out.join(name);
        let whole = fs::read(&path).unwrap();
        for at in [5, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            let told = index(&["--verify"]);
            assert!(
                told.code != Some(0) && (told.stdout.clone() + &told.stderr).contains(name),
                "{name} {at}: {told:?}"
            );
        }
        fs::write(&path, whole).unwrap();
    }
    index(&["--verify"]).expect(0);
    index(&["--rebuild", "--recall", "2"]).expect(2);
}

#[test]
fn deleted_clips_stay_deleted() {
    let site = coloured_run();
    let out = site.path("out");
    let index = |more: &[&str]| clipmill(&[&["index", out.to_str().unwrap()], more].concat());
    index(&["--delete", "time<1"]).expect(2).says(&["deleted whole"]);
    let told = index(&["--delete", "label=red"]).expect(0);
    assert!(told.stdout.trim().ends_with("red.avi"), "{}", told.stdout);
    told.says(&["1 clips are out of searches"]);
    for again in [None, Some("--rebuild")] {
        again.map(|more| index(&[more]).expect(0));
        assert!(hits(&site, &["red"]).iter().all(|h| h["label"] != "red"));
    }
    // A further run does not bring it back.
    site.run(&[("input.label", "\"parent\"")]).expect(0);
    assert_eq!(hits(&site, &["red"]).len(), 3);
    assert_eq!(site.table("clips").len(), 4, "Parquet keeps it");
}

/// While another process writes to the run, what is indexed is searched, and nothing is written.
#[test]
fn a_run_that_is_being_written_is_searched() {
    let site = coloured_run();
    let out = site.path("out");
    let catalogue = fs::read(out.join("vectors/index.json")).unwrap();
    let (mut ledger, _) = Ledger::open(&out).unwrap();
    let red = hits(&site, &["red"])[0]["clip_id"].as_u64().unwrap();
    ledger.delete(vec![red]).unwrap();
    assert_eq!(hits(&site, &["red"]).len(), 3, "though the index does not know yet");
    fs::remove_dir_all(out.join("vectors")).unwrap();
    assert_eq!(hits(&site, &["red"]).len(), 3);
    search(&site, &["red"])
        .expect(0)
        .says(&["in use by another clipmill", "making an index for this search"]);
    assert!(!out.join("vectors").exists());
    drop(ledger);
    search(&site, &["red"]).expect(0);
    assert_ne!(
        fs::read(out.join("vectors/index.json")).unwrap(),
        catalogue,
        "it knows the ledger's new line"
    );
}

#[test]
fn what_cannot_be_searched_is_told() {
    let site = coloured_run();
    let empty = site.path("empty");
    std::fs::create_dir(&empty).unwrap();
    clipmill(&["search", empty.to_str().unwrap(), "red"]).expect(2).says(&["holds no run", "run.json"]);
    search(&site, &[" "]).expect(2).says(&["the words to search for are empty"]);
    search(&site, &[]).expect(2);
    search(&site, &["red", "--clip", "x.mp4"]).expect(2);
    search(&site, &["--image", "no/such.png"]).expect(2).says(&["no/such.png", "unreadable"]);
    // Vectors of other weights cannot be compared.
    let weights = site.path("model/image.onnx");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(weights, bytes).unwrap();
    search(&site, &["red"]).expect(2).says(&["was indexed with model tiny", "cannot be compared"]);

    let blind = Site::new();
    make_at(&blind.path("clips/a.avi"), &Clip::coloured(MPEG4_AVI, RED));
    blind.run(&[]).expect(0);
    search(&blind, &["red"]).expect(2).says(&["model tiny has no text tower: words cannot be searched"]);
}

#[test]
fn the_default_model_finds_people_riding_bicycles() {
    const MODEL: &str = "efficientnet-lite0-minilm";
    let home = Home::from_env();
    let clips = home.folder().join("clips");
    if !home.models().join(MODEL).is_dir() || !clips.join("bikes.mp4").is_file() {
        let why =
            format!("{} lacks {MODEL} or the clips; `make setup` fetches them", home.folder().display());
        return support::skip(&why, "CLIPMILL_REQUIRE_MODEL");
    }
    let site = Site::new();
    let (clips, model) = (format!("{clips:?}"), format!("{MODEL:?}"));
    site.run(&[("input.clips", &clips), ("encode.model", &model), ("sample.every_ms", "1000")]).expect(0);
    assert_eq!(site.table("clips").vectors("embedding")[0].len(), 384);
    let found = hits_of_any_time(&site, "people riding bicycles");
    assert!(found[0]["path"].as_str().unwrap().ends_with("bikes.mp4"), "{found:?}");
}

#[test]
fn queries_come_from_stdin_as_well() {
    let site = coloured_run();
    let mut child = Command::new(binary())
        .args(["search", site.path("out").to_str().unwrap(), "-", "-k", "1", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"red\n\n  \ngreen\n").unwrap();
    let told = wait(child, LIMIT).expect(0);
    let lines = told.stdout.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let found: Vec<(String, String)> = lines
        .map(|line| {
            let text = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
            (text(&line["query"]), text(&line["hits"][0]["label"]))
        })
        .collect();
    assert_eq!(found, [("red".into(), "red".into()), ("green".into(), "green".into())]);
}

#[test]
fn a_model_is_scored_on_labelled_clips() {
    let site = Site::new();
    write_clip_model(&site.path("reads"));
    // Clips of one colour, in folders that say which; a name of UCF101's kind says it itself.
    for (name, yuv) in [("red/1", RED), ("green/1", GREEN), ("v_Blue_g01_c01", BLUE)] {
        make_at(&site.path(&format!("clips/{name}.avi")), &Clip::coloured(MPEG4_AVI, yuv));
    }
    fs::write(site.path("classes.txt"), "Blue\ngreen\nred\nWhite\n").unwrap();
    let [model, clips, classes] =
        ["reads", "clips", "classes.txt"].map(|name| site.path(name).to_string_lossy().into_owned());
    let eval = |more: &[&str]| clipmill(&[&["model", "eval", &model, &clips], more].concat());
    let told = eval(&["--classes", &classes, "--json"]).expect(0);
    let report: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!((report["n_clips"].as_u64(), report["n_classes"].as_u64()), (Some(3), Some(4)));
    let last = report["rows"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((last["engine"].as_str(), last["top1"].as_f64()), (Some("onnx fp32"), Some(1.0)), "{last}");
    assert_eq!((last["map"].as_f64(), last["map_by_frame"].as_f64()), (Some(1.0), Some(1.0)));
    fs::write(site.path("classes.txt"), "green\nred\n").unwrap();
    eval(&["--classes", &classes]).expect(2).says(&["the classes lack \"Blue\""]);
}

fn hits_of_any_time(site: &Site, words: &str) -> Vec<serde_json::Value> {
    serde_json::from_str(&search(site, &[words, "--json"]).expect(0).stdout).unwrap()
}
