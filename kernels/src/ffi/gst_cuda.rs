//! Pictures that GStreamer keeps in a GPU's memory.
//!
//! GStreamer's CUDA library is loaded at run time and never linked: where it is missing, only decoding on
//! the GPU is. It is told to use our context, so that an address of its memory is one of ours. A
//! [`CudaSurface`] keeps its memory mapped, which keeps the decoder's pool from giving it to another
//! picture.

use std::ffi::{c_int, c_void};

use gst::glib::translate::from_glib_full;
use gst_video::{VideoFormat, prelude::VideoBufferExt};
use gstreamer as gst;
use gstreamer_video as gst_video;
use libloading::{Library, Symbol};

use crate::{
    gpu::Gpu,
    picture::{DevicePicture, DevicePlane, Layout, Look, PixelFormat, Plane},
};

/// Why pictures cannot be kept, or not be read, on the GPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// GStreamer's CUDA library is not there, or lacks a function.
    #[error(
        "GStreamer's CUDA library cannot be loaded: {0}\nhint: install gstreamer1.0-plugins-bad 1.22 or newer"
    )]
    NoLibrary(String),
    /// The library is there, and the driver is not.
    #[error("GStreamer cannot use the NVIDIA driver: {0}")]
    NoDriver(&'static str),
    /// A buffer holds something else.
    #[error("{0}")]
    NotSupported(String),
}

const LIBRARY: &str = "libgstcuda-1.0.so.0";

/// `GST_MAP_CUDA` of gstcudamemory.h: the mapped address is the device's.
const MAP_CUDA: u32 = gst::ffi::GST_MAP_FLAG_LAST << 1;

/// `gst_cuda_memory_sync` of gstcudamemory.h, since 1.24: waits for what the decoder queued for a memory.
///
/// Until 1.22 decoders wait themselves before they deliver. Later ones only note that somebody must, and
/// mapping for the device does not.
type Synchronize = unsafe extern "C" fn(*mut gst::ffi::GstMemory);

/// Makes GStreamer's elements use one CUDA context.
///
/// Clones share it.
#[derive(Clone, Debug)]
pub struct GstCuda {
    context: gst::Context,
    device: u32,
    sync: Option<Synchronize>,
    /// Whose context it is; GStreamer does not keep it alive.
    _gpu: Option<Gpu>,
}

impl GstCuda {
    /// With the primary context of `gpu`, so that our kernels can read what the elements decode.
    pub fn sharing(gpu: &Gpu) -> Result<Self, Error> {
        let (raw, device) = gpu.raw();
        // SAFETY: by gstcudacontext.h it takes a context and its device and gives a new object or null; the
        // context outlives the object's users, who hold a clone of `gpu` by this.
        Self::with(gpu.ordinal() as u32, Some(gpu.clone()), |library| unsafe {
            let wrap: Symbol<unsafe extern "C" fn(*mut c_void, c_int) -> *mut c_void> =
                library.get(b"gst_cuda_context_new_wrapped\0")?;
            Ok(wrap(raw, device))
        })
    }

    /// With a context that GStreamer makes itself, where nobody else needs its pictures on the device.
    pub fn own(device: u32) -> Result<Self, Error> {
        // SAFETY: by gstcudacontext.h it takes a device's number and gives a new object or null.
        Self::with(device, None, |library| unsafe {
            let new: Symbol<unsafe extern "C" fn(u32) -> *mut c_void> =
                library.get(b"gst_cuda_context_new\0")?;
            Ok(new(device))
        })
    }

    /// Loads the library and makes what tells elements of the context that `new` gives.
    fn with(
        device: u32,
        gpu: Option<Gpu>,
        new: impl FnOnce(&Library) -> Result<*mut c_void, libloading::Error>,
    ) -> Result<Self, Error> {
        gst::init().map_err(|e| Error::NoLibrary(e.to_string()))?;
        let missing = |e: libloading::Error| Error::NoLibrary(e.to_string());
        // SAFETY: GStreamer's library, by its versioned name; its initializers register types.
        let library = unsafe { Library::new(LIBRARY) }.map_err(missing)?;
        // SAFETY: the signatures are those of gstcudaloader.h, gstcudamemory.h and gstcudautils.h, which did
        // not change since 1.22; the context is an object of the library's, and the result is ours.
        let context = unsafe {
            let load: Symbol<unsafe extern "C" fn() -> c_int> =
                library.get(b"gst_cuda_load_library\0").map_err(missing)?;
            let init: Symbol<unsafe extern "C" fn()> =
                library.get(b"gst_cuda_memory_init_once\0").map_err(missing)?;
            let tell: Symbol<unsafe extern "C" fn(*mut c_void) -> *mut gst::ffi::GstContext> =
                library.get(b"gst_context_new_cuda_context\0").map_err(missing)?;
            if load() == 0 {
                return Err(Error::NoDriver("libcuda.so.1 cannot be loaded"));
            }
            init();
            let cuda = new(&library).map_err(missing)?;
            if cuda.is_null() {
                return Err(Error::NoDriver("there is no context for the device"));
            }
            let context: gst::Context = from_glib_full(tell(cuda));
            // The context of GStreamer's kind holds a reference of its own.
            gst::glib::gobject_ffi::g_object_unref(cuda.cast());
            context
        };
        // SAFETY: the signature is that of gstcudamemory.h, with the memory's base type.
        let sync = unsafe { library.get::<Synchronize>(b"gst_cuda_memory_sync\0") }.ok().map(|sync| *sync);
        let (major, minor, ..) = gst::version();
        if sync.is_none() && (major, minor) >= (1, 24) {
            return Err(Error::NoLibrary("gst_cuda_memory_sync is missing".into()));
        }
        // The plugin that decodes needs it as well, and types must not vanish.
        std::mem::forget(library);
        Ok(Self { context, device, sync, _gpu: gpu })
    }

    /// What elements are to be given before they start.
    pub fn context(&self) -> &gst::Context {
        &self.context
    }

    /// The device's number, as the driver counts them.
    pub fn device(&self) -> u32 {
        self.device
    }
}

/// A decoded picture on the device, borrowed from its decoder until dropped.
///
/// Whoever reads it on a stream keeps it until the stream has come so far.
pub struct CudaSurface {
    buffer: gst::Buffer,
    map: gst::ffi::GstMapInfo,
    info: gst_video::VideoInfo,
    planes: [(usize, usize); 2],
    /// Its memory is returned, and freed, in the device's context: dropped last.
    _cuda: GstCuda,
}

// SAFETY: the buffer is a counted reference, the map a lock for reading; neither is bound to a thread, and
// nothing is written through them.
unsafe impl Send for CudaSurface {}
// SAFETY: as above; all methods only read.
unsafe impl Sync for CudaSurface {}

impl CudaSurface {
    /// Maps a buffer of an element's, which was told of `cuda` and whose caps said `info`, for reading on
    /// the device. What the decoder queued for it is done then.
    pub fn map(buffer: gst::Buffer, info: &gst_video::VideoInfo, cuda: &GstCuda) -> Result<Self, Error> {
        let planes = planes(&buffer, info)?;
        let mut map = std::mem::MaybeUninit::<gst::ffi::GstMapInfo>::uninit();
        // SAFETY: the buffer is owned and lives as long as the map; on success the map is written.
        let map = unsafe {
            let flags = gst::ffi::GST_MAP_READ | MAP_CUDA;
            if gst::ffi::gst_buffer_map(buffer.as_mut_ptr(), map.as_mut_ptr(), flags) == 0 {
                return Err(Error::NotSupported("a picture that cannot be mapped".into()));
            }
            map.assume_init()
        };
        if let Some(sync) = cuda.sync {
            // SAFETY: `planes` checked that all of the buffer's memory is CUDA's.
            unsafe { synchronize(&buffer, sync) };
        }
        Ok(Self { buffer, map, info: info.clone(), planes, _cuda: cuda.clone() })
    }

    /// Samples across and down.
    pub fn size(&self) -> (usize, usize) {
        (self.info.width() as usize, self.info.height() as usize)
    }

    /// NV12 or P010.
    pub fn format(&self) -> PixelFormat {
        pixel_format(self.info.format())
    }

    /// Whether the two fields are two moments, and if so, whether the upper one is shown first.
    pub fn top_field_first(&self) -> Option<bool> {
        let flags = self.buffer.video_flags();
        let is_interlaced = flags.contains(gst_video::VideoBufferFlags::INTERLACED);
        is_interlaced.then(|| flags.contains(gst_video::VideoBufferFlags::TFF))
    }

    /// The picture on the device. `look` says what its samples mean; size and format are its own.
    pub fn picture(&self, look: Look) -> DevicePicture<'_> {
        let (width, height) = self.size();
        let [y, uv] = self
            .planes
            .map(|(offset, stride)| DevicePlane { address: self.map.data as u64 + offset as u64, stride });
        let look = Look { width, height, format: self.format(), ..look };
        // SAFETY: `map` checked that both planes lie in the memory, which stays mapped while this lives. The
        // decoders' pools begin rows at multiples of the texture alignment, and so end them.
        unsafe { DevicePicture::new([y, uv, DevicePlane::default()], look) }
    }

    /// Copies the picture to the host and shows its planes: slow, for those who need it there.
    pub fn with_host_planes<R>(&self, see: impl FnOnce([Plane<'_>; 2]) -> R) -> Result<R, Error> {
        let host = self.buffer.map_readable();
        let host =
            host.map_err(|_| Error::NotSupported("a picture that cannot be copied to the host".into()))?;
        let plane = |i: usize| {
            let (offset, stride) = self.planes[i];
            Plane { data: host.get(offset..).unwrap_or(&[]), stride }
        };
        Ok(see([plane(0), plane(1)]))
    }
}

impl Drop for CudaSurface {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` above, once, and the buffer lives until after this.
        unsafe { gst::ffi::gst_buffer_unmap(self.buffer.as_mut_ptr(), &mut self.map) }
    }
}

/// Offset and stride of the planes of a picture that lies in the device's memory, checked to be within it.
fn planes(buffer: &gst::Buffer, info: &gst_video::VideoInfo) -> Result<[(usize, usize); 2], Error> {
    let refused = |what: &str| Error::NotSupported(what.into());
    if !matches!(info.format(), VideoFormat::Nv12 | VideoFormat::P01010le) {
        return Err(Error::NotSupported(format!("{} pictures on the device", info.format())));
    }
    if buffer.n_memory() != 1 {
        return Err(refused("a picture in several pieces of memory"));
    }
    // On other memory, the flag is ignored and the address one of the host's.
    // SAFETY: the buffer is owned and has a memory; the name ends with a zero byte.
    let is_cuda = unsafe {
        let memory = gst::ffi::gst_buffer_peek_memory(buffer.as_mut_ptr(), 0);
        gst::ffi::gst_memory_is_type(memory, c"gst.cuda.memory".as_ptr()) != 0
    };
    if !is_cuda {
        return Err(refused("a picture that is not in the device's memory"));
    }
    let planes = {
        let meta = buffer.meta::<gst_video::VideoMeta>();
        let (offset, stride) = match &meta {
            Some(meta) => (meta.offset(), meta.stride()),
            None => (info.offset(), info.stride()),
        };
        let (Some(offset), Some(stride)) = (offset.first_chunk::<2>(), stride.first_chunk::<2>()) else {
            return Err(refused("a picture without two planes"));
        };
        [0, 1].map(|i| (offset[i], usize::try_from(stride[i]).unwrap_or(0)))
    };
    let rows = [info.height() as usize, (info.height() as usize).div_ceil(2)];
    let is_whole = |i: usize| {
        let (offset, stride) = planes[i];
        let row =
            (info.width() as usize).next_multiple_of(1 + i) * pixel_format(info.format()).sample_bytes();
        stride >= row && rows[i] > 0 && offset + stride * (rows[i] - 1) + row <= buffer.size()
    };
    if !(is_whole(0) && is_whole(1)) {
        return Err(refused("a picture that is larger than its memory"));
    }
    Ok(planes)
}

/// Waits for what is queued for a buffer's memory.
///
/// # Safety
///
/// `sync` takes memory of the buffer's kind.
unsafe fn synchronize(buffer: &gst::Buffer, sync: Synchronize) {
    for i in 0..buffer.n_memory() {
        // SAFETY: the buffer is borrowed and has a memory of this number; by contract `sync` takes it.
        unsafe { sync(gst::ffi::gst_buffer_peek_memory(buffer.as_mut_ptr(), i as u32)) }
    }
}

fn pixel_format(format: VideoFormat) -> PixelFormat {
    // The ten bits of P010 are the upper ones of sixteen.
    let depth = if format == VideoFormat::P01010le { 16 } else { 8 };
    PixelFormat { layout: Layout::SemiPlanar, subsampling: (1, 1), depth }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_on_the_device_is_refused() {
        gst::init().unwrap();
        let info = |format| gst_video::VideoInfo::builder(format, 64, 32).build().unwrap();
        let buffer = |info: &gst_video::VideoInfo| gst::Buffer::with_size(info.size()).unwrap();
        for (format, why) in [(VideoFormat::Nv12, "not in the device's memory"), (VideoFormat::Y444, "Y444")]
        {
            let info = info(format);
            let refused = planes(&buffer(&info), &info).err().unwrap();
            assert!(refused.to_string().contains(why), "{refused}");
        }
    }

    #[test]
    fn every_memory_is_waited_for() {
        use std::sync::atomic::{AtomicU32, Ordering};
        static N: AtomicU32 = AtomicU32::new(0);
        unsafe extern "C" fn count(memory: *mut gst::ffi::GstMemory) {
            N.fetch_add(u32::from(!memory.is_null()), Ordering::Relaxed);
        }
        gst::init().unwrap();
        let mut buffer = gst::Buffer::with_size(4).unwrap();
        buffer.get_mut().unwrap().append_memory(gst::Memory::with_size(4));
        // SAFETY: it takes any memory.
        unsafe { synchronize(&buffer, count) };
        assert_eq!(N.load(Ordering::Relaxed), 2);
    }
}
