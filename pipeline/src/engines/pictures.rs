//! The built-in pictures that engines are compared on.
//!
//! "Dead leaves": opaque discs of all sizes over one another, which have the spectrum and the edges of
//! photographs (Lee, Mumford and Huang, "Occlusion models for natural images", 2001). Each has its own
//! colour, shading and grain.

use anyhow::{Result, anyhow};
use kernels::{
    picture::{Colour, Layout, Orientation, Picture, PixelFormat, Plane, Range, SampleAspect},
    preprocess::{Preprocessor, Recipe},
};

/// How many there are.
pub const N_PICTURES: usize = 32;

const WIDTH: usize = 320;
const HEIGHT: usize = 240;
const N_LEAVES: usize = 500;

/// The pictures in a model's form, one after another.
pub fn tensors(recipe: &Recipe) -> Result<Vec<f32>> {
    let mut preprocessor = Preprocessor::new(recipe.clone());
    let mut tensors = vec![0.0; N_PICTURES * recipe.tensor_len()];
    for (i, tensor) in tensors.chunks_mut(recipe.tensor_len()).enumerate() {
        let rgb = draw(i as u64);
        let none = Plane { data: &[], stride: 0 };
        let picture = Picture {
            planes: [Plane { data: &rgb, stride: 3 * WIDTH }, none, none],
            width: WIDTH,
            height: HEIGHT,
            format: PixelFormat {
                layout: Layout::PackedRgb { offsets: [0, 1, 2], step: 3 },
                subsampling: (0, 0),
                depth: 8,
            },
            colour: Colour { range: Range::Full, ..Colour::default() },
            orientation: Orientation::default(),
            sample_aspect: SampleAspect::default(),
        };
        preprocessor.run(&picture, tensor).map_err(|e| anyhow!("built-in picture: {e}"))?;
    }
    Ok(tensors)
}

/// Uniform numbers in 0..1 (Steele, Lea and Flood's SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    }

    fn between(&mut self, least: f32, most: f32) -> f32 {
        least + (most - least) * self.next()
    }
}

fn draw(seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut rgb = vec![0; 3 * WIDTH * HEIGHT];
    for leaf in 0..N_LEAVES {
        // Radii fall with the third power, as sizes in photographs do; the first leaf is the ground.
        let radius =
            if leaf == 0 { 1000.0 } else { (random.between(1.0 / 10_000.0, 1.0 / 9.0)).sqrt().recip() };
        let (x, y) = (random.between(0.0, WIDTH as f32), random.between(0.0, HEIGHT as f32));
        let light = random.between(20.0, 235.0);
        let colour = [0; 3].map(|_| light + random.between(-50.0, 50.0));
        let (slope_x, slope_y) = (random.between(-0.4, 0.4), random.between(-0.4, 0.4));
        let (wave, along) = (random.between(0.05, 1.5), random.between(0.0, std::f32::consts::TAU));
        let (ripple, grain) = (random.between(0.0, 15.0), random.between(0.0, 12.0));
        let rows = (y - radius).max(0.0) as usize..((y + radius + 1.0) as usize).min(HEIGHT);
        for row in rows {
            let dy = row as f32 - y;
            let half = (radius * radius - dy * dy).max(0.0).sqrt();
            let columns = (x - half).max(0.0) as usize..((x + half) as usize).min(WIDTH);
            for column in columns {
                let dx = column as f32 - x;
                let shade = slope_x * dx + slope_y * dy;
                let phase = (dx * along.cos() + dy * along.sin()) * wave;
                let texture = ripple * phase.sin() + grain * (random.next() - 0.5);
                let at = 3 * (row * WIDTH + column);
                for (sample, base) in rgb[at..at + 3].iter_mut().zip(colour) {
                    *sample = (base + shade + texture).clamp(0.0, 255.0) as u8;
                }
            }
        }
    }
    rgb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_differ_and_have_all_shades() {
        let (first, second) = (draw(0), draw(1));
        assert_ne!(first, second);
        assert_eq!(first, draw(0));
        let mean = first.iter().map(|v| f64::from(*v)).sum::<f64>() / first.len() as f64;
        let spread = first.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / first.len() as f64;
        assert!((60.0..200.0).contains(&mean) && spread.sqrt() > 30.0, "{mean} {spread}");
    }
}
