//! The decode stage with its batches on a device, against the same stage with its batches on the host.

use std::{path::Path, sync::Arc, time::Duration};

use kernels::{device::DevicePool, preprocess::on_gpu::Float};
use stages::{
    decode::{Backend, Decode, Settings, sample::Sampling},
    item::{ClipId, ClipRef, EncodedClip, FrameBatch},
    lane::{self, Lane},
    load::Load,
    model::Home,
    stage::{Closed, Emit, Kept, Rejection, Stage},
};
use support::{
    clips::{Clip, H264_MP4, MPEG4_B_AVI, make},
    decoding::{RECIPE, decode_by, settings},
    fake_gpu::inside,
};

fn lane(folder: &Path, float: Float, decoders: usize, mib: usize) -> anyhow::Result<Lane> {
    let bytes = mib << 20;
    let wanted = lane::Wanted { recipe: &RECIPE, float, batch: 4, decoders, encoders: 1, bytes };
    Lane::open(0, &Home::at(folder.to_owned()), &wanted)
}

fn on(lane: Lane, settings: Settings) -> Settings {
    Settings { lane: Some(lane), ..settings }
}

#[test]
fn batches_on_a_device_hold_what_batches_on_the_host_hold() {
    if !inside("batches_on_a_device_hold_what_batches_on_the_host_hold", &[]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for form in [H264_MP4, MPEG4_B_AVI] {
        let made = make(folder.path(), &Clip::wandering(form));
        for backend in [Backend::Libav, Backend::Gstreamer] {
            for sampling in [Sampling::All, Sampling::EveryMs(300)] {
                let on_host = decode_by(settings(backend, sampling), &made.path);
                let single = lane(folder.path(), Float::Single, 8, 1).unwrap();
                let on_device = decode_by(on(single, settings(backend, sampling)), &made.path);
                assert_eq!(on_host.frames, on_device.frames);
                assert_eq!(on_host.tensors, on_device.tensors);
                let half = lane(folder.path(), Float::Half, 8, 1).unwrap();
                let halves = decode_by(on(half, settings(backend, sampling)), &made.path);
                let rounded =
                    |t: &Vec<f32>| t.iter().map(|v| half::f16::from_f32(*v).to_f32()).collect::<Vec<_>>();
                assert!(on_host.tensors.iter().map(rounded).eq(halves.tensors));
            }
        }
    }
}

/// Holds each batch for a while, as an encoder does.
struct Slow {
    pool: DevicePool,
    n_frames: usize,
    held: Vec<std::thread::JoinHandle<()>>,
}

impl Emit<FrameBatch> for Slow {
    fn emit(&mut self, batch: FrameBatch) -> Result<(), Closed> {
        self.n_frames += batch.n_frames();
        self.held.push(std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(3));
            drop(batch);
        }));
        Ok(())
    }

    fn reject(&mut self, rejection: Rejection) -> Result<(), Closed> {
        panic!("{rejection}")
    }
}

#[test]
fn a_decoder_waits_for_memory_and_the_device_gives_no_more() {
    if !inside("a_decoder_waits_for_memory_and_the_device_gives_no_more", &[]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let made = make(folder.path(), &Clip::counting(H264_MP4));
    let path = made.path.to_string_lossy().into_owned();
    // Two batches of 4 × 32² single floats are 96 KiB: what is asked for is less than a MiB holds.
    let mut lane = lane(folder.path(), Float::Single, 1, 1).unwrap();
    lane.pool = DevicePool::new(lane.gpu(), 2, lane.pool.buffer_bytes()).unwrap();
    let mut stage = Decode::open(on(lane.clone(), settings(Backend::Auto, Sampling::All))).unwrap();
    let free = lane.gpu().memory().unwrap().0;
    let mut slow = Slow { pool: lane.pool.clone(), n_frames: 0, held: Vec::new() };
    for id in 0..3 {
        let clip = Arc::new(ClipRef { id: ClipId(id), path: path.clone(), label: None, extra: Vec::new() });
        let mut loaded: Kept<EncodedClip> = Kept(Vec::new());
        Load::open().process(clip, &mut loaded).unwrap();
        stage.process(loaded.0.remove(0), &mut slow).unwrap();
    }
    stage.finish(&mut slow).unwrap();
    assert_eq!(slow.n_frames, 150);
    slow.held.into_iter().for_each(|held| held.join().unwrap());
    assert_eq!(lane.gpu().memory().unwrap().0, free);
    // All of them are back.
    let taken: Vec<_> = (0..2).map(|_| slow.pool.take().unwrap()).collect();
    assert_eq!(taken.len(), 2);
}

#[test]
fn too_little_memory_is_told_with_what_is_needed() {
    if !inside("too_little_memory_is_told_with_what_is_needed", &[("FAKE_CUDA_MIB", "20")]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let told = lane(folder.path(), Float::Single, 40, 1).unwrap_err().to_string();
    assert!(told.starts_with("gpu.memory_mib is 1: 40 decode workers need at least 41 batches of 4 frames, which are 2 MiB\nhint: raise gpu.memory_mib, or lower"), "{told}");
    let told = format!("{:#}", lane(folder.path(), Float::Single, 4, 64).unwrap_err());
    assert!(
        told.contains("asks for more than there is: GPU 0 has 20 MiB free") && told.contains("would fit"),
        "{told}"
    );
}

#[test]
fn a_device_that_fails_ends_the_run() {
    if !inside("a_device_that_fails_ends_the_run", &[("FAKE_CUDA_FAIL", "cuMemcpyHtoDAsync:3")]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let made = make(folder.path(), &Clip::counting(H264_MP4));
    let lane = lane(folder.path(), Float::Single, 8, 1).unwrap();
    let mut stage = Decode::open(on(lane, settings(Backend::Auto, Sampling::All))).unwrap();
    let clip = Arc::new(ClipRef {
        id: ClipId(0),
        path: made.path.to_string_lossy().into(),
        label: None,
        extra: Vec::new(),
    });
    let mut loaded: Kept<EncodedClip> = Kept(Vec::new());
    Load::open().process(clip, &mut loaded).unwrap();
    let ended = stage.process(loaded.0.remove(0), &mut Kept(Vec::new()));
    let told = ended.and_then(|()| stage.finish(&mut Kept(Vec::new()))).unwrap_err().to_string();
    assert!(told.starts_with("cuMemcpyHtoDAsync: CUDA_ERROR_ILLEGAL_ADDRESS"), "{told}");
}
