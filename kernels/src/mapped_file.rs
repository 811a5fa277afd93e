//! A file in memory, released behind the reader.

use std::{fs::File, io, ops::Range};

use memmap2::{Mmap, UncheckedAdvice};

/// A read-only memory map of a whole file.
///
/// The file must not shrink while it is mapped: reading past its new end raises `SIGBUS`, as with
/// every program that maps files.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps all of `file`, which must not be empty.
    pub fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the map is only ever read as bytes, and any byte is a valid `u8`. Writers of the
        // file can change what we read; decoders treat every input as hostile, so no invariant of
        // ours depends on the bytes staying the same.
        let map = unsafe { Mmap::map(file)? };
        Ok(Self { map })
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Gives the pages of `range` back. They are read again from the file when touched again, so
    /// memory in use stays small behind a reader that goes forward.
    pub fn release(&self, range: Range<usize>) {
        let end = range.end.min(self.map.len());
        if range.start >= end {
            return;
        }
        // SAFETY: the map is shared, read-only and backed by a file, so dropped pages are re-read
        // with the same contents; no slice over them becomes invalid.
        // Advice is a hint: a kernel that refuses it costs memory, not correctness.
        let _ = unsafe {
            self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, end - range.start)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn released_pages_read_the_same_again() {
        let path = std::env::temp_dir().join(format!("clipmill-map-{}", std::process::id()));
        File::create(&path).unwrap().write_all(&vec![7u8; 300_000]).unwrap();
        let mapped = MappedFile::new(&File::open(&path).unwrap()).unwrap();
        mapped.release(0..400_000);
        mapped.release(5..5);
        assert!(mapped.bytes().iter().all(|b| *b == 7));
        std::fs::remove_file(path).unwrap();
    }
}
