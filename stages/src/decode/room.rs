//! The memory of a batch and what puts pictures there, in the model's form: on the host or on a device.

use anyhow::Result;
use kernels::{
    device::{DeviceBuffer, DevicePool, Pinned},
    gpu::CudaError,
    picture::Reading,
    preprocess::{
        Preprocessor, Recipe,
        on_gpu::{Failed, Float, GpuPreprocessor},
    },
};

use super::surface::Surface;
use crate::{
    lane::Lane,
    tensors::{DeviceTensors, TensorBuffer, TensorPool, Tensors},
};

/// Why a picture was not put into its place.
#[derive(Debug)]
pub(super) enum NotPut {
    /// It cannot be converted.
    Picture(String),
    /// Nothing can.
    Fault(anyhow::Error),
}

/// Room for one batch after another.
pub(super) enum Room {
    Host(Box<HostRoom>),
    Device(Box<DeviceRoom>),
}

impl Room {
    /// For `capacity` tensors at a time.
    pub(super) fn open(recipe: &Recipe, capacity: usize, lane: Option<&Lane>) -> Result<Self> {
        Ok(match lane {
            None => Self::Host(Box::new(HostRoom::new(recipe, capacity))),
            Some(lane) => Self::Device(Box::new(DeviceRoom::open(recipe, lane)?)),
        })
    }

    /// Memory that comes back from other batches, where it is bounded.
    pub(super) fn pool(&self) -> Option<DevicePool> {
        match self {
            Self::Host(_) => None,
            Self::Device(room) => Some(room.lane.pool.clone()),
        }
    }

    /// Whether there is memory for the batch: a device's may have to come back first.
    pub(super) fn is_there(&mut self) -> bool {
        match self {
            Self::Host(_) => true,
            Self::Device(room) => room.is_there(),
        }
    }

    /// Converts a picture into place number `at`. Only where [`Self::is_there`].
    pub(super) fn put(&mut self, at: usize, surface: Surface, reading: Reading) -> Result<(), NotPut> {
        match self {
            Self::Host(room) => room.put(at, &surface, reading),
            Self::Device(room) => room.put(at, surface, reading),
        }
    }

    /// Lets go of all surfaces: their decoder ends, or is lent to another clip.
    pub(super) fn give_back(&mut self) -> Result<()> {
        match self {
            Self::Host(_) => Ok(()),
            Self::Device(room) => Ok(room.convert()?),
        }
    }

    /// The batch's tensors, all in place.
    pub(super) fn take(&mut self) -> Result<Tensors> {
        Ok(match self {
            Self::Host(room) => Tensors::Host(std::mem::take(&mut room.tensors)),
            Self::Device(room) => room.take()?,
        })
    }
}

/// On the host.
pub(super) struct HostRoom {
    preprocessor: Preprocessor,
    pool: TensorPool,
    tensors: TensorBuffer,
}

impl HostRoom {
    fn new(recipe: &Recipe, capacity: usize) -> Self {
        Self {
            preprocessor: Preprocessor::new(recipe.clone()),
            pool: TensorPool::new(capacity * recipe.tensor_len()),
            tensors: TensorBuffer::default(),
        }
    }

    fn put(&mut self, at: usize, surface: &Surface, reading: Reading) -> Result<(), NotPut> {
        if self.tensors.is_empty() {
            self.tensors = self.pool.take();
        }
        let len = self.preprocessor.recipe().tensor_len();
        on_host(&mut self.preprocessor, surface, reading, &mut self.tensors[at * len..][..len])
    }
}

fn on_host(
    preprocessor: &mut Preprocessor,
    surface: &Surface,
    reading: Reading,
    place: &mut [f32],
) -> Result<(), NotPut> {
    surface
        .with_picture(reading, |picture| preprocessor.run(picture, place).map_err(|e| e.to_string()))
        .and_then(|ran| ran)
        .map_err(NotPut::Picture)
}

/// Surfaces that are held until they are converted in one launch: enough that launching costs little, few enough
/// for a decoder to do without.
const TOGETHER: usize = 8;

/// On a device. Pictures that are there already are converted there; others by the CPU, and their tensors
/// are copied when the batch is closed: a tensor is mostly smaller than its picture, and every format works.
pub(super) struct DeviceRoom {
    lane: Lane,
    on_gpu: GpuPreprocessor,
    on_cpu: Preprocessor,
    /// One tensor.
    floats: Vec<f32>,
    /// Tensors that wait to be copied; they are for the places from `staged_at` on.
    staged: Pinned,
    staged_at: usize,
    n_staged: usize,
    buffer: Option<DeviceBuffer>,
    /// Surfaces on the device that are not converted yet; they are for the places from `waiting_at` on.
    waiting: Vec<(Surface, Reading)>,
    waiting_at: usize,
}

impl DeviceRoom {
    fn open(recipe: &Recipe, lane: &Lane) -> Result<Self> {
        let on_gpu = GpuPreprocessor::new(&lane.programs, recipe.clone(), lane.float)?;
        let staged = Pinned::new(lane.gpu(), TOGETHER * on_gpu.tensor_bytes())?;
        Ok(Self {
            lane: lane.clone(),
            on_gpu,
            on_cpu: Preprocessor::new(recipe.clone()),
            floats: vec![0.0; recipe.tensor_len()],
            staged,
            staged_at: 0,
            n_staged: 0,
            buffer: None,
            waiting: Vec::new(),
            waiting_at: 0,
        })
    }

    fn is_there(&mut self) -> bool {
        if self.buffer.is_none() {
            self.buffer = self.lane.pool.take();
        }
        self.buffer.is_some()
    }

    fn put(&mut self, at: usize, surface: Surface, reading: Reading) -> Result<(), NotPut> {
        if let Some(picture) = surface.on_device(reading) {
            self.on_gpu.expect(picture.look()).map_err(|e| match e {
                Failed::TooLarge { .. } => NotPut::Picture(e.to_string()),
                Failed::Cuda(e) => NotPut::Fault(e.into()),
            })?;
            // Those that wait are neighbours.
            if self.waiting_at + self.waiting.len() != at {
                self.convert().map_err(|e| NotPut::Fault(e.into()))?;
                self.waiting_at = at;
            }
            self.waiting.push((surface, reading));
            let is_enough = self.waiting.len() >= TOGETHER;
            return if is_enough { self.convert().map_err(|e| NotPut::Fault(e.into())) } else { Ok(()) };
        }
        let bytes = self.on_gpu.tensor_bytes();
        on_host(&mut self.on_cpu, &surface, reading, &mut self.floats)?;
        // Those that wait are neighbours, too.
        if self.n_staged == TOGETHER || self.staged_at + self.n_staged != at {
            self.copy().map_err(|e| NotPut::Fault(e.into()))?;
            self.staged_at = at;
        }
        self.staged.write_floats(self.n_staged * bytes, &self.floats, self.lane.float == Float::Half);
        self.n_staged += 1;
        Ok(())
    }

    /// Copies the tensors that wait.
    fn copy(&mut self) -> Result<(), CudaError> {
        let bytes = self.on_gpu.tensor_bytes();
        let n = std::mem::take(&mut self.n_staged);
        if let Some(buffer) = self.buffer.as_mut().filter(|_| n > 0) {
            buffer.write(self.staged_at * bytes, &self.staged[..n * bytes], self.on_gpu.stream())?;
        }
        self.staged_at += n;
        Ok(())
    }

    /// Converts the surfaces that wait, and lets go of them.
    fn convert(&mut self) -> Result<(), Failed> {
        let waiting = std::mem::take(&mut self.waiting);
        let pictures: Vec<_> =
            waiting.iter().filter_map(|(surface, reading)| surface.on_device(*reading)).collect();
        if let Some(buffer) = self.buffer.as_mut().filter(|_| !pictures.is_empty()) {
            self.on_gpu.run(&pictures, buffer, self.waiting_at)?;
        }
        self.waiting_at += waiting.len();
        Ok(())
    }

    fn take(&mut self) -> Result<Tensors> {
        self.convert()?;
        self.copy()?;
        (self.waiting_at, self.staged_at) = (0, 0);
        let Some(buffer) = self.buffer.take() else {
            // A batch of ends alone.
            return Ok(Tensors::default());
        };
        Ok(Tensors::Device(DeviceTensors { buffer, float: self.lane.float }))
    }
}
