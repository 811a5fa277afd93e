//! Preprocessing against what Pillow and exact arithmetic make of the same pictures (`data/README.md`).

use std::fs;

use kernels::{
    picture::{Colour, Matrix, Orientation, Picture, PixelFormat, Plane, Range, SampleAspect},
    preprocess::{Preprocessor, Recipe, Resize},
    resample::Filter,
};
use stages::{
    encode::{
        image::ImageTower,
        network::{Libraries, Opening, reference},
    },
    model::{Home, Model},
};

const SIDE: usize = 224;

/// A picture and its reference.
struct Golden {
    name: String,
    width: usize,
    height: usize,
    planes: Vec<u8>,
    /// Rows of RGB bytes.
    reference: Vec<u8>,
}

fn goldens() -> Vec<Golden> {
    let read = |name: &str| fs::read(support::data(&format!("preprocess/{name}"))).unwrap();
    let index: Vec<serde_json::Value> = serde_json::from_slice(&read("index.json")).unwrap();
    let golden = |entry: &serde_json::Value| {
        let name = entry["name"].as_str().unwrap().to_owned();
        let size = |key: &str| entry[key].as_u64().unwrap() as usize;
        let (planes, reference) = (read(&format!("{name}.i420")), read(&format!("{name}.ref")));
        assert_eq!(reference.len(), SIDE * SIDE * 3);
        Golden { name, width: size("width"), height: size("height"), planes, reference }
    };
    index.iter().map(golden).collect()
}

/// A recipe without normalization, and with a model's.
fn recipe(mean: [f32; 3], std: [f32; 3]) -> Recipe {
    Recipe {
        width: SIDE,
        height: SIDE,
        resize: Resize::ShorterSide(SIDE),
        filter: Filter::Bicubic,
        mean,
        std,
    }
}

fn plain() -> Recipe {
    recipe([0.0; 3], [1.0; 3])
}

/// Our tensor of the picture, read as `colour`.
fn ours(golden: &Golden, colour: Colour, recipe: &Recipe) -> Vec<f32> {
    let (w, h) = (golden.width, golden.height);
    let (cw, ch) = (w.div_ceil(2), h.div_ceil(2));
    let (y, chroma) = golden.planes.split_at(w * h);
    let (u, v) = chroma.split_at(cw * ch);
    assert_eq!(v.len(), cw * ch, "{}", golden.name);
    tensor([(y, w), (u, cw), (v, cw)], golden, PixelFormat::I420, colour, recipe)
}

fn tensor(
    planes: [(&[u8], usize); 3],
    of: &Golden,
    format: PixelFormat,
    colour: Colour,
    recipe: &Recipe,
) -> Vec<f32> {
    let planes = planes.map(|(data, stride)| Plane { data, stride });
    let orientation = Orientation::default();
    let picture = Picture {
        planes,
        width: of.width,
        height: of.height,
        format,
        colour,
        orientation,
        sample_aspect: SampleAspect::default(),
    };
    let mut tensor = vec![0.0; recipe.tensor_len()];
    Preprocessor::new(recipe.clone()).run(&picture, &mut tensor).unwrap();
    tensor
}

/// The reference as a tensor.
fn theirs(golden: &Golden, recipe: &Recipe) -> Vec<f32> {
    let n = SIDE * SIDE;
    let colour = |i: usize| f32::from(golden.reference[i % n * 3 + i / n]) / 255.0;
    (0..3 * n).map(|i| (colour(i) - recipe.mean[i / n]) / recipe.std[i / n]).collect()
}

/// Mean absolute difference of plain tensors, in steps of an 8-bit colour.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).abs()).sum::<f64>() * 255.0 / a.len() as f64
}

fn mean(figures: &[f64]) -> f64 {
    figures.iter().sum::<f64>() / figures.len() as f64
}

/// Rounding to bytes, which both do at different places, is what is left of the difference.
#[test]
#[expect(clippy::print_stdout, reason = "the figures are shown with --nocapture")]
fn pictures_are_those_of_the_reference() {
    let goldens = goldens();
    assert_eq!(goldens.len(), 5);
    let (mut of_matrix, mut of_range) = (Vec::new(), Vec::new());
    for golden in &goldens {
        let wanted = theirs(golden, &plain());
        let as_read = |colour| ours(golden, colour, &plain());
        let found = as_read(Colour::default());
        let all = difference(&found, &wanted);
        let bt709 = difference(&as_read(Colour { matrix: Matrix::Bt709, ..Colour::default() }), &wanted);
        let full_range = difference(&as_read(Colour { range: Range::Full, ..Colour::default() }), &wanted);
        println!("{}: {all:.3}; wrong matrix {bt709:.3}, wrong range {full_range:.3}", golden.name);
        assert!(all < 0.5, "{}: {all}", golden.name);
        // The measure sees what it is there to see; in grey pictures a matrix changes little.
        assert!(bt709 > 1.5 * all, "{}: wrong matrix {bt709}, right {all}", golden.name);
        assert!(full_range > 5.0, "{}: wrong range {full_range}", golden.name);
        of_matrix.push(bt709);
        of_range.push(full_range);
    }
    assert!(mean(&of_matrix) > 1.0 && mean(&of_range) > 1.0, "{of_matrix:?} {of_range:?}");
}

/// Camera pictures keep a cosine above 0.999. The drawn one (`rabbit`) has large flat areas, where the
/// model answers to the last bit: noise of half a step alone costs it 0.0014.
#[test]
#[expect(clippy::print_stdout, reason = "the figures are shown with --nocapture")]
fn the_default_model_sees_little_difference() {
    let home = Home::from_env();
    let Ok(model) = Model::find("efficientnet-lite0-minilm", &home) else {
        let why = format!("{} lacks the default model; `make setup` fetches it", home.folder().display());
        return support::skip(&why, "CLIPMILL_REQUIRE_MODEL");
    };
    let libraries = Libraries::find(&home);
    let opening = Opening { engine: reference(&libraries), threads: 2 };
    let mut encoder = ImageTower::open(&model, opening, &libraries).unwrap();
    let recipe = recipe(model.card.image.mean, model.card.image.std);
    let mut cosines = |colour: Colour| -> Vec<f64> {
        let goldens = goldens();
        let cosine = |golden: &Golden| {
            let tensors = [ours(golden, colour, &recipe), theirs(golden, &recipe)].concat();
            let vectors = encoder.encode(&tensors, 2).unwrap().embeddings;
            let (a, b) = vectors.split_at(model.card.image.dim);
            let dot = |a: &[f32], b: &[f32]| {
                a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
            };
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        goldens.iter().map(cosine).collect()
    };
    let right = cosines(Colour::default());
    let wrong = cosines(Colour { matrix: Matrix::Bt709, ..Colour::default() });
    println!("cosines {right:.5?}; with the wrong matrix {wrong:.5?}");
    for (golden, cosine) in goldens().iter().zip(&right) {
        let least = if golden.name.starts_with("rabbit") { 0.998 } else { 0.999 };
        assert!(*cosine > least, "{}: {cosine}", golden.name);
    }
    assert!(mean(&wrong) < 0.996, "{wrong:?}");
}
