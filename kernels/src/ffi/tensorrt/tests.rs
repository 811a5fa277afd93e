//! The real shim against TensorRT-RTX, whose builder needs no GPU: `make gpu-packages` installs it.

use std::path::PathBuf;

use super::{
    Error, Missing, TensorRt, Why,
    build::{BuildOptions, Precision, Range},
};

/// RTX in the data folder, or none with a word about it.
#[expect(clippy::print_stderr, reason = "tests skip aloud")]
fn rtx() -> Option<TensorRt> {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let home = var("CLIPMILL_HOME").or_else(|| var("HOME").map(|home| home.join(".local/share/clipmill")));
    let folder = home.unwrap_or_default().join("gpu-tests/tensorrt-rtx");
    let why = match TensorRt::find(std::slice::from_ref(&folder)) {
        Ok(tensorrt) if tensorrt.version().is_rtx => return Some(tensorrt),
        Ok(other) => format!("{other:?} is another"),
        Err(e) => e.to_string(),
    };
    let is_required = std::env::var_os("CLIPMILL_REQUIRE_GPU_PACKAGES").is_some_and(|v| v == "1");
    assert!(!is_required, "{why}");
    eprintln!("SKIPPED: no TensorRT-RTX in {} (make gpu-packages): {why}", folder.display());
    None
}

/// A field of a protocol buffer that holds bytes, all of them short.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
}

fn int(number: u8, value: u8) -> Vec<u8> {
    vec![number << 3, value]
}

/// An ONNX file with one operator, `x` of n × 4 floats → `y`.
fn onnx(op: &str) -> Vec<u8> {
    let value = |name: &str| {
        let dims = [field(1, &field(2, b"n")), field(1, &int(1, 4))].concat();
        let tensor = field(1, &[int(1, 1), field(2, &dims)].concat());
        [field(1, name.as_bytes()), field(2, &tensor)].concat()
    };
    let node = [field(1, b"x"), field(2, b"y"), field(4, op.as_bytes())].concat();
    let graph = [field(1, &node), field(2, b"g"), field(11, &value("x")), field(12, &value("y"))].concat();
    [int(1, 8), field(7, &graph), field(8, &[field(1, b""), int(2, 13)].concat())].concat()
}

fn options(buckets: &[usize]) -> BuildOptions {
    let of = |n: &usize| {
        let sizes = vec![*n, 4];
        vec![Range { input: "x".into(), least: sizes.clone(), best: sizes.clone(), most: sizes }]
    };
    let profiles = buckets.iter().map(of).collect();
    BuildOptions { capability: Some(89), ..BuildOptions::new(Precision::Fp32, profiles) }
}

#[test]
fn what_is_missing_is_named() {
    // A machine may have one, or another test of this process may have loaded RTX, which is then found.
    match TensorRt::find(&["/nowhere".into()]) {
        Err(e @ Missing::Library { .. }) => assert!(e.to_string().contains("libnvinfer.so.10"), "{e}"),
        Err(e @ Missing::Broken { .. }) => panic!("{e}"),
        Ok(_) | Err(Missing::Shim { .. }) => (),
    }
    let folder = std::env::temp_dir().join(format!("clipmill-no-tensorrt-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("libnvinfer.so.10"), "no library").unwrap();
    let e = TensorRt::find(std::slice::from_ref(&folder)).unwrap_err();
    assert!(matches!(e, Missing::Broken { .. }), "{e}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn rtx_builds_plans_with_a_profile_for_each_size() {
    let Some(rtx) = rtx() else { return };
    assert!(rtx.can_build() && rtx.is_strongly_typed(), "{rtx:?}");
    let mut told = Vec::new();
    let plan = rtx.build(None, &onnx("Relu"), &options(&[1, 4, 16]), &mut |share, what| {
        told.push((share, what.to_owned()));
        true
    });
    let plan = plan.unwrap();
    assert!(plan.len() > 100, "{}", plan.len());
    assert!(told.iter().all(|(share, _)| (0.0..=1.0).contains(share)), "{told:?}");
    assert!(told.is_sorted_by(|a, b| a.0 <= b.0), "{told:?}");

    // Without a GPU the plan is refused, and the process lives. `Engine::read` does not get so far: it
    // wants a `Gpu`.
    if !crate::gpu::has_driver() {
        let mut why = Why::new();
        let shim = &rtx.loaded.shim;
        for bytes in [&plan[..], b"no plan"] {
            // SAFETY: the bytes live through the call; RTX does without a driver.
            let engine = unsafe {
                let (at, size) = (bytes.as_ptr().cast(), bytes.len());
                (shim.engine_new)(rtx.loaded.raw.as_ptr(), at, size, why.at(), why.size())
            };
            assert!(engine.is_null());
            let text = why.text();
            assert!(text.contains("cannot") || text.contains("refused") || text.contains("CUDA"), "{text}");
        }
    }
}

#[test]
fn rtx_says_what_it_cannot_parse() {
    let Some(rtx) = rtx() else { return };
    for (bytes, wanted) in [(b"no onnx".to_vec(), "parse"), (onnx("NoSuchOperator"), "NoSuchOperator")] {
        let e = rtx.build(None, &bytes, &options(&[1]), &mut |_, _| true).unwrap_err().to_string();
        assert!(e.contains(wanted), "{e}");
    }
    // Another number of columns than the network has.
    let mut wrong = options(&[1]);
    wrong.profiles[0][0] = Range { input: "x".into(), least: vec![1, 5], best: vec![1, 5], most: vec![1, 5] };
    let e = rtx.build(None, &onnx("Relu"), &wrong, &mut |_, _| true).unwrap_err().to_string();
    assert!(e.len() > "TensorRT: ".len() + 10, "{e}");
}

#[test]
fn a_build_can_be_stopped() {
    let Some(rtx) = rtx() else { return };
    let built = rtx.build(None, &onnx("Relu"), &options(&[1]), &mut |_, _| false);
    // One that was too quick to hear of it is as good.
    assert!(matches!(built, Err(Error::Stopped) | Ok(_)), "{built:?}");
}
