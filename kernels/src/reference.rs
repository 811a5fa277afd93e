//! Preprocessing in double precision, one output sample at a time.
//!
//! The same definition as [`crate::preprocess`], with nothing done for speed: what the fast form is
//! held against. It does not round to bytes in between unless asked.

use crate::{
    picture::{Layout, Picture},
    preprocess::{Plan, Recipe, turn},
    resample::Taps,
};

/// Colours in 0..255, clipped, before rounding and normalization: planes of red, green and blue of
/// `recipe`'s size, as shown.
///
/// # Panics
/// If a plane is shorter than the picture's size says.
pub fn colours(recipe: &Recipe, picture: &Picture<'_>) -> Vec<f64> {
    let plan = Plan::new(recipe, &picture.look());
    let n = plan.width * plan.height;
    let m = plan.to_rgb;
    let mut stored = vec![0f32; 3 * n];
    for y in 0..plan.height {
        for x in 0..plan.width {
            let sample = |component: usize| {
                let chroma = usize::from(component > 0 && !picture.format.is_rgb());
                weighed(picture, component, (&plan.across[chroma], x), (&plan.down[chroma], y))
            };
            let luma = |component: usize| (sample(component) - m.black) * m.luma;
            let rgb = match picture.format.layout {
                Layout::Gray => [luma(0); 3],
                Layout::PlanarGbr | Layout::PackedRgb { .. } => [luma(0), luma(1), luma(2)],
                Layout::Planar | Layout::SemiPlanar => {
                    let (y, u, v) = (luma(0), sample(1) - m.centre, sample(2) - m.centre);
                    [y + m.rv * v, y + m.gu * u + m.gv * v, y + m.bu * u]
                }
            };
            for (colour, value) in rgb.into_iter().enumerate() {
                stored[colour * n + y * plan.width + x] = value.clamp(0.0, 255.0) as f32;
            }
        }
    }
    let mut shown = vec![0f32; 3 * n];
    turn(&stored, picture.orientation, (recipe.width, recipe.height), &mut shown);
    shown.into_iter().map(f64::from).collect()
}

fn weighed(
    picture: &Picture<'_>,
    component: usize,
    (across, x): (&Taps, usize),
    (down, y): (&Taps, usize),
) -> f64 {
    let mut sum = 0.0;
    for j in 0..down.width {
        for i in 0..across.width {
            let weight = down.weights[y * down.width + j] * across.weights[x * across.width + i];
            sum += weight * stored_sample(picture, component, across.start[x] + i, down.start[y] + j);
        }
    }
    sum
}

/// Sample (x, y) of a component: Y, U, V or R, G, B.
fn stored_sample(picture: &Picture<'_>, component: usize, x: usize, y: usize) -> f64 {
    let bytes = picture.format.sample_bytes();
    let (plane, offset, step) = match picture.format.layout {
        Layout::SemiPlanar if component > 0 => (1, (component - 1) * bytes, 2 * bytes),
        Layout::Planar | Layout::Gray | Layout::SemiPlanar => (component, 0, bytes),
        Layout::PlanarGbr => ([2, 0, 1][component], 0, bytes),
        Layout::PackedRgb { offsets, step } => (0, usize::from(offsets[component]), usize::from(step)),
    };
    let plane = &picture.planes[plane];
    let at = y * plane.stride + x * step + offset;
    match bytes {
        1 => f64::from(plane.data[at]),
        _ => f64::from(u16::from_le_bytes([plane.data[at], plane.data[at + 1]])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        lanes::Lanes,
        picture::{Colour, Matrix, Orientation, PixelFormat, Plane, Range, SampleAspect, Siting},
        preprocess::{Preprocessor, Resize},
        resample::Filter,
    };

    const IDENTITY: Recipe = Recipe {
        width: 24,
        height: 20,
        resize: Resize::ShorterSide(24),
        filter: Filter::Bicubic,
        mean: [0.0; 3],
        std: [1.0 / 255.0; 3],
    };

    /// Planes of smooth noise, stride padded by `pad` bytes.
    fn planes(width: usize, height: usize, format: PixelFormat, pad: usize) -> Vec<(Vec<u8>, usize)> {
        let blank = Picture {
            planes: [Plane { data: &[], stride: 0 }; 3],
            width,
            height,
            format,
            colour: Colour::default(),
            orientation: Orientation::default(),
            sample_aspect: SampleAspect::default(),
        };
        let (cw, ch) = blank.chroma_size();
        let bytes = format.sample_bytes();
        let sizes = match format.layout {
            Layout::Planar => vec![(width, height), (cw, ch), (cw, ch)],
            Layout::SemiPlanar => vec![(width, height), (2 * cw, ch)],
            Layout::PlanarGbr => vec![(width, height); 3],
            Layout::Gray => vec![(width, height)],
            Layout::PackedRgb { step, .. } => vec![(width * usize::from(step), height)],
        };
        let top = f64::from((1u32 << format.depth) - 1);
        sizes
            .into_iter()
            .enumerate()
            .map(|(p, (w, h))| {
                let stride = w * bytes + pad;
                let mut data = vec![0xEE; stride * h - pad];
                for y in 0..h {
                    for x in 0..w {
                        let wave = ((x * 7 + y * 13 + p * 31) as f64 * 0.19).sin()
                            * ((x + y * p) as f64 * 0.05).cos();
                        let value = ((0.5 + 0.45 * wave) * top) as u16;
                        data[y * stride + x * bytes..][..bytes]
                            .copy_from_slice(&value.to_le_bytes()[..bytes]);
                    }
                }
                (data, stride)
            })
            .collect()
    }

    fn check(
        width: usize,
        height: usize,
        format: PixelFormat,
        colour: Colour,
        orientation: Orientation,
        recipe: &Recipe,
    ) {
        let owned = planes(width, height, format, 5 * format.sample_bytes());
        let mut borrowed = [Plane { data: &[], stride: 0 }; 3];
        for (to, (data, stride)) in borrowed.iter_mut().zip(&owned) {
            *to = Plane { data, stride: *stride };
        }
        let picture = Picture {
            planes: borrowed,
            width,
            height,
            format,
            colour,
            orientation,
            sample_aspect: SampleAspect::default(),
        };
        let want = colours(recipe, &picture);
        for lanes in Lanes::all() {
            let mut got = vec![f32::NAN; recipe.tensor_len()];
            Preprocessor::with_lanes(recipe.clone(), lanes).run(&picture, &mut got).unwrap();
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let off = (f64::from(*got) - want).abs();
                assert!(
                    off < 0.505 && (got - got.round()).abs() < 1e-3,
                    "{width}x{height} {format:?} {colour:?} {orientation:?} {lanes:?} at {i}: {got} {want}"
                );
            }
        }
    }

    #[test]
    fn every_format_agrees_with_the_reference_within_its_rounding() {
        let layouts = [
            (Layout::Planar, (1, 1)),
            (Layout::Planar, (1, 0)),
            (Layout::Planar, (0, 0)),
            (Layout::Planar, (2, 0)),
            (Layout::SemiPlanar, (1, 1)),
            (Layout::PlanarGbr, (0, 0)),
            (Layout::Gray, (0, 0)),
        ];
        for (layout, subsampling) in layouts {
            for depth in [8, 10, 12, 16] {
                for (width, height) in [(64, 48), (33, 47), (25, 26), (1, 1), (3, 200)] {
                    let format = PixelFormat { layout, subsampling, depth };
                    check(width, height, format, Colour::default(), Orientation::default(), &IDENTITY);
                }
            }
        }
        for (offsets, step) in [([0, 1, 2], 3), ([2, 1, 0], 4), ([1, 2, 3], 4)] {
            let format =
                PixelFormat { layout: Layout::PackedRgb { offsets, step }, subsampling: (0, 0), depth: 8 };
            check(
                31,
                40,
                format,
                Colour { range: Range::Full, ..Colour::default() },
                Orientation::default(),
                &IDENTITY,
            );
        }
    }

    /// Wide enough for whole strips of the widest vectors, and a rest.
    #[test]
    fn wide_pictures_agree_with_the_reference() {
        let recipe = Recipe { width: 107, height: 30, resize: Resize::Stretch, ..IDENTITY };
        for (layout, subsampling, depth) in
            [(Layout::Planar, (1, 1), 8), (Layout::Planar, (0, 0), 10), (Layout::PlanarGbr, (0, 0), 8)]
        {
            for (width, height) in [(115, 33), (107, 30), (60, 20), (190, 55), (400, 31)] {
                let format = PixelFormat { layout, subsampling, depth };
                check(width, height, format, Colour::default(), Orientation::default(), &recipe);
            }
        }
    }

    #[test]
    fn every_colour_and_orientation_agrees_with_the_reference() {
        for matrix in [Matrix::Bt601, Matrix::Bt709, Matrix::Bt2020, Matrix::Smpte240m, Matrix::Fcc] {
            for range in [Range::Limited, Range::Full] {
                for cosited in [false, true] {
                    let siting = Siting { cosited_across: cosited, cosited_down: !cosited };
                    let colour = Colour { matrix, range, siting };
                    check(50, 40, PixelFormat::I420, colour, Orientation::default(), &IDENTITY);
                }
            }
        }
        let stretch = Recipe { resize: Resize::Stretch, filter: Filter::Bilinear, ..IDENTITY };
        for quarters in 0..4 {
            for orientation in [Orientation::rotated(quarters), Orientation::rotated(quarters).mirrored()] {
                check(61, 35, PixelFormat::I420, Colour::default(), orientation, &IDENTITY);
                check(35, 61, PixelFormat::I420, Colour::default(), orientation, &stretch);
            }
        }
    }

    /// A picture turned in memory, and the same picture with the turn as metadata, look alike.
    #[test]
    fn a_turned_picture_equals_the_picture_turned() {
        let (width, height) = (40, 30);
        let gray = PixelFormat { layout: Layout::Gray, subsampling: (0, 0), depth: 8 };
        let (data, stride) = planes(width, height, gray, 0).remove(0);
        // Clockwise by a quarter: shown (x, y) is stored (y, height - 1 - x).
        let turned: Vec<u8> = (0..width * height)
            .map(|i| (i % height, i / height))
            .map(|(x, y)| data[(height - 1 - x) * stride + y])
            .collect();
        let none = Plane { data: &[], stride: 0 };
        let picture = |data, stride, width, height, orientation| Picture {
            planes: [Plane { data, stride }, none, none],
            width,
            height,
            format: gray,
            colour: Colour::default(),
            orientation,
            sample_aspect: SampleAspect::default(),
        };
        let by_tag = colours(&IDENTITY, &picture(&data, stride, width, height, Orientation::rotated(1)));
        let by_hand = colours(&IDENTITY, &picture(&turned, height, height, width, Orientation::default()));
        for (a, b) in by_tag.iter().zip(&by_hand) {
            assert!((a - b).abs() < 1e-3, "{a} {b}");
        }
    }

    #[test]
    fn a_short_plane_is_refused() {
        let plane = Plane { data: &[0; 10], stride: 16 };
        let picture = Picture {
            planes: [plane; 3],
            width: 16,
            height: 16,
            format: PixelFormat::I420,
            colour: Colour::default(),
            orientation: Orientation::default(),
            sample_aspect: SampleAspect::default(),
        };
        let mut out = vec![0.0; IDENTITY.tensor_len()];
        let refused = Preprocessor::new(IDENTITY).run(&picture, &mut out).unwrap_err();
        assert!(refused.to_string().contains("needs 256"), "{refused}");
    }
}
