//! Searching a run: by words, by a picture, by another clip.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use stages::model::Home;
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
