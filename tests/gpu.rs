//! The GPU path without a GPU: kernels run from their own source on the CPU, everything around them against
//! a fake driver that runs queued work as late as it may.

use std::{fs, path::Path, time::Duration};

use kernels::{
    device::{DeviceBuffer, DevicePool, Pinned},
    gpu::{Gpu, Unavailable, program::Programs},
    picture::{
        Colour, Layout, Look, Matrix, Orientation, Picture, PixelFormat, Plane, Range, SampleAspect, Siting,
    },
    preprocess::{
        Preprocessor, Recipe, Resize,
        on_gpu::{self, Float, GpuPreprocessor},
    },
    reference,
    resample::Filter,
};
use support::fake_gpu::inside;

fn programs(gpu: &Gpu, folder: &Path) -> Programs {
    Programs::new(gpu, folder, &[])
}

/// A picture's bytes in host memory: planes of smooth noise, rows `pad` bytes longer than they need be.
struct Made {
    look: Look,
    planes: [(usize, usize); 3],
    bytes: Vec<u8>,
}

impl Made {
    fn new(look: Look, pad: usize, seed: usize) -> Self {
        let sample_bytes = look.format.sample_bytes();
        let top = f64::from((1u32 << look.format.depth) - 1);
        let (mut bytes, mut planes) = (Vec::new(), [(0, 0); 3]);
        for (p, (row_bytes, rows)) in look.plane_sizes().into_iter().enumerate() {
            let stride = row_bytes + pad * sample_bytes;
            planes[p] = (bytes.len(), stride);
            for y in 0..rows {
                for x in 0..stride / sample_bytes {
                    let wave = ((x * 7 + y * 13 + p * 31 + seed) as f64 * 0.19).sin()
                        * ((x + y * p) as f64 * 0.05).cos();
                    let value = ((0.5 + 0.45 * wave) * top) as u16;
                    bytes.extend(&value.to_le_bytes()[..sample_bytes]);
                }
            }
        }
        Self { look, planes, bytes }
    }

    fn picture(&self) -> Picture<'_> {
        let Look { width, height, format, colour, orientation, sample_aspect } = self.look;
        let planes = self.planes.map(|(at, stride)| Plane { data: &self.bytes[at..], stride });
        Picture { planes, width, height, format, colour, orientation, sample_aspect }
    }
}

fn look(width: usize, height: usize, format: PixelFormat) -> Look {
    Look {
        width,
        height,
        format,
        colour: Colour::default(),
        orientation: Orientation::default(),
        sample_aspect: SampleAspect::default(),
    }
}

const NV12: PixelFormat = PixelFormat { layout: Layout::SemiPlanar, subsampling: (1, 1), depth: 8 };

/// Levels from 0 to 255.
const LEVELS: Recipe = Recipe {
    width: 40,
    height: 36,
    resize: Resize::ShorterSide(40),
    filter: Filter::Bicubic,
    mean: [0.0; 3],
    std: [1.0 / 255.0; 3],
};

fn floats(bytes: &[u8], float: Float) -> Vec<f32> {
    match float {
        Float::Single => bytes.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Float::Half => bytes.chunks(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
    }
}

/// All pictures in one launch, against the reference and the CPU's form.
fn check_together(recipe: &Recipe, float: Float, made: &[Made]) {
    let folder = tempfile::tempdir().unwrap();
    let gpu = Gpu::open(0).unwrap();
    let mut on_gpu = GpuPreprocessor::new(&programs(&gpu, folder.path()), recipe.clone(), float).unwrap();
    let stream = gpu.stream().unwrap();
    let uploaded: Vec<DeviceBuffer> = made
        .iter()
        .map(|made| {
            // Rounded up: a row's last group of four may be read as one.
            let mut buffer = DeviceBuffer::new(&gpu, made.bytes.len().next_multiple_of(4)).unwrap();
            buffer.write(0, &made.bytes, &stream).unwrap();
            buffer
        })
        .collect();
    let pictures: Vec<_> = uploaded
        .iter()
        .zip(made)
        .map(|(buffer, made)| buffer.picture(made.planes, made.look).unwrap())
        .collect();
    let bytes = on_gpu.tensor_bytes();
    let mut out = DeviceBuffer::new(&gpu, (made.len() + 1) * bytes).unwrap();
    // Not from the start, so that a wrong place shows.
    on_gpu.run(&pictures, &mut out, 1).unwrap();
    let mut host = vec![0u8; bytes];
    let mut on_cpu = Preprocessor::new(recipe.clone());
    for (i, made) in made.iter().enumerate() {
        out.read((i + 1) * bytes, &mut host, &stream).unwrap();
        let got = floats(&host, float);
        let want = reference::colours(recipe, &made.picture());
        let mut cpu = vec![0f32; recipe.tensor_len()];
        on_cpu.run(&made.picture(), &mut cpu).unwrap();
        let mut n_other = 0;
        for (at, ((got, want), cpu)) in got.iter().zip(&want).zip(&cpu).enumerate() {
            let off = (f64::from(*got) - want).abs();
            // Half a level is the rounding; the rest are 14 bits of fraction.
            assert!(off < 0.56 && got.fract() == 0.0, "{:?} at {at}: {got}, wanted {want}", made.look);
            assert!((got - cpu.round()).abs() <= 1.0);
            n_other += usize::from(*got != cpu.round());
        }
        assert!(
            n_other * 25 <= got.len(),
            "{:?}: {n_other} of {} levels are not the CPU's",
            made.look,
            got.len()
        );
    }
}

#[test]
fn pictures_of_every_format_in_one_launch() {
    if !inside("pictures_of_every_format_in_one_launch", &[]) {
        return;
    }
    let mut made = Vec::new();
    let layouts = [
        (Layout::Planar, (1, 1)),
        (Layout::Planar, (1, 0)),
        (Layout::Planar, (0, 0)),
        (Layout::SemiPlanar, (1, 1)),
        (Layout::PlanarGbr, (0, 0)),
        (Layout::Gray, (0, 0)),
    ];
    for (layout, subsampling) in layouts {
        for (depth, (width, height)) in
            [(8, (64, 48)), (10, (33, 47)), (16, (90, 70)), (8, (51, 300)), (12, (3, 200)), (8, (1, 1))]
        {
            let format = PixelFormat { layout, subsampling, depth };
            // Rows that start at multiples of four, and rows that do not.
            let row = look(width, height, format).plane_sizes()[0].0;
            for pad in [5, row.next_multiple_of(4) - row] {
                made.push(Made::new(look(width, height, format), pad, made.len()));
            }
        }
    }
    for (offsets, step) in [([0, 1, 2], 3), ([2, 1, 0], 4)] {
        let format =
            PixelFormat { layout: Layout::PackedRgb { offsets, step }, subsampling: (0, 0), depth: 8 };
        let colour = Colour { range: Range::Full, ..Colour::default() };
        made.push(Made::new(Look { colour, ..look(61, 50, format) }, 0, 7));
    }
    // More than one launch holds.
    assert!(made.len() > 64);
    check_together(&LEVELS, Float::Single, &made);
}

#[test]
fn pictures_of_every_colour_and_orientation() {
    if !inside("pictures_of_every_colour_and_orientation", &[]) {
        return;
    }
    let mut made = Vec::new();
    for matrix in [Matrix::Bt601, Matrix::Bt709, Matrix::Bt2020, Matrix::Smpte240m, Matrix::Fcc] {
        for range in [Range::Limited, Range::Full] {
            let siting =
                Siting { cosited_across: range == Range::Full, cosited_down: range == Range::Limited };
            made.push(Made::new(
                Look { colour: Colour { matrix, range, siting }, ..look(80, 60, NV12) },
                0,
                3,
            ));
        }
    }
    for quarters in 0..4 {
        for orientation in [Orientation::rotated(quarters), Orientation::rotated(quarters).mirrored()] {
            made.push(Made::new(Look { orientation, ..look(73, 57, NV12) }, 3, 5));
        }
    }
    let wide = SampleAspect::new(16, 11).unwrap();
    made.push(Made::new(Look { sample_aspect: wide, ..look(64, 64, NV12) }, 0, 1));
    // Halves hold every level from 0 to 255.
    check_together(
        &Recipe { resize: Resize::Stretch, filter: Filter::Bilinear, ..LEVELS },
        Float::Half,
        &made,
    );
    check_together(&LEVELS, Float::Half, &made);
}

#[test]
fn large_pictures_take_small_tiles() {
    if !inside("large_pictures_take_small_tiles", &[]) {
        return;
    }
    let recipe = Recipe { width: 8, height: 8, resize: Resize::ShorterSide(8), ..LEVELS };
    let made = [(1920, 64), (2000, 1000), (40, 4000)].map(|(w, h)| Made::new(look(w, h, NV12), 0, w));
    check_together(&recipe, Float::Single, &made);
}

#[test]
fn fields_are_prepared_like_on_the_cpu() {
    if !inside("fields_are_prepared_like_on_the_cpu", &[]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream().unwrap();
    let mut on_gpu = GpuPreprocessor::new(&programs(&gpu, folder.path()), LEVELS, Float::Single).unwrap();
    let made = Made::new(look(80, 64, NV12), 16, 9);
    let mut buffer = DeviceBuffer::new(&gpu, made.bytes.len()).unwrap();
    buffer.write(0, &made.bytes, &stream).unwrap();
    let mut out = DeviceBuffer::new(&gpu, on_gpu.tensor_bytes()).unwrap();
    for top in [true, false] {
        let picture = buffer.picture(made.planes, made.look).unwrap().one_field(top);
        on_gpu.run(&[picture], &mut out, 0).unwrap();
        let mut host = vec![0u8; on_gpu.tensor_bytes()];
        out.read(0, &mut host, &stream).unwrap();
        let want = reference::colours(&LEVELS, &made.picture().one_field(top));
        let most = floats(&host, Float::Single)
            .iter()
            .zip(&want)
            .map(|(a, b)| (f64::from(*a) - b).abs())
            .fold(0.0, f64::max);
        assert!(most < 0.56, "{most}");
    }
}

#[test]
fn kernels_are_kept_and_mended() {
    if !inside("kernels_are_kept_and_mended", &[]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let gpu = Gpu::open(0).unwrap();
    let prepare = || GpuPreprocessor::new(&programs(&gpu, folder.path()), LEVELS, Float::Half).map(drop);
    prepare().unwrap();
    let kept: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().path()).collect();
    assert_eq!(kept.len(), 1);
    let name = kept[0].file_name().unwrap().to_str().unwrap().to_owned();
    assert!(name.starts_with("preprocess.cu-") && name.ends_with("-sm_90-nvrtc13.0.bin"), "{name}");
    let good = fs::read(&kept[0]).unwrap();
    for damaged in [good[..good.len() - 1].to_vec(), Vec::new(), [&good[..40], b"x", &good[41..]].concat()] {
        fs::write(&kept[0], damaged).unwrap();
        prepare().unwrap();
        assert_eq!(fs::read(&kept[0]).unwrap(), good);
    }
    // SAFETY: no other thread of this process reads or writes the environment: the test runs alone in it.
    unsafe { std::env::set_var("CLIPMILL_NVRTC", "/nowhere/libnvrtc.so") };
    // What another machine compiled will do.
    fs::rename(&kept[0], folder.path().join(name.replace("13.0", "12.4"))).unwrap();
    prepare().unwrap();
    fs::remove_dir_all(folder.path()).unwrap();
    let missing = prepare().unwrap_err().to_string();
    assert!(missing.contains("/nowhere/libnvrtc.so") && missing.contains("hint:"), "{missing}");
}

#[test]
fn a_pool_never_grows_and_says_what_would_fit() {
    if !inside("a_pool_never_grows_and_says_what_would_fit", &[("FAKE_CUDA_MIB", "10")]) {
        return;
    }
    let gpu = Gpu::open(0).unwrap();
    let refused = DevicePool::new(&gpu, 8, 3 << 20).unwrap_err().to_string();
    assert_eq!(refused, "GPU 0 has 10 MiB free, 8 buffers of 3 MiB need 24; 3 would fit");
    let pool = DevicePool::new(&gpu, 3, 3 << 20).unwrap();
    let free = gpu.memory().unwrap().0;
    let taken: Vec<DeviceBuffer> = (0..3).map(|_| pool.take().unwrap()).collect();
    assert!(pool.take().is_none());
    // Whoever waits gets what comes back.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            pool.wait(Duration::from_secs(60));
            pool.take().is_some()
        });
        drop(taken);
        assert!(waiting.join().unwrap());
    });
    assert_eq!(gpu.memory().unwrap().0, free);
    drop(pool);
    assert_eq!(gpu.memory().unwrap().0, 10 << 20);
}

#[test]
fn a_failing_call_is_named() {
    if !inside("a_failing_call_is_named", &[("FAKE_CUDA_FAIL", "cuLaunchKernel:1")]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let gpu = Gpu::open(0).unwrap();
    let mut on_gpu = GpuPreprocessor::new(&programs(&gpu, folder.path()), LEVELS, Float::Half).unwrap();
    let buffer = DeviceBuffer::new(&gpu, 1 << 16).unwrap();
    let mut out = DeviceBuffer::new(&gpu, on_gpu.tensor_bytes()).unwrap();
    let picture = buffer.picture([(0, 64), (64 * 64, 64), (0, 0)], look(64, 64, NV12)).unwrap();
    let failed = on_gpu.run(&[picture], &mut out, 0).unwrap_err().to_string();
    assert_eq!(
        failed,
        "cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered"
    );
    // A picture that would reach past its buffer is not made.
    assert!(buffer.picture([(0, 64), (1 << 16, 64), (0, 0)], look(64, 64, NV12)).is_none());
}

#[test]
fn without_a_driver_the_cure_is_named() {
    // No fake here.
    if kernels::gpu::has_driver() {
        return support::skip("this machine has a driver", "CLIPMILL_REQUIRE_NO_DRIVER");
    }
    assert_eq!(Gpu::open(0).unwrap_err(), Unavailable::NoDriver);
    assert!(Unavailable::NoDriver.to_string().contains("hint: install the driver"));
}

#[test]
fn hidden_devices_are_not_there() {
    if !inside("hidden_devices_are_not_there", &[("FAKE_CUDA_DEVICES", "0")]) {
        return;
    }
    assert_eq!(Gpu::count(), Ok(0));
    assert_eq!(Gpu::open(0).unwrap_err().to_string(), "there is no GPU 0: the driver shows 0");
}

#[test]
fn a_device_that_is_not_there_is_named() {
    if !inside("a_device_that_is_not_there_is_named", &[("FAKE_CUDA_DEVICES", "2")]) {
        return;
    }
    assert_eq!(Gpu::count(), Ok(2));
    let missing = Gpu::open(2).unwrap_err().to_string();
    assert_eq!(missing, "there is no GPU 2: the driver shows 2");
    let gpu = Gpu::open(1).unwrap();
    assert_eq!((gpu.ordinal(), gpu.capability()), (1, Ok((9, 0))));
    let mut pinned = Pinned::new(&gpu, 5).unwrap();
    pinned.copy_from_slice(b"hello");
    assert_eq!(&*pinned, b"hello");
    assert_eq!(on_gpu::SOURCE.0, "preprocess.cu");
}
