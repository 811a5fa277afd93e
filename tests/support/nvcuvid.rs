//! What tests tell the fake NVDEC of `tests/fake_gpu/nvcuvid.cpp`, and what they ask it.

use std::sync::atomic::{AtomicI32, Ordering};

use kernels::{ffi::gst_cuda::GstCuda, gpu::Gpu};
use stages::decode::nvdec::Nvdec;

use super::fake_gpu;

/// `struct Fake` of nvcuvid.cpp. Countdowns: the n-th call fails, and all after it; 0 is never.
#[repr(C)]
pub struct Fake {
    /// Opening a decoder.
    pub fail_create: AtomicI32,
    /// Decoding a picture.
    pub fail_decode: AtomicI32,
    /// Mapping a decoded picture.
    pub fail_map: AtomicI32,
    /// Decoding hangs until this is 0 again.
    pub hang_decode: AtomicI32,
    /// The parser overlooks one packet.
    pub lose_picture: AtomicI32,
    /// One decoder hangs until this is 0 again, and no other.
    pub hang_one: AtomicI32,
    n_created: AtomicI32,
    n_destroyed: AtomicI32,
    n_decoded: AtomicI32,
    n_mapped: AtomicI32,
    n_unmapped: AtomicI32,
}

/// What the fake counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Decoders opened.
    pub created: i32,
    /// Decoders closed.
    pub destroyed: i32,
    /// Pictures decoded.
    pub decoded: i32,
    /// Pictures mapped and not unmapped again.
    pub mapped: i32,
}

impl Fake {
    /// The fake of this process, which must have been started with it.
    pub fn get() -> &'static Self {
        // SAFETY: test code of ours, whose symbol is a struct of this layout and lives as long as the process.
        unsafe {
            let library = libloading::Library::new(fake_gpu::folder().join("libnvcuvid.so.1")).unwrap();
            let fake = *library.get::<*const Self>(b"fake_nvcuvid\0").unwrap();
            std::mem::forget(library);
            &*fake
        }
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        let n = |n: &AtomicI32| n.load(Ordering::SeqCst);
        Counts {
            created: n(&self.n_created),
            destroyed: n(&self.n_destroyed),
            decoded: n(&self.n_decoded),
            mapped: n(&self.n_mapped) - n(&self.n_unmapped),
        }
    }
}

/// The decoders of the fake device.
pub fn nvdec(n_sessions: usize) -> Nvdec {
    Nvdec::new(GstCuda::sharing(&Gpu::open(0).unwrap()).unwrap(), n_sessions)
}
