//! Floats that start at a cache line.
//!
//! A 64-byte load or store that crosses a line costs two; in an unaligned buffer every one does.

/// Sixteen floats, one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A growing buffer of floats, aligned to 64 bytes.
#[derive(Clone, Debug, Default)]
pub struct AlignedFloats {
    lines: Vec<Line>,
}

impl AlignedFloats {
    /// With room for `len` floats, all zero.
    pub fn zeroed(len: usize) -> Self {
        Self { lines: vec![Line([0.0; 16]); len.div_ceil(16)] }
    }

    /// The first `len` floats; new ones are zero, old ones keep what they held.
    pub fn sized(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(16);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0.0; 16]));
        }
        &mut self.floats_mut()[..len]
    }

    /// All floats, a multiple of sixteen.
    pub fn floats(&self) -> &[f32] {
        // SAFETY: a `Line` is sixteen floats and nothing else, so the lines are that many floats in a
        // row; the borrow of `self` is the slice's.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * 16) }
    }

    /// All floats, a multiple of sixteen.
    pub fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `floats`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * 16) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_aligned_and_keeps_its_floats() {
        let mut buffer = AlignedFloats::zeroed(5);
        buffer.sized(5)[4] = 7.0;
        assert_eq!(buffer.sized(40)[4], 7.0);
        assert_eq!(buffer.floats().as_ptr() as usize % 64, 0);
        assert_eq!(buffer.floats().len(), 48);
    }
}
