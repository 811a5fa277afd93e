//! The Arrow schemas of a run's Parquet files: a contract with its readers.

use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

/// Raised when a column is renamed, removed or changes its meaning; added columns do not count.
pub const SCHEMA_VERSION: u32 = 1;

/// Columns of `clips/` before the manifest's own.
pub const CLIP_COLUMNS: &[&str] = &[
    "clip_id",
    "path",
    "label",
    "content_hash",
    "codec",
    "container",
    "width",
    "height",
    "fps",
    "duration_ns",
    "n_frames",
    "n_sampled",
    "decoder",
    "status",
    "detail",
    "embedding",
    "model",
    "model_hash",
    "preprocess_hash",
];

/// What a stored vector is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Element {
    /// 2 bytes a value.
    #[default]
    Float16,
    /// 4 bytes a value, for readers that refuse the other: Spark.
    Float32,
}

impl Element {
    /// All, the default first.
    pub const ALL: [Self; 2] = [Self::Float16, Self::Float32];

    /// As settings name it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Float16 => "float16",
            Self::Float32 => "float32",
        }
    }

    /// Of one value.
    pub fn bytes(self) -> usize {
        match self {
            Self::Float16 => 2,
            Self::Float32 => 4,
        }
    }

    fn data_type(self) -> DataType {
        match self {
            Self::Float16 => DataType::Float16,
            Self::Float32 => DataType::Float32,
        }
    }

    /// That of a column of vectors.
    pub(crate) fn of(data_type: &DataType) -> Option<Self> {
        Self::ALL.into_iter().find(|e| e.data_type() == *data_type)
    }
}

/// What the vectors of a run look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorShape {
    /// Length of the joint vectors.
    pub dim: usize,
    /// Length of the image tower's vectors where they are kept, else 0.
    pub image_dim: usize,
    /// Of both.
    pub element: Element,
}

fn vector(name: &str, dim: usize, element: Element) -> Field {
    let value = Field::new("element", element.data_type(), false);
    Field::new(name, DataType::FixedSizeList(value.into(), dim as i32), false)
}

fn with_version(fields: Vec<Field>) -> SchemaRef {
    let version = [("clipmill.schema_version".to_owned(), SCHEMA_VERSION.to_string())];
    Arc::new(Schema::new(fields).with_metadata(HashMap::from(version)))
}

/// `frames/`: a row a sampled frame.
pub fn frames(shape: VectorShape) -> SchemaRef {
    let mut fields = vec![
        Field::new("clip_id", DataType::UInt64, false),
        Field::new("path", DataType::Utf8, false),
        Field::new("label", DataType::Utf8, true),
        Field::new("frame_index", DataType::UInt32, false),
        Field::new("pts_ns", DataType::Int64, false),
        Field::new("is_keyframe", DataType::Boolean, false),
        vector("embedding", shape.dim, shape.element),
    ];
    if shape.image_dim > 0 {
        fields.push(vector("image_embedding", shape.image_dim, shape.element));
    }
    with_version(fields)
}

/// `clips/`: a row a clip, the manifest's further columns last.
pub fn clips(shape: VectorShape, extra_columns: &[String]) -> SchemaRef {
    let own = CLIP_COLUMNS.iter().map(|name| match *name {
        "clip_id" => Field::new(*name, DataType::UInt64, false),
        "width" | "height" | "n_frames" | "n_sampled" => Field::new(*name, DataType::UInt32, false),
        "fps" => Field::new(*name, DataType::Float64, false),
        "duration_ns" => Field::new(*name, DataType::Int64, false),
        "embedding" => vector(name, shape.dim, shape.element),
        "label" | "detail" => Field::new(*name, DataType::Utf8, true),
        _ => Field::new(*name, DataType::Utf8, false),
    });
    let extra = extra_columns.iter().map(|name| Field::new(name, DataType::Utf8, true));
    with_version(own.chain(extra).collect())
}

/// `rejects.parquet`: a row a rejected clip.
pub fn rejects() -> SchemaRef {
    with_version(vec![
        Field::new("clip_id", DataType::UInt64, false),
        Field::new("path", DataType::Utf8, false),
        Field::new("label", DataType::Utf8, true),
        Field::new("stage", DataType::Utf8, false),
        Field::new("reason", DataType::Utf8, false),
        Field::new("detail", DataType::Utf8, false),
    ])
}
