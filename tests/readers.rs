//! What a run leaves is read by what people use: pyarrow, DuckDB, Polars, pandas and Hugging Face's
//! `datasets`, through `data/readers.py`; every value, in both forms of vectors.

use std::{fs, path::Path, process::Command, sync::Arc};

use arrow::datatypes::DataType;
use half::f16;
use serde_json::{Value, json};
use stages::{
    index::{
        self, Index,
        ledger::Ledger,
        schema::{Element, VectorShape},
    },
    item::{ClipId, ClipRef, EmbeddingBatch, FrameInfo, Pts},
    model::Home,
    stage::{Kept, Stage as _},
};
use support::{
    clips::{Clip, H264_MP4, MPEG4_AVI, VP8_WEBM, make},
    data,
    rows::{end, settings},
    run::{Outcome, Site, Table, outcome},
};

/// Compares a run with what is expected, in all readers; unless this machine lacks them.
fn read_by_all(out: &Path, expected: &Value) -> Option<Outcome> {
    let python = Home::from_env().folder().join("readers-venv/bin/python");
    if !python.is_file() {
        let why = format!("there is no {}; `make readers` installs it", python.display());
        support::skip(&why, "CLIPMILL_REQUIRE_MODEL");
        return None;
    }
    let path = out.with_extension("expected.json");
    fs::write(&path, serde_json::to_vec(expected).unwrap()).unwrap();
    let mut command = Command::new(python);
    command.arg(data("readers.py")).arg(out).arg(path);
    let done = outcome(command).expect(0);
    for reader in ["pyarrow", "duckdb", "polars", "pandas", "datasets"] {
        for table in ["frames", "clips"] {
            assert!(done.stdout.contains(&format!("{reader}: {table}, ")), "{}", done.stdout);
        }
    }
    Some(done)
}

/// A table's columns with all values; those of vectors in files of their own beside `out`.
fn columns_of(out: &Path, name: &str) -> Value {
    let table = Table::read(out, name).sorted();
    let column = |field: &Arc<arrow::datatypes::Field>| {
        let column = field.name();
        let values = match field.data_type() {
            DataType::Utf8 => json!(table.texts(column)),
            DataType::Float64 => json!(table.floats(column)),
            DataType::Boolean => json!(table.flags(column)),
            DataType::FixedSizeList(_, dim) => {
                let path = out.with_extension(format!("{name}.{column}.f32"));
                let values = table.vectors(column).concat();
                fs::write(&path, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()).unwrap();
                return json!({"name": column, "vectors": path, "dim": dim});
            }
            _ => json!(table.numbers(column)),
        };
        json!({"name": column, "values": values})
    };
    table.schema().fields().iter().map(column).collect()
}

fn expected(out: &Path) -> Value {
    json!({"frames": columns_of(out, "frames"), "clips": columns_of(out, "clips")})
}

#[test]
fn a_run_is_read_by_all() {
    let site = Site::new();
    for form in [MPEG4_AVI, H264_MP4, VP8_WEBM] {
        make(&site.path("clips"), &Clip::counting(form));
    }
    let rows = "camera,path,verb\nfront,clips/vp8.webm,run\n,clips/h264.mp4,\"sit, then stand\"\nback,clips/mpeg4.avi,\n";
    fs::write(site.path("list.csv"), rows).unwrap();
    for element in Element::ALL {
        let [list, out] = ["list.csv".to_owned(), element.word().to_owned()]
            .map(|name| site.path(&name).display().to_string());
        let settings = [
            ("input.clips", format!("{list:?}")),
            ("input.label", "\"verb\"".into()),
            ("output.dir", format!("{out:?}")),
            ("sample.every_ms", "100".into()),
            // A shard a clip.
            ("index.shard_rows", "1".into()),
            ("index.embedding", format!("{:?}", element.word())),
        ];
        let settings: Vec<(&str, &str)> = settings.iter().map(|(k, v)| (*k, v.as_str())).collect();
        site.run(&settings).expect(0);
        let out = Path::new(&out);
        assert_eq!(Table::read(out, "frames").len(), 60);
        read_by_all(out, &expected(out));
    }
}

/// Value `i` of a made-up column, by the hash of `i` (Wellons's lowbias32), in [-1, 1).
fn value(i: usize) -> f32 {
    let mut x = i as u32;
    for (shift, factor) in [(16, 0x7feb_352d), (15, 0x846c_a68b)] {
        x = (x ^ (x >> shift)).wrapping_mul(factor);
    }
    x ^= x >> 16;
    (x >> 8) as f32 / (1 << 23) as f32 - 1.0
}

/// More rows than a row group has, each with two vectors, their parts not in order: what was put in is
/// what every reader finds.
#[test]
fn many_pages_and_groups_are_read_by_all() {
    const N_CLIPS: usize = 17;
    const N_FRAMES: usize = 1_000;
    // Pages of 1 MiB end within clips; so do row groups. 9 is no multiple of 8, which levels are packed in.
    const DIMS: [usize; 2] = [64, 9];
    let site = Site::new();
    for element in Element::ALL {
        let out = site.path(element.word());
        fs::create_dir(&out).unwrap();
        let shape = VectorShape { dim: DIMS[0], image_dim: DIMS[1], element };
        let settings = index::Settings {
            extra_columns: vec!["take".into()],
            vectors: false,
            ..settings(&out, shape, 100_000)
        };
        let mut stage = Index::open(settings, Ledger::open(&out).unwrap().0).unwrap();
        let row = |row: usize, dim: usize| (0..dim).map(move |i| value(row * dim + i));
        for id in 0..N_CLIPS {
            let clip = Arc::new(ClipRef {
                id: ClipId(id as u64),
                path: format!("clip {id} é.mp4"),
                label: (id % 2 == 0).then(|| "even".to_owned()),
                extra: vec![(id % 3 == 0).then(|| id.to_string())],
            });
            let frames: Vec<usize> = (0..N_FRAMES).collect();
            let parts: Vec<&[usize]> = frames.chunks(7).collect();
            for (n_sent, part) in parts.iter().rev().enumerate() {
                let rows = |dim| part.iter().flat_map(|i| row(id * N_FRAMES + i, dim)).collect();
                let info = |i: &usize| FrameInfo {
                    frame_index: *i as u32,
                    pts: Pts { nanos: *i as i64 * 1_001 - 5 },
                    is_keyframe: i.is_multiple_of(12),
                };
                let batch = EmbeddingBatch {
                    clip: clip.clone(),
                    frames: part.iter().map(info).collect(),
                    embeddings: rows(DIMS[0]),
                    image_embeddings: rows(DIMS[1]),
                    end: (n_sent == 0).then(|| end(N_FRAMES, 1)),
                };
                stage.process(batch, &mut Kept(Vec::new())).unwrap();
            }
        }
        stage.finish(&mut Kept(Vec::new())).unwrap();
        drop(stage);

        let frames = Table::read(&out, "frames");
        assert_eq!(frames, frames.sorted());
        for (name, dim) in [("embedding", DIMS[0]), ("image_embedding", DIMS[1])] {
            for (n, found) in frames.vectors(name).iter().enumerate() {
                let stored = |v: f32| if element == Element::Float16 { f16::from_f32(v).to_f32() } else { v };
                let wanted: Vec<f32> = row(n, dim).map(stored).collect();
                assert_eq!(*found, wanted, "{name} of row {n}");
            }
        }
        read_by_all(&out, &expected(&out));
    }
}
