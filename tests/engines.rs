//! What runs a model: chosen by measurement, remembered, and the same in every portion.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use pipeline::{
    edge::{Flow, Limits, edge},
    runner::Runner,
    stop::Stop,
};
use stages::{
    decode::{Backend, Decode, sample::Sampling},
    item::{ClipId, ClipRef, EncodedClip},
    load::Load,
    model::Home,
    stage::{Emit, Kept, Stage, StageError, Weigh},
};
use support::{
    clips::{Clip, H264_MP4, MPEG4_AVI, make_at},
    decoding,
    onnx::write_image_model,
    run::{LIMIT, Outcome, Site, Table, assert_near, binary, outcome, wait},
};

const AUTO: [(&str, &str); 4] =
    [("encode.backend", "\"auto\""), ("encode.batch", "0"), ("encode.workers", "0"), ("encode.threads", "0")];

/// A data folder with these libraries of the installed one, and nothing remembered.
fn home(site: &Site, name: &str, libraries: &[&str]) -> PathBuf {
    let folder = site.path(name);
    fs::create_dir_all(&folder).unwrap();
    for library in libraries {
        symlink(Home::from_env().folder().join(library), folder.join(library)).unwrap();
    }
    folder
}

fn has_openvino() -> bool {
    Home::from_env().folder().join("openvino/libonnxruntime.so").is_file()
}

fn skip_openvino() {
    // There is none for other CPUs.
    let needed = if cfg!(target_arch = "x86_64") { "CLIPMILL_REQUIRE_MODEL" } else { "" };
    support::skip("OpenVINO is not installed; `make setup` does", needed);
}

/// The one table of a data folder.
fn remembered(home: &Path) -> PathBuf {
    let mut files = fs::read_dir(home.join("engines")).unwrap().map(|e| e.unwrap().path());
    files.find(|p| p.extension().is_some_and(|e| e == "json")).unwrap()
}

/// Runs with another data folder.
fn run_at(site: &Site, home: &Path, settings: &[(&str, &str)]) -> Outcome {
    let mut command = Command::new(binary());
    command.arg("run").arg(site.config(settings)).env("CLIPMILL_HOME", home).env_remove("ORT_DYLIB_PATH");
    outcome(command)
}

#[test]
fn engines_are_measured_once_and_remembered() {
    let site = Site::new();
    make_at(&site.path("clips/a.avi"), &Clip::counting(MPEG4_AVI));
    let home = home(&site, "home", &["lib", "openvino"]);
    let first = run_at(&site, &home, &AUTO).expect(0).says(&[
        "measuring once",
        "onnx fp32",
        "CPU second",
        "tiny by ",
        " a batch",
    ]);
    assert!(site.record()["portions"]["batch"].as_u64() > Some(0));
    if has_openvino() {
        assert!(first.stderr.contains("openvino fp32"), "{}", first.stderr);
    }
    let out = format!("{:?}", site.path("other"));
    let again = [&AUTO[..], &[("output.dir", &out)]].concat();
    let second = run_at(&site, &home, &again).expect(0);
    assert!(!second.stderr.contains("measuring"), "{}", second.stderr);
    // A table that was damaged is measured anew.
    let table = remembered(&home);
    fs::write(&table, "{").unwrap();
    let out = format!("{:?}", site.path("third"));
    let again = [&AUTO[..], &[("output.dir", &out)]].concat();
    run_at(&site, &home, &again).expect(0).says(&["measuring once"]);
}

#[test]
fn of_two_runs_at_once_one_measures() {
    let site = Site::new();
    make_at(&site.path("clips/a.avi"), &Clip::counting(MPEG4_AVI));
    let home = home(&site, "home", &["lib"]);
    let start = |out: &str| {
        let out_dir = format!("{:?}", site.path(out));
        let config = site.config(&[&AUTO[..], &[("output.dir", &out_dir)]].concat());
        let own = config.with_file_name(format!("{out}.toml"));
        fs::rename(config, &own).unwrap();
        let mut command = Command::new(binary());
        command.arg("run").arg(own).env("CLIPMILL_HOME", &home).env_remove("ORT_DYLIB_PATH");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children = ["one", "two"].map(start);
    let told = children.map(|child| wait(child, LIMIT).expect(0).stderr);
    let n_measured = told.iter().map(|t| t.matches("images a CPU second").count()).sum::<usize>();
    assert_eq!(n_measured, 1, "{told:?}");
}

#[test]
fn the_doctor_shows_the_table() {
    let site = Site::new();
    let home = home(&site, "home", &["lib"]);
    write_image_model(&home.join("models/tiny"));
    let doctor = |more: &[&str]| {
        let mut command = Command::new(binary());
        command.arg("doctor").args(more).env("CLIPMILL_HOME", &home).env_remove("ORT_DYLIB_PATH");
        outcome(command).expect(0).stdout
    };
    assert!(doctor(&[]).contains("engine of tiny: onnx fp32: not measured yet"), "{}", doctor(&[]));
    let table = doctor(&["--measure"]);
    assert!(table.contains("images a CPU second") && table.contains("1.00000 at least"), "{table}");
    assert_eq!(doctor(&[]), table, "it is remembered");
}

#[test]
fn an_engine_that_fails_is_tried_again_another_day() {
    let site = Site::new();
    make_at(&site.path("clips/a.avi"), &Clip::counting(MPEG4_AVI));
    let home = home(&site, "home", &["lib"]);
    run_at(&site, &home, &AUTO).expect(0);
    let table = remembered(&home);
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&table).unwrap()).unwrap();
    json["rows"][0]["found"] = serde_json::json!({"Err": "out of memory"});
    let mut run = |unix: u64, out: &str| {
        json["rows"][0]["unix"] = unix.into();
        fs::write(&table, json.to_string()).unwrap();
        let out = format!("{:?}", site.path(out));
        run_at(&site, &home, &[&AUTO[..], &[("output.dir", &out)]].concat())
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    run(now, "today").expect(2).says(&["no engine runs the model", "out of memory"]);
    run(now - 100_000, "tomorrow").expect(0).says(&["measuring once"]);
}

#[test]
fn a_library_that_was_named_is_not_replaced() {
    let site = Site::new();
    make_at(&site.path("clips/a.avi"), &Clip::counting(MPEG4_AVI));
    let home = home(&site, "home", &["lib"]);
    let mut command = Command::new(binary());
    command.arg("run").arg(site.config(&AUTO)).env("CLIPMILL_HOME", &home);
    command.env("ORT_DYLIB_PATH", "/nonexistent/libonnxruntime.so");
    outcome(command).expect(2).says(&["/nonexistent/libonnxruntime.so"]);
}

#[test]
fn what_is_not_near_enough_is_not_chosen() {
    if !has_openvino() {
        return skip_openvino();
    }
    let site = Site::new();
    make_at(&site.path("clips/a.avi"), &Clip::counting(MPEG4_AVI));
    let home = home(&site, "home", &["lib", "openvino"]);
    run_at(&site, &home, &AUTO).expect(0);
    // Whatever was measured here: the others are fast, and not near.
    let table = remembered(&home);
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&table).unwrap()).unwrap();
    for row in json["rows"].as_array_mut().unwrap() {
        if row["engine"]["backend"] == "openvino" && row["found"]["Ok"].is_object() {
            let found = &mut row["found"]["Ok"];
            found["mean_cosine"] = 0.9.into();
            for rate in found["rates"].as_array_mut().unwrap() {
                (rate["per_cpu_s"], rate["per_wall_s"]) = (1e9.into(), 1e9.into());
            }
        }
    }
    fs::write(&table, json.to_string()).unwrap();
    for (least, backend) in [("0.95", "onnx"), ("0.85", "openvino")] {
        let out = format!("{:?}", site.path(backend));
        let settings = [&AUTO[..], &[("encode.min_cosine", least), ("output.dir", &out)]].concat();
        run_at(&site, &home, &settings).expect(0);
        let record = fs::read(site.path(backend).join("run.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        assert_eq!(record["engine"]["backend"], backend, "at least {least}");
    }
}

#[test]
fn openvino_gives_the_same_vectors_in_any_portion_and_a_run_keeps_it() {
    if !has_openvino() {
        return skip_openvino();
    }
    let site = Site::new();
    make_at(&site.path("clips/a.avi"), &Clip::counting(MPEG4_AVI));
    make_at(&site.path("clips/b.mp4"), &Clip::counting(H264_MP4));
    let run = |backend: &str, batch: &str, threads: &str, out: &str| {
        let out_dir = format!("{:?}", site.path(out));
        let settings = [
            ("encode.backend", backend),
            ("encode.precision", "\"fp32\""),
            ("encode.batch", batch),
            ("encode.threads", threads),
            ("sample.every_ms", "130"),
            ("output.dir", &out_dir),
        ];
        site.run(&settings).expect(0);
        Table::read(&site.path(out), "frames").sorted()
    };
    let one = run("\"openvino\"", "1", "1", "one");
    assert_eq!(one, run("\"openvino\"", "7", "2", "seven"));
    assert_eq!(one, run("\"openvino\"", "64", "1", "many"));
    let (ours, theirs) = (one.vectors("embedding"), run("\"onnx\"", "4", "1", "plain").vectors("embedding"));
    assert_near(&ours, &theirs, 0.999);
    // More clips, and nothing said of the engine: the run goes on with the one it has.
    make_at(&site.path("clips/c.avi"), &Clip::counting(MPEG4_AVI));
    let out_dir = format!("{:?}", site.path("one"));
    let settings = [("encode.backend", "\"auto\""), ("sample.every_ms", "130"), ("output.dir", &out_dir)];
    site.run(&settings).expect(0).says(&["3 of 3 clips indexed (2 unchanged"]);
    // Another engine by name is another run.
    let settings = [("encode.backend", "\"onnx\""), ("sample.every_ms", "130"), ("output.dir", &out_dir)];
    site.run(&settings).expect(2).says(&["engine: there \"openvino fp32\", here \"onnx fp32\""]);
}

#[test]
fn an_engine_that_is_not_here_is_told_with_its_cure() {
    let site = Site::new();
    make_at(&site.path("clips/a.avi"), &Clip::counting(MPEG4_AVI));
    let home = home(&site, "home", &["lib"]);
    run_at(&site, &home, &[("encode.backend", "\"openvino\"")])
        .expect(2)
        .says(&["OpenVINO is not installed", "make setup"]);
    run_at(&site, &home, &[("encode.precision", "\"bf16\"")]).expect(2).says(&["there is no onnx bf16"]);
    run_at(&site, &home, &[("encode.precision", "\"int8\"")])
        .expect(2)
        .says(&["has no int8 form", "clipmill model quantize tiny"]);
    run_at(&site, &home, &[("encode.backend", "\"auto\""), ("encode.precision", "\"bf16\"")])
        .expect(2)
        .says(&["no engine here computes in the wanted precision"]);
}

#[test]
fn without_any_library_rten_embeds() {
    let site = Site::new();
    make_at(&site.path("clips/a.avi"), &Clip::counting(MPEG4_AVI));
    let home = home(&site, "home", &[]);
    run_at(&site, &home, &AUTO).expect(0).says(&["rten fp32"]);
    assert_eq!(site.record()["engine"]["backend"], "rten");
    let ours = site.table("frames").sorted();
    let out = format!("{:?}", site.path("plain"));
    site.run(&[("output.dir", &out)]).expect(0);
    let theirs = Table::read(&site.path("plain"), "frames").sorted();
    assert_near(&ours.vectors("embedding"), &theirs.vectors("embedding"), 0.999);
    // In other portions too.
    let out = format!("{:?}", site.path("portions"));
    let settings = [
        ("encode.backend", "\"rten\""),
        ("encode.batch", "3"),
        ("output.dir", &out),
        ("encode.workers", "1"),
    ];
    run_at(&site, &home, &settings).expect(0);
    assert_eq!(ours, Table::read(&site.path("portions"), "frames").sorted());
}

#[test]
fn short_clips_share_a_batch() {
    let folder = tempfile::tempdir().unwrap();
    let mut decode = Decode::open(stages::decode::Settings {
        batch_frames: 8,
        ..decoding::settings(Backend::Auto, Sampling::Count(3))
    })
    .unwrap();
    let mut batches = Kept(Vec::new());
    for i in 0..3 {
        let path = folder.path().join(format!("{i}.avi"));
        make_at(&path, &Clip::counting(MPEG4_AVI));
        let path = path.to_string_lossy().into_owned();
        let clip = ClipRef { id: ClipId(i), path, label: None, extra: Vec::new() };
        let mut loaded: Kept<EncodedClip> = Kept(Vec::new());
        Load::open().process(Arc::new(clip), &mut loaded).unwrap();
        decode.process(loaded.0.remove(0), &mut batches).unwrap();
    }
    let shapes = |batches: &Kept<stages::item::FrameBatch>| -> Vec<Vec<(u64, usize, bool)>> {
        let parts = |b: &stages::item::FrameBatch| {
            b.parts.iter().map(|p| (p.clip.id.0, p.frames.len(), p.end.is_some())).collect()
        };
        batches.0.iter().map(parts).collect()
    };
    // The batch was full in the midst of the third clip.
    assert_eq!(shapes(&batches), [vec![(0, 3, true), (1, 3, true), (2, 2, false)]]);
    decode.idle(&mut batches).unwrap();
    assert_eq!(shapes(&batches)[1..], [vec![(2, 1, true)]]);
}

/// Holds back what it gets.
struct Holds(Vec<u64>);

#[derive(Debug)]
struct Number(u64);

impl Weigh for Number {
    fn bytes(&self) -> usize {
        8
    }
}

impl Stage for Holds {
    type In = Number;
    type Out = Number;

    fn process(&mut self, item: Number, _: &mut dyn Emit<Number>) -> Result<(), StageError> {
        self.0.push(item.0);
        Ok(())
    }

    fn idle(&mut self, out: &mut dyn Emit<Number>) -> Result<(), StageError> {
        self.0.drain(..).try_for_each(|n| out.emit(Number(n)))?;
        Ok(())
    }
}

#[test]
fn what_a_stage_holds_back_goes_on_when_its_input_pauses() {
    let stop = Stop::default();
    let limits = Limits { items: 8, bytes: 1024 };
    let (input, listed) = edge(limits, &stop);
    let (output, received) = edge::<Number>(limits, &stop);
    let mut runner = Runner::new(stop.clone());
    runner.spawn("holds", 1, listed, output, || Ok(Holds(Vec::new()))).unwrap();
    input.send(Flow::Item(Number(7))).unwrap();
    // The input has not ended: only the pause can bring it.
    let since = Instant::now();
    let got = received.recv_within(Duration::from_secs(20)).unwrap();
    assert!(matches!(got, Some(Some(Flow::Item(Number(7))))), "nothing after {:?}", since.elapsed());
    drop(input);
    runner.join();
}
