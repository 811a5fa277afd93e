//! Whole runs of the program with its frames on devices: everything but NVIDIA's own libraries, which are fakes.

use std::{collections::BTreeMap, fs, path::Path, process::Command, sync::Arc};

use stages::{
    decode::{Decode, Settings, sample::Sampling},
    item::{ClipId, ClipRef, EncodedClip, FrameBatch},
    load::Load,
    model::Model,
    stage::{Kept, Stage},
};
use support::{
    clips::{Clip, H264_MP4, MPEG4_AVI, VP8_WEBM, make},
    fake_gpu,
    onnx::{DIM, SIDE},
    run::{Outcome, Site, assert_near, binary, outcome},
};

const LEN: usize = 3 * SIDE * SIDE;

/// With clips of several kinds, sampled every 200 ms.
fn site(n: usize) -> Site {
    let site = Site::new();
    fs::create_dir_all(site.path("clips")).unwrap();
    for i in 0..n {
        let form = [H264_MP4, MPEG4_AVI, VP8_WEBM][i % 3];
        let made = make(&site.path("clips"), &Clip::wandering(form));
        let extension = made.path.extension().unwrap().to_str().unwrap().to_owned();
        fs::rename(&made.path, site.path("clips").join(format!("clip-{i:02}.{extension}"))).unwrap();
    }
    site
}

const GPU: [(&str, &str); 6] = [
    ("encode.backend", "\"tensorrt\""),
    ("encode.workers", "0"),
    ("encode.threads", "0"),
    ("encode.batch", "8"),
    ("decode.backend", "\"software\""),
    ("sample.every_ms", "200"),
];

/// Runs the program with fakes of NVIDIA's libraries that are set so.
fn run(site: &Site, settings: &[(&str, &str)], fakes: &[(&str, &str)]) -> Outcome {
    let all: BTreeMap<&str, &str> = GPU.into_iter().chain(settings.iter().copied()).collect();
    let config = site.config(&all.into_iter().collect::<Vec<_>>());
    let mut command = Command::new(binary());
    command.arg("run").arg(config).env("CLIPMILL_HOME", site.path("home"));
    command.envs(fake_gpu::environment()).envs(fakes.iter().copied());
    outcome(command)
}

/// What the fake engine makes of a clip's frames: means of stripes, to unit length.
fn expected(site: &Site, path: &str) -> Vec<Vec<f32>> {
    let recipe = Model::open(&site.path("model")).unwrap().recipe();
    let clip = Arc::new(ClipRef { id: ClipId(0), path: path.into(), label: None, extra: Vec::new() });
    let mut loaded: Kept<EncodedClip> = Kept(Vec::new());
    Load::open().process(clip, &mut loaded).unwrap();
    let mut batches: Kept<FrameBatch> = Kept(Vec::new());
    let mut decode = Decode::open(Settings::new(Sampling::EveryMs(200), recipe)).unwrap();
    decode.process(loaded.0.remove(0), &mut batches).unwrap();
    decode.finish(&mut batches).unwrap();
    let tensors =
        batches.0.iter().flat_map(|b| b.tensors.on_host().unwrap()[..b.n_frames() * LEN].chunks(LEN));
    let vector = |tensor: &[f32]| {
        let means: Vec<f32> =
            tensor.chunks(LEN / DIM).map(|s| s.iter().sum::<f32>() / s.len() as f32).collect();
        let norm = means.iter().map(|v| v * v).sum::<f32>().sqrt();
        means.iter().map(|v| v / norm).collect()
    };
    tensors.map(vector).collect()
}

fn assert_rows(site: &Site) {
    let clips = site.table("clips");
    for path in clips.words("path") {
        let name = Path::new(&path).file_name().unwrap().to_str().unwrap();
        let rows = site.table("frames").of(name).sorted();
        assert_near(&rows.vectors("embedding"), &expected(site, &path), 0.9997);
    }
}

#[test]
fn frames_go_through_a_gpu_to_rows() {
    let site = site(5);
    run(&site, &[], &[])
        .expect(0)
        .says(&["5 of 5 clips indexed", "building the TensorRT engine of image.onnx in fp16"]);
    assert_rows(&site);
    let record = site.record();
    assert_eq!(record["engine"], serde_json::json!({"backend": "tensorrt", "precision": "fp16"}));
    assert!(record["runtime"].as_str().unwrap().contains("TensorRT 10"), "{}", record["runtime"]);
    // The engine is kept, and so is what is done.
    let again = run(&site, &[], &[]).expect(0);
    assert!(!again.stderr.contains("building"), "{}", again.stderr);
}

#[test]
fn every_gpu_has_a_lane_and_fp32_is_an_option() {
    let site = site(9);
    let settings = [("gpu.devices", "[0, 2]"), ("encode.precision", "\"fp32\""), ("gpu.memory_mib", "8")];
    run(&site, &settings, &[("FAKE_CUDA_DEVICES", "3")]).expect(0);
    assert_rows(&site);
    let stages = site.record()["outcome"]["stages"].clone();
    let encode = stages.as_array().unwrap().iter().find(|s| s["stage"] == "encode").unwrap();
    assert_eq!(encode["workers"].as_array().unwrap().len(), 2);
}

#[test]
fn an_encoder_can_be_pinned_to_another_gpu() {
    let site = site(3);
    let settings = [("gpu.devices", "[0]"), ("encode.devices", "[1]")];
    run(&site, &settings, &[("FAKE_CUDA_DEVICES", "2")]).expect(0);
    assert_rows(&site);
    let missing = run(&site, &[("encode.devices", "[7]")], &[]).expect(2);
    assert!(missing.stderr.contains("there is no GPU 7: the driver shows 1"), "{}", missing.stderr);
}

#[test]
fn what_is_asked_for_and_missing_is_told_with_its_cure() {
    let site = site(1);
    // Without the fakes there is nothing.
    if kernels::gpu::has_driver() {
        return support::skip("this machine has a driver", "CLIPMILL_REQUIRE_NO_DRIVER");
    }
    let tensorrt = site.run(&[("encode.backend", "\"tensorrt\"")]).expect(2);
    assert!(tensorrt.stderr.contains("hint: "), "{}", tensorrt.stderr);
    let device = site.run(&[("encode.backend", "\"auto\""), ("gpu.devices", "[0]")]).expect(2);
    assert!(device.stderr.contains("hint: "), "{}", device.stderr);
    let device = site.run(&[("gpu.devices", "[0]")]).expect(2);
    assert!(device.stderr.contains("hint: "), "{}", device.stderr);
    assert!(!site.path("out").join("ledger").exists());
    let many = run(&site, &[("gpu.devices", "[0, 4]")], &[]).expect(2);
    assert!(many.stderr.contains("there is no GPU 4: the driver shows 1"), "{}", many.stderr);
    let memory =
        run(&site, &[("encode.batch", "1024"), ("decode.workers", "64")], &[("FAKE_CUDA_MIB", "64")])
            .expect(2);
    let told = "GPU 0 has 60 MiB free, half of it for batches: 64 decode workers need at least 65 batches of 1024 frames";
    assert!(memory.stderr.contains(told), "{}", memory.stderr);
}

#[test]
fn a_failing_gpu_stops_the_run_and_the_next_goes_on() {
    let undisturbed = site(8);
    run(&undisturbed, &[("index.shard_rows", "10")], &[]).expect(0);
    let site = site(8);
    let settings = [("index.shard_rows", "10"), ("decode.workers", "1")];
    let failed = run(&site, &settings, &[("FAKE_CUDA_FAIL", "cuMemcpyHtoDAsync:9")]).expect(1);
    failed.says(&["stage decode: cuMemcpyHtoDAsync: CUDA_ERROR_ILLEGAL_ADDRESS", "run it again to go on"]);
    run(&site, &settings, &[]).expect(0).says(&["8 of 8 clips indexed"]);
    assert_rows(&site);
    assert_eq!(site.table("frames").len(), undisturbed.table("frames").len());
}

#[test]
fn memory_is_taken_at_the_start_and_never_more() {
    let most = |n: usize| {
        let site = site(n);
        let report = site.path("report").display().to_string();
        run(&site, &[("decode.workers", "2")], &[("FAKE_CUDA_REPORT", &report)]).expect(0);
        let report = fs::read_to_string(report).unwrap();
        let of = |key: &str| {
            let line = report.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim().parse::<usize>().unwrap()
        };
        assert!(of("cuMemcpyDtoHAsync ") > 0);
        (of("most_bytes "), of("left_bytes "))
    };
    let ((few, left), (many, left_then)) = (most(3), most(12));
    // Tables for pictures of a kind are all that a clip may add, and these clips are of one kind.
    assert_eq!((few, left, left_then), (many, 0, 0));
}

#[test]
fn nvdec_decodes_what_it_can_and_the_cores_the_rest() {
    let site = site(6);
    run(&site, &[("decode.backend", "\"nvdec\"")], &[]).expect(0);
    let clips = site.table("clips");
    for (name, decoder) in clips.names().iter().zip(clips.words("decoder")) {
        let codec = ["h264", "mpeg4", "vp8"][name[5..7].parse::<usize>().unwrap() % 3];
        assert!(decoder == format!("nvdec:{codec}"), "{name}: {decoder}");
    }
    // The fake decodes MPEG-4 and paints the others.
    for path in clips.words("path").into_iter().filter(|path| path.ends_with("avi")) {
        let rows = site.table("frames").of(Path::new(&path).file_name().unwrap().to_str().unwrap()).sorted();
        assert_near(&rows.vectors("embedding"), &expected(&site, &path), 0.9997);
    }
}

#[test]
fn auto_lets_both_decode_and_goes_on_without_nvdec() {
    let site = site(9);
    let settings = [("decode.backend", "\"auto\""), ("decode.sessions", "2"), ("gpu.devices", "[0]")];
    run(&site, &settings, &[]).expect(0);
    let decoders = site.table("clips").words("decoder");
    assert!(decoders.iter().any(|d| d.starts_with("nvdec:")), "{decoders:?}");
    // A machine with a driver that does not decode.
    let (without, fakes) = (self::site(2), tempfile::tempdir().unwrap());
    for library in ["libcuda.so.1", "libnvrtc.so.13", "libnvinfer.so.10"] {
        fs::copy(fake_gpu::folder().join(library), fakes.path().join(library)).unwrap();
    }
    let (folder, registry) =
        (fakes.path().display().to_string(), fakes.path().join("registry").display().to_string());
    let few = [("LD_LIBRARY_PATH", folder.as_str()), ("GST_REGISTRY", registry.as_str())];
    let told = run(&without, &settings, &few).expect(0);
    assert!(
        told.stderr.contains("GPU 0 decodes nothing, the cores do: libnvcuvid.so.1 cannot be loaded"),
        "{}",
        told.stderr
    );
    let asked =
        run(&without, &[("decode.backend", "\"nvdec\""), ("output.dir", "\"other\"")], &few).expect(2);
    assert!(asked.stderr.contains("decode.backend: libnvcuvid.so.1 cannot be loaded"), "{}", asked.stderr);
}

#[test]
fn nvdec_works_for_an_engine_on_the_cores() {
    let site = site(3);
    let settings = [("decode.backend", "\"nvdec\""), ("encode.backend", "\"onnx\""), ("encode.threads", "1")];
    let settings = [&settings[..], &[("encode.workers", "1"), ("encode.precision", "\"fp32\"")]].concat();
    let home = stages::model::Home::from_env().folder().display().to_string();
    run(&site, &settings, &[("CLIPMILL_HOME", &home)]).expect(0);
    let rows = |site: &Site| site.table("frames").of("clip-01.avi").sorted().vectors("embedding");
    let on_device = rows(&site);
    fs::remove_dir_all(site.path("out")).unwrap();
    site.run(&[("sample.every_ms", "200")]).expect(0);
    // Pictures come back from the device as the cores decode them.
    assert_eq!(on_device, rows(&site));
}

#[test]
fn files_can_be_checked_against_the_cores() {
    let site = site(2);
    let mut command = Command::new(binary());
    command.args(["check", "--json", "--gpu"]).arg(site.path("clips/clip-01.avi"));
    command.env("CLIPMILL_HOME", site.path("home")).envs(fake_gpu::environment());
    let told = outcome(command).expect(0);
    let checked: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    let checked = &checked["checked"];
    assert_eq!((&checked["decoder"], &checked["frames"]), (&"nvdec:mpeg4".into(), &50.into()));
    assert_eq!((&checked["same_frames"], &checked["good"]), (&true.into(), &true.into()));
    // The fake paints H.264.
    let mut command = Command::new(binary());
    command.args(["check", "--gpu"]).arg(site.path("clips/clip-00.mp4"));
    command.env("CLIPMILL_HOME", site.path("home")).envs(fake_gpu::environment());
    let told = outcome(command).expect(1);
    assert!(told.stdout.contains("nvdec:h264: 50 frames at the same times, worst PSNR"), "{}", told.stdout);
}

#[test]
fn an_engine_that_is_far_from_fp32_is_told() {
    let site = site(0);
    let mut command = Command::new(binary());
    command.args(["model", "compare"]).arg(site.path("model")).args(["--precision", "fp32"]);
    command.env("CLIPMILL_HOME", site.path("home")).envs(fake_gpu::environment());
    command.env("ORT_DYLIB_PATH", stages::model::Home::from_env().onnxruntime());
    let told = outcome(command).expect(2);
    assert!(
        told.stdout.contains("tensorrt fp32 against") && told.stdout.contains("images a second"),
        "{}",
        told.stdout
    );
    assert!(told.stderr.contains("is farther from"), "{}", told.stderr);
}
