//! The kernels beside preprocessing, from their own source on the CPU through the fake driver, against their
//! CPU forms and references: see `gpu.rs`.

use half::f16;
use kernels::{
    cosine_top_k::{self, GpuTopK, Matrix},
    device::DeviceBuffer,
    frame_statistics::{self, Bins, GpuStatistics},
    gpu::{Gpu, Stream, program::Programs},
    l2_normalize::{self, GpuNormalizer, Rows},
    picture::{Colour, DevicePicture, Layout, Look, Orientation, Picture, PixelFormat, Plane, SampleAspect},
};
use stages::encode::joint;
use support::fake_gpu::inside;

/// The device with a folder for its kernels, which goes with this.
struct Device {
    _folder: tempfile::TempDir,
    gpu: Gpu,
    programs: Programs,
    stream: Stream,
}

impl Device {
    fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let gpu = Gpu::open(0).unwrap();
        let programs = Programs::new(&gpu, folder.path(), &[]);
        Self { _folder: folder, programs, stream: gpu.stream().unwrap(), gpu }
    }

    fn with(&self, bytes: &[u8]) -> DeviceBuffer {
        let mut buffer = DeviceBuffer::new(&self.gpu, bytes.len()).unwrap();
        buffer.write(0, bytes, &self.stream).unwrap();
        buffer
    }

    fn read(&self, buffer: &DeviceBuffer, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        buffer.read(0, &mut bytes, &self.stream).unwrap();
        bytes
    }
}

fn noise(seed: usize) -> impl FnMut() -> f32 {
    let mut state = seed as u32 * 2 + 1;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn rows_come_to_unit_length() {
    if !inside("rows_come_to_unit_length", &[]) {
        return;
    }
    let device = Device::open();
    let on_gpu = GpuNormalizer::new(&device.programs).unwrap();
    for (dim, n) in [(1, 40), (3, 9), (4, 8), (7, 1), (127, 3), (128, 17), (132, 2), (512, 9), (1281, 2)] {
        let mut next = noise(dim);
        let mut rows: Vec<f32> = (0..(n + 2) * dim).map(|_| next()).collect();
        let mut scale = |row: usize, by: f32| {
            if row < n {
                rows[(row + 1) * dim..][..dim].iter_mut().for_each(|v| *v *= by);
            }
        };
        scale(0, 1e30);
        scale(1, 1e-38);
        scale(2, 0.0);
        scale(3, f32::NAN);
        scale(4, f32::INFINITY);
        // The first row and the last are not among them.
        let mut buffer = device.with(&bytes_of(&rows));
        let mut halves = DeviceBuffer::new(&device.gpu, n * dim * 2).unwrap();
        on_gpu.run(&mut buffer, Rows { first: 1, n, dim }, Some(&mut halves)).unwrap();
        let got: Vec<f32> = device
            .read(&buffer, rows.len() * 4)
            .chunks(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        let mut want = rows.clone();
        let inner = dim..(n + 1) * dim;
        want[inner.clone()].chunks_mut(dim).for_each(l2_normalize::normalize);
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        assert!(got.iter().zip(&want).all(|(a, b)| same(*a, *b)), "{dim}");
        // What the encode stage calls unit length, to one unit in the last place.
        rows[inner.clone()].chunks_mut(dim).for_each(joint::normalize);
        for (a, b) in got.iter().zip(&rows) {
            assert!(same(*a, *b) || a.to_bits().abs_diff(b.to_bits()) <= 1, "{dim}: {a} {b}");
        }
        let halves = device.read(&halves, n * dim * 2);
        for (half, float) in halves.chunks(2).zip(&want[inner]) {
            let half = f16::from_le_bytes([half[0], half[1]]);
            assert!(
                half == f16::from_f32(*float) || (half.is_nan() && float.is_nan()),
                "{dim}: {half} {float}"
            );
        }
        // The same without halves.
        let mut alone = device.with(&bytes_of(&want));
        on_gpu.run(&mut alone, Rows { first: 1, n, dim }, None).unwrap();
    }
}

/// A luma plane in host memory, and where it lies on the device.
struct Luma {
    look: Look,
    stride: usize,
    bytes: Vec<u8>,
}

impl Luma {
    fn new(width: usize, height: usize, depth: u8, pad: usize, seed: usize) -> Self {
        let format = PixelFormat { layout: Layout::Gray, subsampling: (0, 0), depth };
        let look = Look {
            width,
            height,
            format,
            colour: Colour::default(),
            orientation: Orientation::default(),
            sample_aspect: SampleAspect::default(),
        };
        let stride = (width + pad) * format.sample_bytes();
        // Runs of one value, as pictures have, beside noise; with 10 bits, some above what they may be.
        let mut next = noise(seed);
        let mut value = 0;
        let mut bytes = Vec::new();
        while bytes.len() < stride * height {
            if next() > -0.3 {
                value = ((next() + 1.0) * 40_000.0) as u16;
            }
            let value = if depth > 8 { value >> (16 - depth).saturating_sub(1) } else { value };
            bytes.extend(&value.to_le_bytes()[..format.sample_bytes()]);
        }
        Self { look, stride, bytes }
    }

    fn picture(&self) -> Picture<'_> {
        let Look { width, height, format, colour, orientation, sample_aspect } = self.look;
        let none = Plane { data: &[], stride: 0 };
        let planes = [Plane { data: &self.bytes, stride: self.stride }, none, none];
        Picture { planes, width, height, format, colour, orientation, sample_aspect }
    }

    fn on<'a>(&self, buffer: &'a DeviceBuffer) -> DevicePicture<'a> {
        buffer.picture([(0, self.stride), (0, 0), (0, 0)], self.look).unwrap()
    }
}

#[test]
fn frames_of_all_sizes_are_counted_in_one_launch() {
    if !inside("frames_of_all_sizes_are_counted_in_one_launch", &[]) {
        return;
    }
    let device = Device::open();
    let mut lumas = Vec::new();
    for depth in [8, 10, 16] {
        for (width, height) in [(1, 1), (16, 9), (33, 20), (320, 240), (7, 300), (48, 31)] {
            // Rows at multiples of 16 bytes, and others.
            for pad in [(16 - width % 16) % 16, 3] {
                // A frame and the one before it; every third lacks that, or has one of another size.
                lumas.push(Luma::new(width, height, depth, pad, lumas.len()));
                lumas.push(Luma::new(width, height, depth, lumas.len() % 5, lumas.len()));
            }
        }
    }
    let buffers: Vec<DeviceBuffer> = lumas.iter().map(|luma| device.with(&luma.bytes)).collect();
    let mut pairs = Vec::new();
    for i in 0..lumas.len() {
        let before = match i % 3 {
            0 => None,
            1 => Some((i + 7) % lumas.len()),
            _ => Some(i ^ 1),
        };
        pairs.push((i, before));
    }
    // More than one launch holds.
    assert!(pairs.len() > 64);
    let on_device: Vec<_> = pairs
        .iter()
        .map(|(i, before)| {
            (lumas[*i].on(&buffers[*i]), before.map(|before| lumas[before].on(&buffers[before])))
        })
        .collect();
    for bins in [Bins::Thirty2, Bins::Sixty4] {
        let mut on_gpu = GpuStatistics::new(&device.programs, bins).unwrap();
        let got = on_gpu.run(&on_device).unwrap();
        assert_eq!(got.len(), pairs.len());
        let mut n_compared = 0;
        for ((i, before), got) in pairs.iter().zip(&got) {
            let (picture, before) = (lumas[*i].picture(), before.map(|before| lumas[before].picture()));
            let want = frame_statistics::reference(&picture, before.as_ref(), bins);
            assert_eq!(got, &want, "{:?}", lumas[*i].look);
            assert_eq!(frame_statistics::measure(&picture, before.as_ref(), bins), want);
            n_compared += usize::from(want.difference.is_some());
        }
        assert!(n_compared >= pairs.len() / 3 && n_compared < pairs.len() * 2 / 3, "{n_compared}");
    }
    // A frame of one value is every thread's worst case, and it differs from itself by nothing.
    let mut black = Luma::new(640, 64, 8, 0, 0);
    black.bytes.fill(16);
    let buffer = device.with(&black.bytes);
    let pair = (black.on(&buffer), Some(black.on(&buffer)));
    let got = GpuStatistics::new(&device.programs, Bins::Sixty4).unwrap().run(&[pair]).unwrap();
    assert_eq!((got[0].sum, got[0].histogram[4], got[0].difference), (640 * 64 * 16, 640 * 64, Some(0)));
}

/// Rows of unit length, each there `times` times, after `first` others; some are not numbers.
fn matrix(n: usize, dim: usize, first: usize, times: usize) -> Vec<f16> {
    let mut rows = Vec::new();
    for i in 0..n + first {
        let mut next = noise(i / times);
        let mut row: Vec<f32> = (0..dim).map(|_| next()).collect();
        l2_normalize::normalize(&mut row);
        if i % 97 == 50 {
            row[dim / 2] = f32::NAN;
        }
        rows.extend(row.into_iter().map(f16::from_f32));
    }
    rows
}

fn check_top_k(
    device: &Device,
    (n, dim, first, times): (usize, usize, usize, usize),
    k: usize,
    n_queries: usize,
) {
    let rows = matrix(n, dim, first, times);
    let bytes: Vec<u8> = rows.iter().flat_map(|v| v.to_le_bytes()).collect();
    let buffer = device.with(&bytes);
    let mut next = noise(7);
    let mut queries: Vec<f32> = (0..n_queries * dim).map(|_| next()).collect();
    queries.chunks_mut(dim).for_each(l2_normalize::normalize);
    let mut on_gpu = GpuTopK::new(&device.programs, dim, k).unwrap();
    let whole = Matrix { buffer: &buffer, first: first as u64, n: n as u64 };
    let got = on_gpu.run(whole, &queries).unwrap();
    assert_eq!(got.len(), n_queries);
    let rows = &rows[first * dim..];
    for (got, query) in got.iter().zip(queries.chunks(dim)) {
        let want = cosine_top_k::reference(rows, query, k);
        assert_eq!(got, &want, "{n} x {dim}, {k}");
        for (a, b) in cosine_top_k::top_k(rows, query, k).iter().zip(&want) {
            assert!((a.score - b.score).abs() < 1e-5, "{n} x {dim}, {k}: {a:?} {b:?}");
        }
    }
    // In parts.
    let mut in_parts = on_gpu.with_rows_a_launch(n as u64 / 3 + 1);
    assert_eq!(in_parts.run(whole, &queries).unwrap(), got);
}

#[test]
fn the_nearest_rows_are_found() {
    if !inside("the_nearest_rows_are_found", &[]) {
        return;
    }
    let device = Device::open();
    for (shape, k, n_queries) in [
        // Few rows, fewer than asked for, none of a block.
        ((1, 8, 0, 1), 1, 1),
        ((33, 512, 3, 1), 10, 1),
        ((500, 64, 0, 1), 10, 5),
        // Rows that do not start at 16 bytes, and many that are equally good.
        ((700, 37, 1, 9), 20, 3),
        ((300, 260, 0, 100), 7, 2),
        ((600, 16, 5, 3), 1024, 2),
        // Lists are sorted again and again.
        ((8 * 420, 8, 0, 1), 100, 1),
        // As long as may be: one query at a time.
        ((70, 4096, 0, 1), 1024, 2),
    ] {
        check_top_k(&device, shape, k, n_queries);
    }
    let empty = device.with(&[0; 16]);
    let mut on_gpu = GpuTopK::new(&device.programs, 8, 3).unwrap();
    let none = Matrix { buffer: &empty, first: 1, n: 0 };
    assert_eq!(on_gpu.run(none, &[1.0; 16]).unwrap(), vec![Vec::new(), Vec::new()]);
}

/// Rows that get better and better: every one is kept for a while, and lists are sorted again and again.
#[test]
fn rising_scores_fill_the_lists() {
    if !inside("rising_scores_fill_the_lists", &[]) {
        return;
    }
    let device = Device::open();
    // Values of 1, one a row; each of the fake's eight blocks gets an eighth of the rows.
    let check = |rows: Vec<f32>, k: usize| {
        let rows: Vec<f16> = rows.into_iter().map(f16::from_f32).collect();
        let bytes: Vec<u8> = rows.iter().flat_map(|v| v.to_le_bytes()).collect();
        let buffer = device.with(&bytes);
        let mut on_gpu = GpuTopK::new(&device.programs, 1, k).unwrap();
        let whole = Matrix { buffer: &buffer, first: 0, n: rows.len() as u64 };
        assert_eq!(on_gpu.run(whole, &[1.0]).unwrap()[0], cosine_top_k::reference(&rows, &[1.0], k));
    };
    // A little more than a list holds, so that those that would be lost are the best, and many more.
    for (each, k) in [(256, 3), (352, 40)] {
        check((0..8 * each).map(|i| (i % each) as f32 / each as f32).collect(), k);
    }
    // After the list was sorted, one that is better than the last of the best, and than no other.
    let rows = (0..8 * 352).map(|i| match i {
        0..192 => i as f32 / 256.0,
        300 => 152.5 / 256.0,
        _ => -0.5,
    });
    check(rows.collect(), 40);
}

/// What runs on a device, so small that the fake can play it.
#[test]
fn the_bench_compares_and_measures() {
    if !inside("the_bench_compares_and_measures", &[]) {
        return;
    }
    use benches::gpu::{Device, Scale, kernels, parity, save};
    let folder = tempfile::tempdir().unwrap();
    let device = Device::open(0, folder.path(), &[]).unwrap();
    let compared = parity::run(&device, Scale::Small).unwrap();
    assert!(compared.len() == 5 && compared.iter().all(|one| one.n > 0));
    let measured = kernels::run(&device, Scale::Small).unwrap();
    let names: Vec<&str> = measured.iter().map(|one| one.name.split(' ').next().unwrap()).collect();
    for name in ["copy", "preprocess", "frame_statistics", "l2_normalize", "cosine_top_k"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(kernels::on_cpu(Scale::Small).unwrap().len() == 3);
    let results = folder.path().join("results");
    save(Some(&results), "gpu-kernels", &device, &measured).unwrap();
    let text = std::fs::read_to_string(results.join("gpu-kernels.json")).unwrap();
    assert!(text.contains("fake device 0") && text.contains("of_bandwidth"), "{text}");
}
