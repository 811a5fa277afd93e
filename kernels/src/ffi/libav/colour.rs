//! FFmpeg's numbers for colours and orientation, in our terms.

use super::sys;
use crate::picture::{Colour, Matrix, Orientation, Range, Siting};

/// What the stream says of its colours, and the usual default where it says nothing.
///
/// The numbers are those of ITU-T H.273, which FFmpeg uses for matrices and primaries.
pub(super) fn colour(raw: &sys::Picture, unspecified: Matrix) -> Colour {
    let matrix = match raw.matrix {
        1 => Matrix::Bt709,
        4 => Matrix::Fcc,
        5 | 6 => Matrix::Bt601,
        7 => Matrix::Smpte240m,
        9 | 10 => Matrix::Bt2020,
        // Primaries without a matrix: those of BT.2020 have no other.
        _ if raw.primaries == 9 => Matrix::Bt2020,
        _ => unspecified,
    };
    let is_gray = raw.layout == sys::GRAY;
    let range = match raw.range {
        1 => Range::Limited,
        2 => Range::Full,
        _ if raw.is_rgb != 0 || is_gray => Range::Full,
        _ => Range::Limited,
    };
    // AVChromaLocation: left, centre, top left, top, bottom left, bottom.
    let siting = match raw.chroma_location {
        1 => Siting { cosited_across: true, cosited_down: false },
        2 => Siting { cosited_across: false, cosited_down: false },
        3 => Siting { cosited_across: true, cosited_down: true },
        4 => Siting { cosited_across: false, cosited_down: true },
        _ => Colour::default().siting,
    };
    Colour { matrix, range, siting }
}

/// What a display matrix (ISO 14496-12, 8.2.2) does to the picture: quarter turns and mirrors; anything
/// between is left out, as players do.
pub(super) fn orientation(matrix: &[i32; 9]) -> Orientation {
    // (x, y) of the stored picture is shown at (a·x + c·y, b·x + d·y).
    let [a, b, _, c, d, ..] = *matrix;
    if a.unsigned_abs().max(d.unsigned_abs()) >= b.unsigned_abs().max(c.unsigned_abs()) {
        Orientation { transpose: false, flip_across: a < 0, flip_down: d < 0 }
    } else {
        Orientation { transpose: true, flip_across: c < 0, flip_down: b < 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_matrices_turn_and_mirror() {
        const ONE: i32 = 1 << 16;
        let check = |abcd: [i32; 4], want: Orientation| {
            let [a, b, c, d] = abcd.map(|v| v * ONE);
            assert_eq!(orientation(&[a, b, 0, c, d, 0, 0, 0, 1 << 30]), want, "{abcd:?}");
        };
        check([1, 0, 0, 1], Orientation::default());
        // A phone held upright: x goes down, y to the left.
        check([0, 1, -1, 0], Orientation::rotated(1));
        check([-1, 0, 0, -1], Orientation::rotated(2));
        check([0, -1, 1, 0], Orientation::rotated(3));
        check([-1, 0, 0, 1], Orientation::default().mirrored());
        assert_eq!(orientation(&[0; 9]), Orientation::default());
    }
}
