//! TensorRT, found and loaded at run time: an ONNX file → a plan → an engine → sessions on a stream.
//!
//! In reading order: [`Version`] tells the products apart; [`TensorRt`] is a library with the shim that fits
//! it; [`build`] makes plans; [`Engine`] is a plan on a device; [`Executor`] runs it, with two batches under way.
//!
//! A library once loaded stays: TensorRT keeps the first logger that it is given, and does not survive being
//! unloaded.

pub mod build;
mod engine;
mod executor;
mod session;
mod sys;
mod version;

use std::{
    ffi::{CStr, CString, c_char, c_void},
    fs::File,
    io::Write as _,
    os::fd::{AsRawFd as _, FromRawFd as _},
    path::{Path, PathBuf},
    ptr::NonNull,
    sync::{Mutex, PoisonError},
};

use libloading::Library;

pub use engine::{Engine, Tensor, Type};
pub use executor::{Collected, Executor, SLOTS, Source};
pub use version::Version;

/// Environment variable with the path of another shim than those that are built in.
const SHIM_VARIABLE: &str = "CLIPMILL_TENSORRT_SHIM";

/// Why there is no TensorRT.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// There is no library.
    #[error(
        "TensorRT is not installed: none of {looked_for} can be loaded\nhint: install TensorRT 10 or 11 where the loader finds it{folders}"
    )]
    Library {
        /// Names of libraries.
        looked_for: String,
        /// Where else they may lie, in words.
        folders: String,
    },
    /// There is one, and no shim for it.
    #[error(
        "{version} is here ({}), and this clipmill was built without its headers; it has them of {built}\nhint: `make setup` fetches those of 10, 11 and RTX; TENSORRT_INCLUDE=FOLDER names others; then build again", path.display()
    )]
    Shim {
        /// What is there.
        version: Version,
        /// Its library.
        path: PathBuf,
        /// Kinds that are built in.
        built: String,
    },
    /// There is one that does not load.
    #[error("{} cannot be used: {why}", path.display())]
    Broken {
        /// The library, or the shim.
        path: PathBuf,
        /// What the system or the library says.
        why: String,
    },
}

/// A failing call of TensorRT, with what it said. Nothing that was queued can be trusted after it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Of TensorRT.
    #[error("TensorRT: {0}")]
    TensorRt(String),
    /// Of the driver.
    #[error(transparent)]
    Cuda(#[from] crate::gpu::CudaError),
    /// Somebody asked to stop.
    #[error("stopped")]
    Stopped,
}

/// Takes what a shim's function wrote of its failure.
pub(super) struct Why([u8; 2500]);

impl Why {
    fn new() -> Self {
        Self([0; 2500])
    }

    fn at(&mut self) -> *mut c_char {
        self.0.as_mut_ptr().cast()
    }

    fn size(&self) -> usize {
        self.0.len()
    }

    fn text(&self) -> String {
        let text = CStr::from_bytes_until_nul(&self.0).unwrap_or_default().to_string_lossy();
        if text.is_empty() { "it gives no reason".into() } else { text.trim().to_owned() }
    }

    fn error(&self) -> Error {
        Error::TensorRt(self.text())
    }
}

/// A library and its shim, there until the process ends.
struct Loaded {
    shim: sys::Shim,
    raw: NonNull<sys::RawLibrary>,
    path: PathBuf,
    /// The value of [`SHIM_VARIABLE`] then.
    named_shim: Option<PathBuf>,
    version: Version,
    /// Why it has no parser of ONNX files.
    without_parser: String,
    /// Held while a plan is built: two builds would spoil each other's timings, and mix their messages.
    building: Mutex<()>,
}

// SAFETY: builders, runtimes and the log may be used by several threads; what may not, says so itself.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

static LOADED: Mutex<Vec<&'static Loaded>> = Mutex::new(Vec::new());

/// A TensorRT library that this process can call.
#[derive(Clone, Copy)]
pub struct TensorRt {
    loaded: &'static Loaded,
}

impl std::fmt::Debug for TensorRt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.version(), self.path().display())
    }
}

impl TensorRt {
    /// The newest in the first of `folders` that has one, else the newest that the system's loader finds.
    /// Needs no driver.
    pub fn find(folders: &[PathBuf]) -> Result<Self, Missing> {
        let in_folders = folders.iter().flat_map(|folder| {
            version::LIBRARIES
                .iter()
                .map(|(library, parser)| (folder.join(library), folder.join(parser)))
                .filter(|(library, _)| library.is_file())
        });
        let of_the_system =
            version::LIBRARIES.iter().map(|(library, parser)| (library.into(), parser.into()));
        for (library, parser) in in_folders.chain(of_the_system) {
            // SAFETY: its initializers are those of the TensorRT that the user installed, which is to be
            // called next.
            match unsafe { Library::new(&library) } {
                Ok(handle) => return Self::load(&library, &parser, handle),
                // The loader names what it does not find: the library itself, or another that it needs.
                Err(e)
                    if !super::loader_says(&e)
                        .starts_with(&format!("{}: cannot open", library.display())) =>
                {
                    return Err(Missing::Broken { path: library, why: super::loader_says(&e) });
                }
                Err(_) => {}
            }
        }
        let names = version::LIBRARIES.map(|(library, _)| library);
        let folders =
            folders.iter().map(|folder| format!(", or link its libraries into {}", folder.display()));
        Err(Missing::Library { looked_for: names.join(", "), folders: folders.collect() })
    }

    fn load(library: &Path, parser: &Path, handle: Library) -> Result<Self, Missing> {
        let broken = |path: &Path, why: String| Missing::Broken { path: path.to_owned(), why };
        let named = std::env::var_os(SHIM_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        let mut all = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = all.iter().find(|l| l.path == library && l.named_shim == named) {
            return Ok(Self { loaded });
        }
        type GetVersion = unsafe extern "C" fn() -> i32;
        // SAFETY: the symbol has this type since TensorRT 5.
        let number = unsafe { handle.get::<GetVersion>(b"getInferLibVersion").map(|version| version()) };
        // It stays loaded; the shim opens it once more.
        std::mem::forget(handle);
        let number =
            number.map_err(|e| broken(library, format!("it is no TensorRT: {}", super::loader_says(&e))))?;
        let version = Version::of(number);
        let shim = match &named {
            Some(path) => sys::Shim::open(path).map_err(|why| broken(path, why))?,
            None => built_in(version, library)?,
        };
        let path_of = |path: &Path| CString::new(path.as_os_str().as_encoded_bytes());
        let names = path_of(library).and_then(|library| Ok((library, path_of(parser)?)));
        let (library_name, parser_name) = names.map_err(|e| broken(library, e.to_string()))?;
        preload_beside(library);
        // Its own name is told by the loader where a folder was given and the file is missing.
        let is_parser_there = parser.is_file() || parser.parent() == Some(Path::new(""));
        let mut why = Why::new();
        let mut load = |parser: *const c_char| {
            // SAFETY: the names live through the call, `on_log` as long as the program, and the buffer is as
            // long as is said.
            NonNull::new(unsafe {
                let null = std::ptr::null_mut();
                (shim.load)(library_name.as_ptr(), parser, on_log, null, why.at(), why.size())
            })
        };
        let with_parser = if is_parser_there { load(parser_name.as_ptr()) } else { None };
        // Without a parser, plans of another time can be run.
        let raw = with_parser.or_else(|| load(std::ptr::null()));
        let mut without_parser = why.text();
        if !is_parser_there {
            without_parser = format!("there is no {}", parser.display());
        }
        let raw = raw.ok_or_else(|| broken(library, why.text()))?;
        let loaded = Loaded {
            shim,
            raw,
            path: library.to_owned(),
            named_shim: named,
            version,
            without_parser,
            building: Mutex::default(),
        };
        let loaded: &'static Loaded = Box::leak(Box::new(loaded));
        all.push(loaded);
        Ok(Self { loaded })
    }

    /// What it is.
    pub fn version(&self) -> Version {
        self.loaded.version
    }

    /// The library's file, or its name where the system's loader found it.
    pub fn path(&self) -> &Path {
        &self.loaded.path
    }

    /// The version of the headers that the shim was compiled with, and whose shim it is where it is not
    /// built in.
    pub fn shim(&self) -> (Version, Option<&Path>) {
        // SAFETY: it takes nothing and gives a constant.
        let headers = Version::of(unsafe { (self.loaded.shim.headers)() });
        (headers, self.loaded.named_shim.as_deref())
    }

    /// Whether numbers are as the ONNX file has them, so that fp16 needs an fp16 file.
    pub fn is_strongly_typed(&self) -> bool {
        // SAFETY: as in `shim`.
        unsafe { (self.loaded.shim.is_strongly_typed)() != 0 }
    }

    /// Whether it makes plans of ONNX files; lean runtimes, and those without a parser, only run them.
    pub fn can_build(&self) -> bool {
        // SAFETY: the library is loaded.
        unsafe { (self.loaded.shim.can_build)(self.loaded.raw.as_ptr()) != 0 }
    }
}

/// Kinds of TensorRT that shims are built in for, such as `10, 11, rtx1`.
pub fn built_in_kinds() -> String {
    let kinds: Vec<&str> = sys::SHIMS.iter().map(|(kind, _)| *kind).collect();
    if kinds.is_empty() { "none".into() } else { kinds.join(", ") }
}

/// The shim for a version, from the bytes that this program carries.
fn built_in(version: Version, library: &Path) -> Result<sys::Shim, Missing> {
    let kind = version.kind();
    let Some((_, bytes)) = sys::SHIMS.iter().find(|(k, _)| *k == kind) else {
        return Err(Missing::Shim { version, path: library.to_owned(), built: built_in_kinds() });
    };
    let broken = |why: String| Missing::Broken { path: format!("the shim for {kind}").into(), why };
    // SAFETY: the name is a text that ends with a zero; what it gives is ours, if it is no error.
    let file = unsafe {
        let fd = libc::memfd_create(c"clipmill-tensorrt".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 { Err(std::io::Error::last_os_error()) } else { Ok(File::from_raw_fd(fd)) }
    };
    let written = file.and_then(|mut file| file.write_all(bytes).map(|()| file));
    let file = written.map_err(|e| broken(e.to_string()))?;
    let shim = sys::Shim::open(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd()))).map_err(broken)?;
    // The loader knows libraries by their paths: were the number used again, it would give this one.
    std::mem::forget(file);
    Ok(shim)
}

/// Opens what TensorRT's own libraries look for by name, where they lie in one folder with it that the
/// system's loader does not know.
fn preload_beside(library: &Path) {
    let folder = library.parent().filter(|folder| !folder.as_os_str().is_empty());
    let Some(Ok(entries)) = folder.map(std::fs::read_dir) else { return };
    let is_wanted = |name: &str| {
        name.starts_with("libnvinfer_plugin.so.") || name.starts_with("libnvinfer_builder_resource")
    };
    for entry in entries.flatten().filter(|e| is_wanted(&e.file_name().to_string_lossy())) {
        // What does not load here fails where it is needed, with TensorRT's own message.
        // SAFETY: they are parts of the library that was just loaded.
        if let Ok(part) = unsafe { Library::new(entry.path()) } {
            std::mem::forget(part);
        }
    }
}

/// TensorRT's log: shown where `CLIPMILL_TENSORRT_LOG` says up to which severity (0 to 4). Errors reach who
/// called in any case.
unsafe extern "C" fn on_log(_: *mut c_void, severity: i32, text: *const c_char) {
    static MOST: std::sync::OnceLock<i32> = std::sync::OnceLock::new();
    let most = MOST.get_or_init(|| {
        std::env::var("CLIPMILL_TENSORRT_LOG").ok().and_then(|v| v.parse().ok()).unwrap_or(-1)
    });
    if severity <= *most && !text.is_null() {
        // SAFETY: the shim hands on TensorRT's text, which ends with a zero byte.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        // Somebody asked for it, and a closed stderr is no reason to end.
        let _ = writeln!(std::io::stderr(), "tensorrt [{severity}] {text}");
    }
}

#[cfg(test)]
mod tests;
