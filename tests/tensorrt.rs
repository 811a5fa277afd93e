//! Engines of TensorRT: kept on disk, run with two batches under way, against a fake of TensorRT and of the
//! driver; and the builder of TensorRT-RTX, which is real and needs no GPU.

use std::{
    fs,
    path::{Path, PathBuf},
};

use half::f16;
use kernels::{
    device::DeviceBuffer,
    ffi::tensorrt::{
        Error, TensorRt,
        build::{BuildOptions, Precision as Numbers, Range},
    },
    gpu::Gpu,
    preprocess::on_gpu::Float,
};
use stages::{
    encode::{
        Encoder as _,
        network::{self, Backend, Engine, Feed, Libraries, Opening, Precision, Values},
        onnx_file::half::rewrite,
        tensorrt::{Place, TensorrtTower},
    },
    model::{Home, Model},
    tensors::{DeviceTensors, TensorPool, Tensors},
};
use support::{
    fake_gpu::inside,
    onnx::{DIM, SIDE},
};
use tempfile::TempDir;

const LEN: usize = 3 * SIDE * SIDE;

/// A tiny model, and a data folder.
struct Site {
    folder: TempDir,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        support::onnx::write_image_model(&folder.path().join("tiny"));
        Self { folder }
    }

    fn home(&self) -> Home {
        Home::at(self.folder.path().join("home"))
    }

    fn model(&self) -> Model {
        Model::open(&self.folder.path().join("tiny")).unwrap()
    }

    fn open_on(&self, gpu: usize, precision: Precision, most: usize) -> anyhow::Result<TensorrtTower> {
        self.open_told(gpu, precision, most, &mut |_| true)
    }

    fn open_told(
        &self,
        gpu: usize,
        precision: Precision,
        most: usize,
        told: &mut dyn FnMut(&str) -> bool,
    ) -> anyhow::Result<TensorrtTower> {
        let place = Place::of(&Libraries::find(&self.home()), &Gpu::open(gpu).unwrap()).unwrap();
        let model = self.model();
        let file = model.file(&model.card.image.file);
        TensorrtTower::open(&model, &file, precision, most, &place, told)
    }

    fn open(&self, precision: Precision, most: usize) -> TensorrtTower {
        self.open_on(0, precision, most).unwrap()
    }

    fn plans(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.home().folder().join("engines-tensorrt")).unwrap();
        let mut plans: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
        plans.retain(|path| path.extension().is_some_and(|e| e == "plan"));
        plans.sort();
        plans
    }
}

/// Plans that the fake has built, a line each.
fn built() -> Vec<String> {
    let report = std::env::var_os("FAKE_TENSORRT_REPORT").unwrap();
    fs::read_to_string(report).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Pictures that differ.
fn pictures(n: usize, seed: usize) -> Vec<f32> {
    (0..n * LEN).map(|i| (((i / LEN + seed) * 31 + i % LEN * 7) % 97) as f32 / 32.0 - 1.5).collect()
}

/// What the fake engine gives: the means of stripes.
fn means(pictures: &[f32], is_half: bool) -> Vec<f32> {
    let round = |value: &f32| if is_half { f16::from_f32(*value).to_f32() } else { *value };
    let stripes = pictures.chunks(LEN).flat_map(|picture| picture.chunks(LEN / DIM));
    stripes.map(|s| (s.iter().map(|v| f64::from(round(v))).sum::<f64>() / s.len() as f64) as f32).collect()
}

fn on_host(pictures: &[f32]) -> Tensors {
    let mut buffer = TensorPool::new(pictures.len() + 5).take();
    buffer[..pictures.len()].copy_from_slice(pictures);
    Tensors::Host(buffer)
}

fn on_device(pictures: &[f32], float: Float) -> Tensors {
    let gpu = Gpu::open(0).unwrap();
    let bytes: Vec<u8> = match float {
        Float::Single => pictures.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Float::Half => pictures.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
    };
    let mut buffer = DeviceBuffer::new(&gpu, bytes.len()).unwrap();
    buffer.write(0, &bytes, &gpu.stream().unwrap()).unwrap();
    Tensors::Device(DeviceTensors { buffer, float })
}

/// The path of the fake's report, in a folder that stays until the program ends.
fn report() -> String {
    let folder = tempfile::tempdir().unwrap().keep();
    folder.join("report").display().to_string()
}

#[test]
fn batches_come_out_in_order_two_under_way() {
    if !inside("batches_come_out_in_order_two_under_way", &[("FAKE_TENSORRT_REPORT", &report())]) {
        return;
    }
    for precision in [Precision::Fp16, Precision::Fp32] {
        let site = Site::new();
        let mut tower = site.open(precision, 20);
        let is_half = precision == Precision::Fp16;
        assert_eq!(tower.float(), if is_half { Float::Half } else { Float::Single });
        assert_eq!((tower.depth(), tower.most()), (2, 20));
        // Every bucket (1, 4, 16, 20) more than twice, so that graphs are launched in both slots.
        let sizes = [1, 20, 3, 17, 4, 16, 2, 20, 1, 1, 20, 20, 5, 16, 4, 1, 3, 20, 1, 16, 7, 4];
        let batches: Vec<Vec<f32>> = sizes.iter().enumerate().map(|(i, n)| pictures(*n, i)).collect();
        let mut collected = Vec::new();
        for (i, batch) in batches.iter().enumerate() {
            if tower.in_flight() == 2 {
                collected.push(tower.collect().unwrap());
            }
            let tensors = if i % 3 == 0 { on_device(batch, tower.float()) } else { on_host(batch) };
            tower.submit(tensors, sizes[i]).unwrap();
        }
        assert_eq!(tower.in_flight(), 2);
        assert!(tower.submit(on_host(&batches[0]), 1).unwrap_err().to_string().contains("under way"));
        collected.push(tower.collect().unwrap());
        collected.push(tower.collect().unwrap());
        assert!(tower.collect().is_err());
        assert_eq!(collected.len(), batches.len());
        for (i, (got, batch)) in collected.iter().zip(&batches).enumerate() {
            assert_eq!(got.embeddings, means(batch, is_half), "batch {i} of {}", sizes[i]);
        }
        assert!(tower.has_graphs());
        let e = tower.submit(on_host(&pictures(21, 0)), 21).unwrap_err().to_string();
        assert!(e.contains("21") && e.contains("20 is most"), "{e}");
        let other = if is_half { Float::Single } else { Float::Half };
        let e = tower.submit(on_device(&pictures(1, 0), other), 1).unwrap_err().to_string();
        assert!(e.contains("F32") && e.contains("F16"), "{e}");
        // One is dropped while it works.
        tower.submit(on_host(&batches[0]), 1).unwrap();
    }
    assert!(built()[0].contains("precision 1") && built()[0].contains("4 1 4 16 20"), "{:?}", built());
    assert!(built()[1].contains("precision 0"), "{:?}", built());
}

#[test]
fn an_engine_is_built_once_and_again_when_it_is_damaged_or_foreign() {
    let settings = [("FAKE_TENSORRT_REPORT", report()), ("FAKE_CUDA_DEVICES", "2".into())];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    if !inside("an_engine_is_built_once_and_again_when_it_is_damaged_or_foreign", &settings) {
        return;
    }
    let site = Site::new();
    let open = |gpu, precision, most, wanted: usize, why: &str| {
        let mut tower = site.open_on(gpu, precision, most).unwrap();
        let batch = pictures(2, 0);
        tower.submit(on_host(&batch), 2).unwrap();
        assert_eq!(tower.collect().unwrap().embeddings, means(&batch, precision == Precision::Fp16), "{why}");
        assert_eq!(built().len(), wanted, "{why}");
    };
    open(0, Precision::Fp16, 4, 1, "first");
    open(0, Precision::Fp16, 4, 1, "second");
    let [plan] = &site.plans()[..] else { panic!("{:?}", site.plans()) };
    let whole = fs::read(plan).unwrap();
    let mut wanted = 1;
    for cut in [0, 10, whole.len() / 2, whole.len() - 1] {
        fs::write(plan, &whole[..cut]).unwrap();
        wanted += 1;
        open(0, Precision::Fp16, 4, wanted, "truncated");
        assert_eq!(fs::read(plan).unwrap(), whole);
    }
    for at in [0, 20, 60, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(plan, &damaged).unwrap();
        wanted += 1;
        open(0, Precision::Fp16, 4, wanted, "damaged");
    }
    // What is left of a process that was killed does no harm.
    fs::write(plan.with_extension("plan.partial"), "half").unwrap();
    open(0, Precision::Fp16, 4, wanted, "with leftovers");
    // Another precision, batch or GPU is another engine; its file in the place of this one is foreign.
    open(0, Precision::Fp32, 4, wanted + 1, "precision");
    open(0, Precision::Fp16, 5, wanted + 2, "batch");
    open(1, Precision::Fp16, 4, wanted + 3, "GPU");
    wanted += 3;
    let others: Vec<PathBuf> = site.plans().into_iter().filter(|path| path != plan).collect();
    assert_eq!(others.len(), 3);
    for other in others {
        fs::copy(other, plan).unwrap();
        wanted += 1;
        open(0, Precision::Fp16, 4, wanted, "foreign");
        assert_eq!(fs::read(plan).unwrap(), whole);
    }
    // Another model of the same name.
    support::onnx::write_conv_model(&site.folder.path().join("tiny"));
    open(0, Precision::Fp16, 4, wanted + 1, "model");
    // A folder that cannot be written costs the next run time.
    fs::remove_file(plan).unwrap();
    fs::create_dir(plan.with_extension("plan.partial")).unwrap();
    support::onnx::write_image_model(&site.folder.path().join("tiny"));
    open(0, Precision::Fp16, 4, wanted + 2, "not kept");
    assert!(!plan.exists());
}

#[test]
fn many_who_want_the_same_engine_build_it_once() {
    if !inside("many_who_want_the_same_engine_build_it_once", &[("FAKE_TENSORRT_REPORT", &report())]) {
        return;
    }
    let site = Site::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut tower = site.open(Precision::Fp16, 4);
                let batch = pictures(3, 1);
                tower.submit(on_host(&batch), 3).unwrap();
                assert_eq!(tower.collect().unwrap().embeddings, means(&batch, true));
            });
        }
    });
    assert_eq!(built().len(), 1);
}

#[test]
fn a_plan_that_is_refused_is_built_again() {
    let settings = [("FAKE_TENSORRT_REPORT", report()), ("FAKE_TENSORRT_FAIL", "engine:2".into())];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    if !inside("a_plan_that_is_refused_is_built_again", &settings) {
        return;
    }
    let site = Site::new();
    drop(site.open(Precision::Fp16, 1));
    // The new one is refused as well: then it is an error, and not built for ever.
    let e = format!("{:#}", site.open_on(0, Precision::Fp16, 1).err().unwrap());
    assert!(e.contains("image.onnx") && e.contains("the plan is refused"), "{e}");
    assert_eq!(built().len(), 2);
}

#[test]
fn a_failing_engine_is_named() {
    let settings = [("FAKE_TENSORRT_FAIL", "enqueue:2")];
    if !inside("a_failing_engine_is_named", &settings) {
        return;
    }
    let mut tower = Site::new().open(Precision::Fp16, 4);
    tower.submit(on_host(&pictures(1, 0)), 1).unwrap();
    let e = tower.submit(on_host(&pictures(1, 1)), 1).unwrap_err().to_string();
    assert!(e.contains("TensorRT") && e.contains("the work is refused"), "{e}");
}

#[test]
fn a_failing_device_is_named() {
    if !inside("a_failing_device_is_named", &[("FAKE_CUDA_FAIL", "cuMemcpyDtoHAsync:2")]) {
        return;
    }
    let mut tower = Site::new().open(Precision::Fp16, 4);
    tower.submit(on_host(&pictures(1, 0)), 1).unwrap();
    tower.collect().unwrap();
    let e = tower.submit(on_host(&pictures(1, 1)), 1).unwrap_err().to_string();
    assert!(e.contains("cuMemcpyDtoHAsync") && e.contains("illegal"), "{e}");
}

#[test]
fn graphs_are_done_without_where_they_cannot_be_recorded() {
    let name = "graphs_are_done_without_where_they_cannot_be_recorded";
    if !inside(name, &[("FAKE_TENSORRT_REFUSE_RECORDING", "1")]) {
        return;
    }
    let mut tower = Site::new().open(Precision::Fp16, 4);
    for seed in 0..6 {
        let batch = pictures(4, seed);
        tower.submit(on_host(&batch), 4).unwrap();
        assert_eq!(tower.collect().unwrap().embeddings, means(&batch, true), "{seed}");
    }
    assert!(!tower.has_graphs());
}

#[test]
fn a_build_that_fails_or_is_stopped_says_so() {
    if !inside("a_build_that_fails_or_is_stopped_says_so", &[("FAKE_TENSORRT_FAIL", "build:1")]) {
        return;
    }
    let site = Site::new();
    let mut told = Vec::new();
    let stopped = site.open_told(0, Precision::Fp16, 4, &mut |text| {
        told.push(text.to_owned());
        false
    });
    let e = stopped.err().unwrap().to_string();
    assert!(e.contains("stopped while building"), "{e}");
    assert!(told[0].contains("image.onnx in fp16 for fake device 0"), "{told:?}");
    assert!(site.plans().is_empty());
    let e = format!("{:#}", site.open_on(0, Precision::Fp16, 4).err().unwrap());
    assert!(e.contains("image.onnx") && e.contains("no plan can be built"), "{e}");
}

#[test]
fn a_build_is_stopped_half_way() {
    if !inside("a_build_is_stopped_half_way", &[("FAKE_TENSORRT_SLOW", "1")]) {
        return;
    }
    let site = Site::new();
    let mut told = Vec::new();
    let stopped = site.open_told(0, Precision::Fp16, 4, &mut |text| {
        told.push(text.to_owned());
        told.len() < 3
    });
    let e = stopped.err().unwrap().to_string();
    assert!(e.contains("stopped while building"), "{e}");
    assert!(told.iter().any(|text| text.contains("%, pretending")), "{told:?}");
    assert!(site.plans().is_empty());
}

#[test]
fn strongly_typed_engines_are_built_of_fp16_files() {
    let settings = [("FAKE_TENSORRT_REPORT", report()), ("FAKE_TENSORRT_VERSION", "110400".into())];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    if !inside("strongly_typed_engines_are_built_of_fp16_files", &settings) {
        return;
    }
    let site = Site::new();
    let batch = pictures(4, 0);
    for (precision, half) in [(Precision::Fp32, false), (Precision::Fp16, true)] {
        let mut tower = site.open(precision, 4);
        tower.submit(on_host(&batch), 4).unwrap();
        assert_eq!(tower.collect().unwrap().embeddings, means(&batch, half));
    }
    let onnx = fs::read(site.folder.path().join("tiny/image.onnx")).unwrap();
    let bytes = |onnx: &[u8]| format!("{} bytes of ONNX", onnx.len());
    assert!(built()[0].contains(&bytes(&onnx)), "{:?}", built());
    assert!(built()[1].contains(&bytes(&rewrite(&onnx, true).unwrap())), "{:?}", built());
}

#[test]
fn it_is_a_network_like_others() {
    if !inside("it_is_a_network_like_others", &[]) {
        return;
    }
    let site = Site::new();
    let libraries = Libraries::find(&site.home());
    let engine = Engine { backend: Backend::Tensorrt, precision: Precision::Fp16 };
    network::check(engine, &libraries).unwrap();
    assert_eq!(network::runtime(engine, &libraries).unwrap(), "TensorRT 10.16.0");
    let file = site.folder.path().join("tiny/image.onnx");
    let mut network = network::open(&file, Opening { engine, threads: 1 }, &libraries).unwrap();
    assert_eq!(network.names(), (vec!["pixel_values".to_owned()], vec!["embedding".to_owned()]));
    // More than it runs at once.
    let batch = pictures(150, 0);
    let feed = Feed { name: "pixel_values", shape: vec![150, 3, SIDE, SIDE], values: Values::F32(&batch) };
    let [array] = &network.run(std::slice::from_ref(&feed), &["embedding"]).unwrap()[..] else { panic!() };
    assert_eq!(array.shape, [150, DIM]);
    assert_eq!(array.values, means(&batch, true));
    assert!(network.run(&[feed], &["nothing"]).is_err());
    let bf16 = Engine { backend: Backend::Tensorrt, precision: Precision::Bf16 };
    assert!(network::check(bf16, &libraries).unwrap_err().to_string().contains("no tensorrt bf16"));
}

/// A real plan of a model in fp16, built by TensorRT-RTX on the CPU.
fn check_rtx(rtx: TensorRt, folder: &Path) {
    let model = Model::open(folder).unwrap();
    let image = &model.card.image;
    let onnx = fs::read(model.file(&image.file)).unwrap();
    let profile = |n: usize| {
        let sizes = vec![n, 3, image.height, image.width];
        vec![Range { input: image.input.clone(), least: sizes.clone(), best: sizes.clone(), most: sizes }]
    };
    let options = |is_half_input, numbers| BuildOptions {
        is_half_input,
        capability: Some(89),
        ..BuildOptions::new(numbers, vec![profile(1), profile(4), profile(16)])
    };
    let build = |onnx: &[u8], options: &BuildOptions| rtx.build(None, onnx, options, &mut |_, _| true);
    let whole = build(&onnx, &options(false, Numbers::Fp32)).unwrap();
    let half = build(&rewrite(&onnx, true).unwrap(), &options(true, Numbers::Fp16)).unwrap();
    eprintln!("{}: a plan of {} bytes in fp32, {} in fp16", model.card.name, whole.len(), half.len());
    // The plan of a tiny network is all code.
    assert!(half.len() < whole.len() || onnx.len() < 1 << 20);
    // An fp32 file is no fp16 engine, where the file says all.
    let e = build(&onnx, &options(true, Numbers::Fp16)).unwrap_err().to_string();
    assert!(e.contains("fp32 in the ONNX file"), "{e}");
}

#[test]
fn rtx_builds_the_fp16_form_of_models() {
    let folder = Home::from_env().folder().join("gpu-tests/tensorrt-rtx");
    let rtx = match TensorRt::find(std::slice::from_ref(&folder)) {
        Ok(rtx) if rtx.version().is_rtx => rtx,
        found => {
            let why = found.map_or_else(|e| e.to_string(), |other| format!("{other:?} is another"));
            return support::skip(&why, "CLIPMILL_REQUIRE_GPU_PACKAGES");
        }
    };
    let site = Site::new();
    support::onnx::write_conv_model(&site.folder.path().join("conv"));
    check_rtx(rtx, &site.folder.path().join("tiny"));
    support::onnx::write_norm_model(&site.folder.path().join("norm"));
    check_rtx(rtx, &site.folder.path().join("conv"));
    check_rtx(rtx, &site.folder.path().join("norm"));
    let default = Home::from_env().models().join("efficientnet-lite0-minilm");
    if default.is_dir() {
        check_rtx(rtx, &default);
        // One that takes seconds can be stopped for certain.
        let onnx = fs::read(default.join("image.onnx")).unwrap();
        let sizes = vec![1, 3, 224, 224];
        let range =
            Range { input: "pixel_values".into(), least: sizes.clone(), best: sizes.clone(), most: sizes };
        let options =
            BuildOptions { capability: Some(89), ..BuildOptions::new(Numbers::Fp32, vec![vec![range]]) };
        let stopped = rtx.build(None, &onnx, &options, &mut |_, _| false);
        assert_eq!(stopped.err(), Some(Error::Stopped));
    }
}
