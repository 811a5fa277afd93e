//! YUV to RGB, from the standards' luma coefficients.

use crate::picture::{Colour, Matrix, PixelFormat, Range};

/// `R = luma(y) + rv·(v − centre)` and so on, giving 0..255 for samples of any depth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ToRgb {
    /// Sample value of black.
    pub black: f64,
    /// 255 over the sample distance from black to white.
    pub luma: f64,
    /// Sample value of no colour.
    pub centre: f64,
    /// Red per unit of V.
    pub rv: f64,
    /// Green per unit of U.
    pub gu: f64,
    /// Green per unit of V.
    pub gv: f64,
    /// Blue per unit of U.
    pub bu: f64,
}

impl ToRgb {
    /// For pictures of this format and colour. RGB and gray pictures use `black` and `luma` alone.
    pub fn new(format: PixelFormat, colour: Colour) -> Self {
        // ITU-R BT.601-7, BT.709-6, BT.2020-2 section 3; SMPTE 240M; 47 CFR 73.682.
        let (kr, kb) = match colour.matrix {
            Matrix::Bt601 => (0.299, 0.114),
            Matrix::Bt709 => (0.2126, 0.0722),
            Matrix::Bt2020 => (0.2627, 0.0593),
            Matrix::Smpte240m => (0.212, 0.087),
            Matrix::Fcc => (0.30, 0.11),
        };
        let kg = 1.0 - kr - kb;
        let step = f64::from(1u32 << (format.depth - 8));
        let top = f64::from((1u32 << format.depth) - 1);
        let (black, luma, chroma) = match colour.range {
            Range::Limited => (16.0 * step, 255.0 / (219.0 * step), 255.0 / (224.0 * step)),
            Range::Full => (0.0, 255.0 / top, 255.0 / top),
        };
        Self {
            black,
            luma,
            centre: 128.0 * step,
            rv: 2.0 * (1.0 - kr) * chroma,
            gu: -2.0 * (1.0 - kb) * kb / kg * chroma,
            gv: -2.0 * (1.0 - kr) * kr / kg * chroma,
            bu: 2.0 * (1.0 - kb) * chroma,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::Layout;

    fn rgb(m: &ToRgb, y: f64, u: f64, v: f64) -> [f64; 3] {
        let (l, u, v) = ((y - m.black) * m.luma, u - m.centre, v - m.centre);
        [l + m.rv * v, l + m.gu * u + m.gv * v, l + m.bu * u]
    }

    /// RGB (0..1) to samples by the standard's own forward equations.
    fn forward([r, g, b]: [f64; 3], kr: f64, kb: f64, depth: u8, range: Range) -> [f64; 3] {
        let y = kr * r + (1.0 - kr - kb) * g + kb * b;
        let (pb, pr) = ((b - y) / (2.0 * (1.0 - kb)), (r - y) / (2.0 * (1.0 - kr)));
        let step = f64::from(1u32 << (depth - 8));
        match range {
            Range::Limited => {
                [(219.0 * y + 16.0) * step, (224.0 * pb + 128.0) * step, (224.0 * pr + 128.0) * step]
            }
            Range::Full => {
                let top = f64::from((1u32 << depth) - 1);
                [y * top, pb * top + 128.0 * step, pr * top + 128.0 * step]
            }
        }
    }

    #[test]
    fn every_matrix_range_and_depth_inverts_its_standard() {
        let constants = [
            (Matrix::Bt601, 0.299, 0.114),
            (Matrix::Bt709, 0.2126, 0.0722),
            (Matrix::Bt2020, 0.2627, 0.0593),
        ];
        for (matrix, kr, kb) in constants {
            for range in [Range::Limited, Range::Full] {
                for depth in [8, 10, 12, 16] {
                    let format = PixelFormat { layout: Layout::Planar, subsampling: (0, 0), depth };
                    let m = ToRgb::new(format, Colour { matrix, range, ..Colour::default() });
                    for colour in [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.2, 0.7, 0.4]] {
                        let [y, u, v] = forward(colour, kr, kb, depth, range);
                        for (got, want) in rgb(&m, y, u, v).into_iter().zip(colour) {
                            assert!((got - want * 255.0).abs() < 1e-6, "{matrix:?} {range:?} {depth}: {got}");
                        }
                    }
                }
            }
        }
    }
}
