//! Where models are installed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::Model;

/// Where models and the inference library are installed: `$CLIPMILL_HOME`, else
/// `$XDG_DATA_HOME/clipmill`, else `~/.local/share/clipmill`.
#[derive(Clone, Debug)]
pub struct Home {
    folder: PathBuf,
}

impl Home {
    /// By the environment.
    pub fn from_env() -> Self {
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let folder = var("CLIPMILL_HOME")
            .or_else(|| var("XDG_DATA_HOME").map(|d| d.join("clipmill")))
            .or_else(|| var("HOME").map(|d| d.join(".local/share/clipmill")))
            .unwrap_or_else(|| PathBuf::from("clipmill-home"));
        Self { folder }
    }

    /// In this folder.
    pub fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Folder of the models.
    pub fn models(&self) -> PathBuf {
        self.folder.join("models")
    }

    /// All models that can be opened, by name.
    pub fn list(&self) -> Vec<Model> {
        let mut models: Vec<Model> = self.opened().into_iter().filter_map(|(_, model)| model.ok()).collect();
        models.sort_by(|a, b| a.card.name.cmp(&b.card.name));
        models
    }

    /// Every folder of a model, whether or not it can be opened.
    pub fn opened(&self) -> Vec<(PathBuf, Result<Model>)> {
        let entries = fs::read_dir(self.models()).into_iter().flatten().flatten();
        // A hidden folder is a model on its way in or out.
        let shown = entries.filter(|e| !e.file_name().to_string_lossy().starts_with('.'));
        let folders = shown.map(|e| e.path()).filter(|path| path.is_dir());
        let mut opened: Vec<_> = folders.map(|path| (path.clone(), Model::open(&path))).collect();
        opened.sort_by(|a, b| a.0.cmp(&b.0));
        opened
    }

    /// ONNX Runtime's library: `$ORT_DYLIB_PATH`, else the installed one, else the system's.
    pub fn onnxruntime(&self) -> PathBuf {
        if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|v| !v.is_empty()) {
            return path.into();
        }
        let installed = self.folder.join("lib/libonnxruntime.so");
        if installed.is_file() { installed } else { "libonnxruntime.so".into() }
    }
}
