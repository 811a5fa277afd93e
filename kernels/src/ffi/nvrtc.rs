//! NVRTC, NVIDIA's compiler as a library, loaded at run time from wherever it is found.
//!
//! cudarc's own binding knows fixed names only, panics where there is none, and gives no machine code.

use std::{
    env,
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::{Path, PathBuf},
    ptr,
};

use libloading::Library;

/// What NVRTC could not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The library is not there.
    #[error(
        "there is no NVRTC: {0}\nhint: `make gpu` installs it, or CUDA does; CLIPMILL_NVRTC names another libnvrtc.so"
    )]
    Missing(String),
    /// A source that does not compile.
    #[error("NVRTC does not compile {name}: {log}")]
    Source {
        /// Of the kernel.
        name: String,
        /// What the compiler says.
        log: String,
    },
    /// Any other failure.
    #[error("{call}: {meaning}")]
    Call {
        /// The function.
        call: &'static str,
        /// What it says.
        meaning: String,
    },
}

type Program = *mut c_void;
type Code = c_int;

/// The functions in use, by their names in `nvrtc.h`.
struct Functions {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Code,
    n_archs: unsafe extern "C" fn(*mut c_int) -> Code,
    archs: unsafe extern "C" fn(*mut c_int) -> Code,
    meaning: unsafe extern "C" fn(Code) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Code,
    destroy: unsafe extern "C" fn(*mut Program) -> Code,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Code,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> Code,
    log: unsafe extern "C" fn(Program, *mut c_char) -> Code,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Code,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> Code,
    ptx_size: unsafe extern "C" fn(Program, *mut usize) -> Code,
    ptx: unsafe extern "C" fn(Program, *mut c_char) -> Code,
}

impl Functions {
    /// # Safety
    /// `library` is NVRTC.
    unsafe fn of(library: &Library) -> Result<Self, libloading::Error> {
        // SAFETY: the caller's; the types above are those of `nvrtc.h`, unchanged since CUDA 11.2. The
        // pointers are used while the library is held beside them.
        unsafe {
            Ok(Self {
                version: *library.get(b"nvrtcVersion")?,
                n_archs: *library.get(b"nvrtcGetNumSupportedArchs")?,
                archs: *library.get(b"nvrtcGetSupportedArchs")?,
                meaning: *library.get(b"nvrtcGetErrorString")?,
                create: *library.get(b"nvrtcCreateProgram")?,
                destroy: *library.get(b"nvrtcDestroyProgram")?,
                compile: *library.get(b"nvrtcCompileProgram")?,
                log_size: *library.get(b"nvrtcGetProgramLogSize")?,
                log: *library.get(b"nvrtcGetProgramLog")?,
                cubin_size: *library.get(b"nvrtcGetCUBINSize")?,
                cubin: *library.get(b"nvrtcGetCUBIN")?,
                ptx_size: *library.get(b"nvrtcGetPTXSize")?,
                ptx: *library.get(b"nvrtcGetPTX")?,
            })
        }
    }
}

/// The compiler.
pub struct Nvrtc {
    functions: Functions,
    version: (u32, u32),
    path: PathBuf,
    // Last, so that it outlives the functions.
    _library: Library,
}

/// A kernel's source and the header that it includes.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Such as `preprocess.cu`.
    pub name: &'a str,
    /// Its text.
    pub text: &'a str,
    /// Names and texts of headers.
    pub headers: &'a [(&'a str, &'a str)],
}

/// What comes of a source.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Machine code, or PTX, which ends with a zero byte.
    pub code: Vec<u8>,
    /// What the compiler says: nothing, or with `--ptxas-options=-v` what each kernel takes of a device.
    pub log: String,
}

/// For what device code is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Machine code for this compute capability, such as 90.
    Machine(u32),
    /// PTX, from which the driver makes code for this capability or a later one.
    Ptx(u32),
}

impl Target {
    /// Such as `sm_90`.
    pub fn name(self) -> String {
        match self {
            Self::Machine(capability) => format!("sm_{capability}"),
            Self::Ptx(capability) => format!("compute_{capability}"),
        }
    }
}

impl Nvrtc {
    /// The library that `CLIPMILL_NVRTC` names, else one in `folders`, else the system's. None of a later major
    /// than `newest`, whose code the driver would not take.
    pub fn find(folders: &[PathBuf], newest: Option<u32>) -> Result<Self, Error> {
        if let Some(named) = env::var_os("CLIPMILL_NVRTC").filter(|path| !path.is_empty()) {
            return Self::open(Path::new(&named));
        }
        const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
        let system = ["", "/usr/local/cuda/lib64"].map(PathBuf::from);
        let mut missing = Error::Missing("libnvrtc.so.13 was not found".into());
        for folder in folders.iter().chain(&system) {
            for name in NAMES {
                match Self::open(&folder.join(name)) {
                    Ok(found) if newest.is_none_or(|newest| found.version.0 <= newest) => return Ok(found),
                    Ok(found) => {
                        let (major, minor) = found.version;
                        missing = Error::Missing(format!(
                            "{} is of CUDA {major}.{minor}, which is newer than the driver",
                            found.path.display()
                        ));
                    }
                    // One that is there and cannot be loaded says more than one that is not.
                    Err(e) if folder.join(name).is_file() => missing = e,
                    Err(_) => (),
                }
            }
        }
        Err(missing)
    }

    /// The library in a file, or by a name that the loader finds.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let missing = |e: libloading::Error| Error::Missing(super::loader_says(&e));
        // SAFETY: libraries of these names are NVRTC's, whose initializers are NVIDIA's.
        let library = unsafe { Library::new(path) }.map_err(missing)?;
        // SAFETY: as above.
        let functions = unsafe { Functions::of(&library) }.map_err(missing)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: it writes two numbers.
        let code = unsafe { (functions.version)(&mut major, &mut minor) };
        let nvrtc = Self {
            functions,
            version: (major.unsigned_abs(), minor.unsigned_abs()),
            path: path.to_owned(),
            _library: library,
        };
        nvrtc.check("nvrtcVersion", code)?;
        nvrtc.load_builtins();
        Ok(nvrtc)
    }

    /// NVRTC opens a second library by its bare name, and so finds it in the loader's folders only, unless it
    /// is loaded already. Where it is not beside NVRTC the loader may still know it, and if not, compiling
    /// says so.
    fn load_builtins(&self) {
        let (Some(folder), (major, minor)) = (self.path.parent(), self.version) else { return };
        let path = folder.join(format!("libnvrtc-builtins.so.{major}.{minor}"));
        if !path.is_file() {
            return;
        }
        // SAFETY: a library of this name is NVRTC's, whose initializers are NVIDIA's.
        if let Ok(builtins) = unsafe { Library::new(path) } {
            // NVRTC keeps using it.
            std::mem::forget(builtins);
        }
    }

    /// Such as `(13, 0)`.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The best that it can make for a device of this capability, such as 90.
    pub fn target(&self, capability: u32) -> Result<Target, Error> {
        let mut n = 0;
        // SAFETY: it writes one number.
        self.check("nvrtcGetNumSupportedArchs", unsafe { (self.functions.n_archs)(&mut n) })?;
        let mut archs = vec![0; usize::try_from(n).unwrap_or(0)];
        // SAFETY: there is room for as many as it just said.
        self.check("nvrtcGetSupportedArchs", unsafe { (self.functions.archs)(archs.as_mut_ptr()) })?;
        let known = archs.iter().map(|arch| arch.unsigned_abs());
        match known.filter(|arch| *arch <= capability).max() {
            Some(arch) if arch == capability => Ok(Target::Machine(arch)),
            // The device is newer than the compiler.
            Some(arch) => Ok(Target::Ptx(arch)),
            None => Err(Error::Call {
                call: "nvrtcGetSupportedArchs",
                meaning: format!(
                    "CUDA {}.{} has no code for sm_{capability}",
                    self.version.0, self.version.1
                ),
            }),
        }
    }

    /// Compiles a source, with options such as `--std=c++17`.
    pub fn compile(&self, source: Source<'_>, target: Target, options: &[&str]) -> Result<Compiled, Error> {
        let text = |text: &str| {
            CString::new(text)
                .map_err(|_| Error::Call { call: "nvrtcCreateProgram", meaning: "a zero byte".into() })
        };
        let headers: Vec<(CString, CString)> = source
            .headers
            .iter()
            .map(|(name, body)| Ok((text(name)?, text(body)?)))
            .collect::<Result<_, Error>>()?;
        let names: Vec<*const c_char> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
        let bodies: Vec<*const c_char> = headers.iter().map(|(_, body)| body.as_ptr()).collect();
        let (body, name) = (text(source.text)?, text(source.name)?);
        let mut program: Program = ptr::null_mut();
        // SAFETY: all texts end with zero and live until the end of this function; there are as many names
        // as bodies.
        let code = unsafe {
            let n = headers.len() as c_int;
            (self.functions.create)(
                &mut program,
                body.as_ptr(),
                name.as_ptr(),
                n,
                bodies.as_ptr(),
                names.as_ptr(),
            )
        };
        self.check("nvrtcCreateProgram", code)?;
        let made = self.compile_program(program, source.name, target, options);
        // SAFETY: it was created above and is used no more.
        unsafe { (self.functions.destroy)(&mut program) };
        made
    }

    fn compile_program(
        &self,
        program: Program,
        name: &str,
        target: Target,
        options: &[&str],
    ) -> Result<Compiled, Error> {
        let arch = format!("--gpu-architecture={}", target.name());
        let options: Vec<CString> = options
            .iter()
            .copied()
            .chain([arch.as_str()])
            .filter_map(|option| CString::new(option).ok())
            .collect();
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is open, the options end with zero and live through the call.
        let code = unsafe { (self.functions.compile)(program, pointers.len() as c_int, pointers.as_ptr()) };
        let log = self.read(program, "nvrtcGetProgramLog", self.functions.log_size, self.functions.log)?;
        let log = String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n']).to_owned();
        if code != 0 {
            return Err(Error::Source { name: name.into(), log });
        }
        let code = match target {
            Target::Machine(_) => {
                self.read(program, "nvrtcGetCUBIN", self.functions.cubin_size, self.functions.cubin)
            }
            Target::Ptx(_) => self.read(program, "nvrtcGetPTX", self.functions.ptx_size, self.functions.ptx),
        };
        Ok(Compiled { code: code?, log })
    }

    fn read(
        &self,
        program: Program,
        call: &'static str,
        size: unsafe extern "C" fn(Program, *mut usize) -> Code,
        take: unsafe extern "C" fn(Program, *mut c_char) -> Code,
    ) -> Result<Vec<u8>, Error> {
        let mut len = 0;
        // SAFETY: the program is open; it writes one number.
        self.check(call, unsafe { size(program, &mut len) })?;
        let mut bytes = vec![0u8; len];
        // SAFETY: there is room for as many bytes as it just said.
        self.check(call, unsafe { take(program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }

    fn check(&self, call: &'static str, code: Code) -> Result<(), Error> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: it gives a static text for every number.
        let meaning = unsafe { (self.functions.meaning)(code) };
        let meaning = if meaning.is_null() {
            format!("error {code}")
        } else {
            // SAFETY: as above.
            unsafe { CStr::from_ptr(meaning) }.to_string_lossy().into_owned()
        };
        Err(Error::Call { call, meaning })
    }
}
