//! ONNX networks rewritten to fp16: as near to fp32 as fp16 can be, and what is no network refused.

use std::{fs, path::Path};

use pipeline::engines::{measure::cosines, pictures};
use stages::{
    encode::{
        image::ImageTower,
        joint::normalize,
        network::{Backend, Engine, Libraries, Opening, Precision},
        onnx_file::{half::rewrite, ports},
    },
    model::{Home, Model},
};

/// Vectors of the built-in pictures by a file of the model's tower, of unit length.
fn vectors(model: &Model, file: &Path) -> Vec<f32> {
    let opening =
        Opening { engine: Engine { backend: Backend::Onnx, precision: Precision::Fp32 }, threads: 2 };
    let mut tower = ImageTower::open_file(file, model, opening, &Libraries::find(&Home::from_env())).unwrap();
    let tensors = pictures::tensors(&model.recipe()).unwrap();
    let mut all = Vec::new();
    for tensor in tensors.chunks(model.recipe().tensor_len()) {
        all.extend(tower.encode(tensor, 1).unwrap().embeddings);
    }
    all.chunks_mut(model.card.image.dim).for_each(normalize);
    all
}

/// Whether the fp16 form gives nearly the same vectors, and keeps its border.
fn check(model: &Model) {
    let file = model.file(&model.card.image.file);
    let onnx = fs::read(&file).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let half_file = folder.path().join("half.onnx");
    let half = rewrite(&onnx, false).unwrap();
    fs::write(&half_file, &half).unwrap();
    let name = &model.card.name;
    assert!(half.len() * 10 < onnx.len() * 6 + 40_000, "{name}: {} of {} bytes", half.len(), onnx.len());
    assert_eq!(ports(&half).unwrap(), ports(&onnx).unwrap(), "{name}");
    let inputs = ports(&rewrite(&onnx, true).unwrap()).unwrap().0;
    assert!(inputs.iter().all(|port| !port.is_float), "{name}: {inputs:?}");
    let (whole, half) = (vectors(model, &file), vectors(model, &half_file));
    let (mean, least) = cosines(&whole, &half, pictures::N_PICTURES).unwrap();
    eprintln!("{name} in fp16: cosine {mean:.6}, at least {least:.6}");
    assert!(least >= 0.999 && whole != half, "{name}: {mean} {least}");
}

#[test]
fn small_networks_come_near_in_fp16() {
    let folder = tempfile::tempdir().unwrap();
    support::onnx::write_image_model(&folder.path().join("image"));
    support::onnx::write_conv_model(&folder.path().join("conv"));
    support::onnx::write_norm_model(&folder.path().join("norm"));
    for name in ["image", "conv", "norm"] {
        check(&Model::open(&folder.path().join(name)).unwrap());
    }
}

#[test]
fn the_default_model_comes_near_in_fp16() {
    let folder = Home::from_env().models().join("efficientnet-lite0-minilm");
    match Model::open(&folder) {
        Ok(model) => check(&model),
        Err(e) => support::skip(&format!("{e:#}"), "CLIPMILL_REQUIRE_MODEL"),
    }
}

/// ONNX Runtime computes much in fp32 that a file has in fp16, for want of kernels. So the file is asked.
#[test]
fn squares_and_their_sums_stay_in_fp32() {
    let folder = tempfile::tempdir().unwrap();
    support::onnx::write_norm_model(folder.path());
    let half = rewrite(&fs::read(folder.path().join("image.onnx")).unwrap(), true).unwrap();
    let has = |name: String| half.windows(name.len()).any(|bytes| bytes == name.as_bytes());
    for kept in ["mean", "squares", "variance", "positive", "deviation", "shares"] {
        assert!(has(format!("{kept}__fp32")), "{kept} is not in fp32");
    }
    for (name, is_cast) in [("squares", false), ("variance", false), ("positive", false), ("mean", true)] {
        assert_eq!(has(format!("{name}__fp16")), is_cast, "{name} in fp16");
    }
    for rounded in ["found", "centred"] {
        assert!(has(format!("{rounded}__fp32")) && !has(format!("{rounded}__fp16")), "{rounded}");
    }
}

/// Another model of whoever runs this, such as CLIP's image tower.
#[test]
fn a_model_by_choice_comes_near_in_fp16() {
    match std::env::var_os("CLIPMILL_HALF_MODEL") {
        Some(folder) => check(&Model::open(Path::new(&folder)).unwrap()),
        None => eprintln!("SKIPPED: CLIPMILL_HALF_MODEL names no model's folder"),
    }
}

#[test]
fn what_is_no_network_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    support::onnx::write_image_model(folder.path());
    let whole = fs::read(folder.path().join("image.onnx")).unwrap();
    for cut in [1, 10, whole.len() / 2, whole.len() - 1] {
        assert!(rewrite(&whole[..cut], false).is_err(), "{cut} bytes");
    }
    assert!(rewrite(b"", false).unwrap_err().to_string().contains("no graph"));
}
