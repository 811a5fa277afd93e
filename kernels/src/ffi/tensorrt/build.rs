//! An ONNX file → a plan, with its progress told and stopped from outside.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_void},
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use super::{Error, TensorRt, Why, sys};
use crate::gpu::Gpu;

/// How numbers are computed. Where TensorRT is strongly typed, the ONNX file says it instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floats, their products too.
    Fp32,
    /// 16-bit floats where TensorRT finds them faster.
    Fp16,
    /// 8-bit integers where the ONNX file quantizes (Q/DQ), else 16-bit floats.
    Int8,
}

/// Sizes of an input in one optimization profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Name of the input.
    pub input: String,
    /// Least size of each dimension.
    pub least: Vec<usize>,
    /// What it is made fastest for.
    pub best: Vec<usize>,
    /// Greatest size.
    pub most: Vec<usize>,
}

/// What to build.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// Its numbers.
    pub precision: Precision,
    /// Whether floats come in as fp16. Where TensorRT is strongly typed, the ONNX file must say so too.
    pub is_half_input: bool,
    /// Device memory for one layer at most; TensorRT's default is all of it.
    pub workspace_bytes: Option<u64>,
    /// How hard to look for fast kernels, 0 to 5.
    pub level: Option<u8>,
    /// Whether the plan runs on GPUs of other generations, from Ampere on.
    pub is_hardware_compatible: bool,
    /// Whether the plan runs in other versions of the same major one.
    pub is_version_compatible: bool,
    /// Compute capability of the GPU (`89`, say) that TensorRT-RTX builds for where there is none.
    pub capability: Option<u32>,
    /// One for each size of batch; each names the same inputs. None: the network's sizes are fixed.
    pub profiles: Vec<Vec<Range>>,
    /// Where the ONNX file lies, if it names others.
    pub onnx_path: Option<PathBuf>,
}

impl BuildOptions {
    /// With TensorRT's defaults.
    pub fn new(precision: Precision, profiles: Vec<Vec<Range>>) -> Self {
        Self {
            precision,
            is_half_input: false,
            workspace_bytes: None,
            level: None,
            is_hardware_compatible: false,
            is_version_compatible: false,
            capability: None,
            profiles,
            onnx_path: None,
        }
    }
}

/// How often the caller hears of a build that says nothing itself.
const PATIENCE: Duration = Duration::from_millis(500);

impl TensorRt {
    /// Builds a plan for `gpu`, which takes seconds to minutes. `progress` is told what share is done and
    /// of what, at least twice a second, and gives false to stop; TensorRT 8 cannot be stopped.
    ///
    /// Only TensorRT-RTX builds without a GPU.
    pub fn build(
        &self,
        gpu: Option<&Gpu>,
        onnx: &[u8],
        options: &BuildOptions,
        progress: &mut dyn FnMut(f32, &str) -> bool,
    ) -> Result<Vec<u8>, Error> {
        if gpu.is_none() && !self.version().is_rtx {
            let version = self.version();
            return Err(Error::TensorRt(format!("{version} builds on a GPU only, and none was given")));
        }
        if !self.can_build() {
            let Self { loaded } = self;
            return Err(Error::TensorRt(format!(
                "{self:?} cannot read ONNX files: {}",
                loaded.without_parser
            )));
        }
        let (sender, steps) = mpsc::channel();
        let teller =
            Teller { state: Mutex::new((Phases::default(), sender)), is_stopped: AtomicBool::new(false) };
        let plan = std::thread::scope(|scope| {
            // On a thread of its own, so that the caller's need not cross threads with TensorRT's.
            let work = scope.spawn(|| {
                let _alone = self.loaded.building.lock().unwrap_or_else(PoisonError::into_inner);
                gpu.map_or(Ok(()), Gpu::bind)?;
                self.build_here(onnx, options, &teller)
            });
            let mut last = (0.0, "building".to_owned());
            while !work.is_finished() {
                if let Ok(step) = steps.recv_timeout(PATIENCE) {
                    last = step;
                }
                if !progress(last.0, &last.1) {
                    teller.is_stopped.store(true, Ordering::Relaxed);
                }
            }
            work.join().unwrap_or_else(|_| Err(Error::TensorRt("the builder's thread ended early".into())))
        });
        match plan {
            Err(Error::TensorRt(_)) if teller.is_stopped.load(Ordering::Relaxed) => Err(Error::Stopped),
            plan => plan,
        }
    }

    fn build_here(&self, onnx: &[u8], options: &BuildOptions, teller: &Teller) -> Result<Vec<u8>, Error> {
        let text = |text: &[u8]| {
            CString::new(text).map_err(|_| Error::TensorRt("a name has a zero byte in it".into()))
        };
        let n_ranges = options.profiles.first().map_or(0, Vec::len);
        let mut names = Vec::new();
        let mut ranges = Vec::new();
        for profile in &options.profiles {
            if profile.len() != n_ranges {
                return Err(Error::TensorRt("profiles differ in their inputs".into()));
            }
            for range in profile {
                let n = range.least.len();
                if n > sys::DIMS || range.best.len() != n || range.most.len() != n {
                    return Err(Error::TensorRt(format!("the sizes of {} do not agree", range.input)));
                }
                let name = text(range.input.as_bytes())?;
                let dims = |sizes: &[usize]| {
                    let mut dims = [0; sys::DIMS];
                    dims.iter_mut().zip(sizes).for_each(|(dim, size)| *dim = *size as i64);
                    dims
                };
                ranges.push(sys::Range {
                    input: name.as_ptr(),
                    n_dims: n as i32,
                    least: dims(&range.least),
                    best: dims(&range.best),
                    most: dims(&range.most),
                });
                names.push(name);
            }
        }
        let path =
            options.onnx_path.as_ref().map(|path| text(path.as_os_str().as_encoded_bytes())).transpose()?;
        let raw = sys::BuildOptions {
            onnx: onnx.as_ptr().cast(),
            onnx_size: onnx.len(),
            onnx_path: path.as_ref().map_or(std::ptr::null(), |path| path.as_ptr()),
            workspace_bytes: options.workspace_bytes.unwrap_or(0),
            precision: match options.precision {
                Precision::Fp32 => sys::FP32,
                Precision::Fp16 => sys::FP16,
                Precision::Int8 => sys::INT8,
            },
            is_half_input: options.is_half_input.into(),
            level: options.level.map_or(-1, i32::from),
            is_hardware_compatible: options.is_hardware_compatible.into(),
            is_version_compatible: options.is_version_compatible.into(),
            compute_capability: options.capability.unwrap_or(0) as i32,
            n_profiles: options.profiles.len() as i32,
            n_ranges: n_ranges as i32,
            ranges: ranges.as_ptr(),
            progress: Some(on_step),
            user: std::ptr::from_ref(teller).cast_mut().cast(),
        };
        let (mut plan, mut size, mut why) = (std::ptr::null_mut(), 0, Why::new());
        let shim = &self.loaded.shim;
        // SAFETY: all that `raw` points to (`onnx`, `names`, `ranges`, `path`, `teller`) lives through the
        // call, and TensorRT's threads end with it.
        let is_built = unsafe {
            (shim.build)(self.loaded.raw.as_ptr(), &raw, &mut plan, &mut size, why.at(), why.size()) != 0
        };
        drop(names);
        if !is_built {
            return Err(why.error());
        }
        // SAFETY: the shim says that so many bytes are there; they are freed once, here.
        unsafe {
            let bytes = std::slice::from_raw_parts(plan.cast::<u8>(), size).to_vec();
            (shim.free)(plan);
            Ok(bytes)
        }
    }
}

/// What TensorRT's threads call.
struct Teller {
    state: Mutex<(Phases, mpsc::Sender<(f32, String)>)>,
    is_stopped: AtomicBool,
}

unsafe extern "C" fn on_step(
    user: *mut c_void,
    phase: *const c_char,
    parent: *const c_char,
    step: i32,
    n_steps: i32,
) -> i32 {
    // SAFETY: `build_here` hands a `Teller` to the shim, which lives until the build has ended; the texts
    // are TensorRT's and end with a zero byte.
    let (teller, phase, parent) = unsafe {
        let parent = (!parent.is_null()).then(|| CStr::from_ptr(parent).to_string_lossy().into_owned());
        (&*user.cast::<Teller>(), CStr::from_ptr(phase).to_string_lossy().into_owned(), parent)
    };
    let mut state = teller.state.lock().unwrap_or_else(PoisonError::into_inner);
    let (phases, sender) = &mut *state;
    let share = phases.step(&phase, parent, step, n_steps);
    // Who listened has left when the build is given up.
    let _ = sender.send((share, phase));
    i32::from(!teller.is_stopped.load(Ordering::Relaxed))
}

/// Phases lie in one another: a step of the outer one is all of the inner one.
#[derive(Default)]
struct Phases {
    /// Parent, steps done and steps in all.
    all: HashMap<String, (Option<String>, f32, f32)>,
    most: f32,
}

impl Phases {
    /// Notes a step and gives the share of the whole that is done, which never falls.
    fn step(&mut self, phase: &str, parent: Option<String>, step: i32, n_steps: i32) -> f32 {
        let done = ((step + 1) as f32, n_steps.max(1) as f32);
        self.all.insert(phase.to_owned(), (parent.clone(), done.0, done.1));
        let mut share = (done.0 / done.1).min(1.0);
        let mut above = parent;
        // Names may meet in a circle; phases lie a few deep.
        for _ in 0..8 {
            let Some((next, done, all)) = above.as_ref().and_then(|name| self.all.get(name)) else { break };
            share = ((done + share) / all).min(1.0);
            above = next.clone();
        }
        // A phase whose parent has made no step yet says nothing of the whole.
        if above.is_none() {
            self.most = self.most.max(share);
        }
        self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_counts_inner_phases_and_never_falls() {
        let mut phases = Phases::default();
        assert_eq!(phases.step("outer", None, 0, 4), 0.25);
        assert_eq!(phases.step("inner", Some("outer".into()), 0, 2), 0.375);
        assert_eq!(phases.step("inner", Some("outer".into()), 1, 2), 0.5);
        assert_eq!(phases.step("lost", Some("nobody".into()), 1, 2), 0.5);
        assert_eq!(phases.step("outer", None, 1, 4), 0.5);
        assert_eq!(phases.step("circle", Some("circle".into()), 0, 100), 0.5);
    }
}
