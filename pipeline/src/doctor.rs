//! The `doctor` command: what this machine has, what is missing, and how to get it.

mod gpu;

use std::path::Path;

use gstreamer as gst;
use kernels::ffi::libav;
use stages::{
    encode::{
        joint::JointSpace,
        network::{self, Libraries},
    },
    model::{Home, Model},
};

use crate::engines::table::{Measured, candidates, line};

/// One line of the diagnosis.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Whether clipmill can do its main job with this as it is.
    pub state: State,
    /// What was looked at.
    pub what: String,
    /// What was found, or the cure.
    pub told: String,
}

/// Of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Here.
    Here,
    /// Missing, and some clips or features do without it.
    Optional,
    /// Missing, and nothing works without it.
    Needed,
}

/// GStreamer elements, by the Debian package that brings them. FFmpeg decodes where they are missing.
const ELEMENTS: &[(&str, &str, &[&str])] = &[
    ("GStreamer core", "gstreamer1.0-plugins-base", &["appsrc", "appsink", "decodebin3", "videoconvert"]),
    (
        "GStreamer: MP4, AVI, Matroska, FLV",
        "gstreamer1.0-plugins-good",
        &["qtdemux", "avidemux", "matroskademux", "flvdemux"],
    ),
    (
        "GStreamer: H.264, H.265, MPEG-4, VP8, VP9",
        "gstreamer1.0-libav",
        &["avdec_h264", "avdec_h265", "avdec_mpeg4", "avdec_vp8", "avdec_vp9", "avdec_mjpeg"],
    ),
    (
        "GStreamer: transport streams, parsers, AV1, MXF",
        "gstreamer1.0-plugins-bad",
        &["tsdemux", "mpegpsdemux", "mxfdemux", "h264parse", "h265parse", "av1dec", "av1parse"],
    ),
    ("GStreamer: Windows Media, RealMedia", "gstreamer1.0-plugins-ugly", &["asfdemux", "rmdemux"]),
    ("GStreamer: Ogg Theora", "gstreamer1.0-plugins-base", &["oggdemux", "theoradec"]),
];

/// Looks at everything. With `program`, this one, engines that are not known are measured.
pub fn examine(home: &Home, program: Option<&Path>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add =
        |state, what: &str, told: String| findings.push(Finding { state, what: what.to_owned(), told });
    let [format, codec] = libav::versions();
    add(State::Here, "FFmpeg", format!("libavformat {format}, libavcodec {codec}"));
    match gst::init() {
        Ok(()) => add(State::Here, "GStreamer", gst::version_string().to_string()),
        Err(e) => add(
            State::Optional,
            "GStreamer",
            format!("does not start: {e}; apt-get install libgstreamer1.0-0"),
        ),
    }
    for (what, package, elements) in ELEMENTS {
        let missing: Vec<&str> =
            elements.iter().copied().filter(|e| gst::ElementFactory::find(e).is_none()).collect();
        if missing.is_empty() {
            add(State::Here, what, elements.join(", "));
        } else {
            add(State::Optional, what, format!("lacks {}; apt-get install {package}", missing.join(", ")));
        }
    }
    let libraries = Libraries::find(home);
    match network::version(&libraries.onnxruntime) {
        Ok(version) => {
            add(State::Here, "ONNX Runtime", format!("{version} ({})", libraries.onnxruntime.display()))
        }
        // rten stands in.
        Err(e) => add(State::Optional, "ONNX Runtime", format!("{e:#}").replace('\n', "; ")),
    }
    match &libraries.openvino {
        Some(library) => {
            let version = kernels::onnxruntime::version(library).unwrap_or_else(|| "unknown".into());
            add(State::Here, "OpenVINO", format!("in ONNX Runtime {version} ({})", library.display()));
        }
        None => add(State::Optional, "OpenVINO", "not installed; `make setup` does on x86-64".into()),
    }
    let models = home.list();
    if models.is_empty() {
        add(
            State::Needed,
            "models",
            format!("none in {}; `make setup` installs the default", home.models().display()),
        );
    }
    for model in models {
        let what = format!("model {}", model.card.name);
        match JointSpace::open(&model) {
            Ok(joint) => {
                add(State::Here, &what, format!("{} values, {}", joint.dim(), model.folder.display()));
                engines(&model, home, &libraries, program, &mut add);
            }
            Err(e) => add(State::Needed, &what, format!("{e:#}").replace('\n', "; ")),
        }
    }
    let features = cpu_features();
    add(
        State::Here,
        "CPU",
        format!("{} cores, {features}", std::thread::available_parallelism().map_or(1, |n| n.get())),
    );
    gpu::examine(home, &mut add);
    findings
}

/// A line for each engine of a model.
fn engines(
    model: &Model,
    home: &Home,
    libraries: &Libraries,
    program: Option<&Path>,
    add: &mut dyn FnMut(State, &str, String),
) {
    let what = format!("engine of {}", model.card.name);
    let mut measured = match Measured::open(model, home, libraries, program) {
        Ok(measured) => measured,
        Err(e) => return add(State::Optional, &what, format!("{e:#}").replace('\n', "; ")),
    };
    let candidates = candidates(model, libraries, true);
    let done = program.map_or(Ok(()), |_| {
        measured.forgive();
        measured.measure(&candidates, &mut |_| ())
    });
    if let Err(e) = done {
        add(State::Optional, &what, format!("{e:#}").replace('\n', "; "));
    }
    for engine in candidates {
        match measured.row(engine) {
            Some(row) if row.found.is_ok() => add(State::Here, &what, line(row)),
            Some(row) => add(State::Optional, &what, line(row)),
            None => add(
                State::Optional,
                &what,
                format!("{engine}: not measured yet; the first run does, or `clipmill doctor --measure`"),
            ),
        }
    }
}

fn cpu_features() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("AVX2", is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")),
            ("AVX-512", is_x86_feature_detected!("avx512f")),
            ("BF16", is_x86_feature_detected!("avx512bf16")),
        ];
        let here: Vec<&str> = known.iter().filter(|(_, is_here)| *is_here).map(|(name, _)| *name).collect();
        if here.is_empty() { "no AVX2".into() } else { here.join(", ") }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        std::env::consts::ARCH.to_owned()
    }
}
