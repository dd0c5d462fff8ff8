//! A checkpoint of one safetensors file, or of several with their index.
//!
//! Invariant: the index names plain files of its own directory, and every tensor it lists is in the file it names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{SafetensorsFile, Tensor};
use crate::error::{Error, Result};
use crate::files::read_json;

/// Most files of a checkpoint; the largest models are published in fewer than 200.
const SHARDS_MAX: usize = 4096;

/// The tensors of a checkpoint directory.
#[derive(Debug)]
pub struct Shards {
    path: PathBuf,
    files: Vec<SafetensorsFile>,
    /// Which of `files` holds a tensor.
    index: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct IndexFile {
    weight_map: BTreeMap<String, String>,
}

impl Shards {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists; `None` when the directory
    /// holds neither.
    pub fn open(directory: &Path) -> Result<Option<Self>> {
        let single = directory.join("model.safetensors");
        if single.is_file() {
            return Self::of(directory, vec![SafetensorsFile::open(&single)?]).map(Some);
        }
        let index_path = directory.join("model.safetensors.index.json");
        if !index_path.is_file() {
            return Ok(None);
        }
        let listed: IndexFile = read_json(&index_path)?;
        let damaged = |found: String| Error::Damaged {
            path: index_path.clone(),
            found,
        };
        let mut names: Vec<&String> = listed.weight_map.values().collect();
        names.sort();
        names.dedup();
        if names.len() > SHARDS_MAX {
            return Err(damaged(format!(
                "it lists {} files, more than {SHARDS_MAX}",
                names.len()
            )));
        }
        let mut files = Vec::new();
        for name in names {
            if Path::new(name)
                .file_name()
                .is_none_or(|plain| plain != name.as_str())
            {
                return Err(damaged(format!("`{name}` is not the name of a file beside it")));
            }
            files.push(SafetensorsFile::open(&directory.join(name))?);
        }
        let shards = Self::of(directory, files)?;
        for (tensor, name) in &listed.weight_map {
            let (file, _) = shards.tensor(tensor)?;
            if file.path().file_name().is_none_or(|found| found != name.as_str()) {
                return Err(damaged(format!("tensor `{tensor}` is not in {name}")));
            }
        }
        Ok(Some(shards))
    }

    fn of(directory: &Path, files: Vec<SafetensorsFile>) -> Result<Self> {
        let mut index = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            for name in file.names() {
                if index.insert(name.to_owned(), number).is_some() {
                    let found = format!("tensor `{name}` is also in another shard");
                    return Err(Error::Damaged {
                        path: file.path().to_owned(),
                        found,
                    });
                }
            }
        }
        Ok(Self {
            path: directory.to_owned(),
            files,
            index,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All files, sorted by name.
    pub fn files(&self) -> &[SafetensorsFile] {
        &self.files
    }

    /// A tensor by its exact name, and the file that holds it.
    pub fn tensor(&self, name: &str) -> Result<(&SafetensorsFile, &Tensor)> {
        let file = self.index.get(name).and_then(|&number| self.files.get(number));
        let file = file.ok_or_else(|| Error::TensorMissing {
            path: self.path.clone(),
            tensor: name.to_owned(),
        })?;
        Ok((file, file.tensor(name)?))
    }
}
