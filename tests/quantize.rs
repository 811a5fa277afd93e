//! The int8 form of a model: made from the user's frames, measured, installed only if it is near enough.

use std::{fs, process::Command};

use stages::model::Home;
use support::{
    clips::{Clip, MPEG4_AVI, make_at},
    onnx::write_conv_model,
    run::{Outcome, Site, Table, assert_near, clipmill},
};

/// A site with clips to calibrate with, unless this machine lacks the quantizer.
fn site() -> Option<Site> {
    let python = Home::from_env().folder().join("setup-venv/bin/python");
    let done = Command::new(&python).args(["-c", "import numpy, onnx, onnxruntime"]).output();
    if !done.is_ok_and(|done| done.status.success()) {
        let why = format!("{} lacks onnxruntime; `make quantizer` installs it", python.display());
        support::skip(&why, "CLIPMILL_REQUIRE_MODEL");
        return None;
    }
    let site = Site::new();
    write_conv_model(&site.path("model"));
    for i in 0..10 {
        make_at(&site.path(&format!("clips/{i}.avi")), &Clip::counting(MPEG4_AVI));
    }
    Some(site)
}

fn quantize(site: &Site, more: &[&str]) -> Outcome {
    let [model, clips] = ["model", "clips"].map(|name| site.path(name).to_string_lossy().into_owned());
    clipmill(&[&["model", "quantize", &model, "--calibrate", &clips], more].concat())
}

#[test]
fn an_int8_form_is_made_measured_and_used() {
    let Some(site) = site() else { return };
    quantize(&site, &["--force"]).expect(0).says(&["frames calibrate", "cosine to fp32", "ten nearest"]);
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(site.path("model/int8.json")).unwrap()).unwrap();
    assert!(record["mean_cosine"].as_f64().unwrap() > 0.9, "{record}");
    // The script keeps a quarter of its 40 to choose its method by.
    assert_eq!((record["n_calibration"].as_u64(), record["n_held_out"].as_u64()), (Some(30), Some(40)));

    let run = |precision: &str, batch: &str, out: &str| {
        let out_dir = format!("{:?}", site.path(out));
        let settings = [
            ("encode.precision", precision),
            ("encode.batch", batch),
            ("sample.every_ms", "300"),
            ("output.dir", &out_dir),
        ];
        site.run(&settings).expect(0);
        Table::read(&site.path(out), "frames").sorted()
    };
    let one = run("\"int8\"", "1", "one");
    assert_eq!(one, run("\"int8\"", "7", "seven"), "the batch changes no bit");
    let (ours, theirs) = (one.vectors("embedding"), run("\"fp32\"", "4", "plain").vectors("embedding"));
    assert_ne!(ours, theirs, "these are not the numbers of fp32");
    assert_near(&ours, &theirs, 0.9);

    // Another image tower makes it stale.
    let image = fs::read(site.path("model/image.onnx")).unwrap();
    fs::write(site.path("model/image.onnx"), [image, vec![0x7a, 0]].concat()).unwrap();
    let out = format!("{:?}", site.path("stale"));
    site.run(&[("encode.precision", "\"int8\""), ("output.dir", &out)])
        .expect(2)
        .says(&["model tiny has changed since its int8 form was made", "model quantize"]);
}

#[test]
fn what_is_too_far_from_fp32_is_not_installed() {
    let Some(site) = site() else { return };
    quantize(&site, &["--min-cosine", "1.1"]).expect(2).says(&[
        "tiny is not installed in int8",
        "needs a cosine of 1.1",
        "--force",
    ]);
    assert!(!site.path("model/int8.json").exists() && !site.path("model/int8.onnx").exists());
}

#[test]
fn what_cannot_be_quantized_is_told() {
    let Some(site) = site() else { return };
    quantize(&site, &["--python", "/nonexistent/python"])
        .expect(2)
        .says(&["/nonexistent/python", "make quantizer"]);
    for i in 1..10 {
        fs::remove_file(site.path(&format!("clips/{i}.avi"))).unwrap();
    }
    make_at(&site.path("clips/1.avi"), &Clip::counting(MPEG4_AVI));
    quantize(&site, &[]).expect(2).says(&["8 frames are too few", "at least 32", "give more clips"]);
}
