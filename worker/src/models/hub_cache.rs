//! The Hugging Face cache that other programs fill.
//!
//! Invariant: only read; a snapshot is taken only when every file a model needs is there.

use std::path::{Path, PathBuf};

use super::reference::{HubModel, is_name};

/// `ROOT/models--org--name/{refs/REVISION, snapshots/COMMIT/…}`. `Err` says why the model is not there.
pub(super) fn find(root: &Path, model: &HubModel) -> Result<PathBuf, String> {
    let directory = root.join(model.directory_name());
    if !directory.is_dir() {
        return Err("the model is not in this cache".to_owned());
    }
    let reference = directory.join("refs").join(&model.revision);
    let commit = match std::fs::read_to_string(&reference) {
        Ok(commit) => commit.trim().to_owned(),
        Err(_) => model.revision.clone(),
    };
    let snapshot = directory.join("snapshots").join(&commit);
    if !is_name(&commit) || !snapshot.is_dir() {
        return Err(format!("it has no snapshot of revision {}", model.revision));
    }
    if let Some(file) = &model.file {
        let path = snapshot.join(file);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(format!("its snapshot has no {file}"))
        };
    }
    check(&snapshot).map(|()| snapshot)
}

/// Whether a directory holds a whole model. `Err` says what is missing.
pub(super) fn check(directory: &Path) -> Result<(), String> {
    let has = |name: &str| directory.join(name).is_file();
    if has("config.json") && has("model.safetensors") {
        return Ok(());
    }
    let index = directory.join("model.safetensors.index.json");
    if has("config.json") && index.is_file() {
        let shards = shards(&std::fs::read(&index).map_err(|error| error.to_string())?)?;
        return match shards.iter().find(|shard| !has(shard)) {
            Some(missing) => Err(format!("its {missing} is missing")),
            None => Ok(()),
        };
    }
    let entries = std::fs::read_dir(directory).map_err(|error| error.to_string())?;
    let is_gguf = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "gguf");
    match entries
        .flatten()
        .map(|entry| entry.path())
        .filter(is_gguf)
        .count()
    {
        1 => Ok(()),
        0 => Err("it has neither config.json with safetensors nor a .gguf file".to_owned()),
        n => Err(format!(
            "it has {n} .gguf files; name one, as in org/name/file.gguf"
        )),
    }
}

/// The files that an index of shards names, each once.
pub(super) fn shards(index: &[u8]) -> Result<Vec<String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index)
        .map_err(|error| format!("its index of shards cannot be read: {error}"))?;
    let mut shards: Vec<String> = index.weight_map.into_values().collect();
    shards.sort_unstable();
    shards.dedup();
    match shards.iter().find(|shard| !is_name(shard)) {
        Some(odd) => Err(format!("its index names `{odd}`, which is no file beside it")),
        None => Ok(shards),
    }
}
