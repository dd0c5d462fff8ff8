//! A model on disk: which files make it up, and what they hold together.
//!
//! Invariant: nothing of the weights is read until a tensor is asked for; the files are mapped.

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::chat_template::ChatTemplate;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::safetensors::Shards;
use crate::tokenizer::{Tokenizer, TokenizerConfig};
use crate::weights::Weights;

/// Most bytes of a text file of a model; the largest tokenizer.json in use has 33 MB.
const TEXT_BYTES_MAX: u64 = 256 << 20;

/// An opened base model.
#[derive(Debug)]
pub struct ModelFiles {
    /// What it is.
    pub config: ModelConfig,
    /// Its tensors.
    pub weights: Weights,
    /// Its tokenizer, where the files hold one.
    pub tokenizer: Option<Tokenizer>,
    /// Its chat template, where the files hold one.
    pub chat_template: Option<ChatTemplate>,
    /// Names the weights: sha256 in hex over headers, sizes and samples of the weight files, wherever they lie.
    pub identity: String,
    /// The `.gguf` file or the directory.
    pub path: PathBuf,
}

impl ModelFiles {
    /// Opens a `.gguf` file, a directory with `config.json` and `model.safetensors` (or its shards and index), or a
    /// directory with exactly one `.gguf` file.
    ///
    /// Fails when there is no such thing, when a file is damaged, or when the model is of an unsupported kind.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::open_directory(path);
        }
        let metadata = std::fs::metadata(path);
        metadata.map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        if !is_gguf(path) {
            return Err(no_model(path, "a file of another kind"));
        }
        Self::open_gguf(path, None)
    }

    /// The model that a directory's `config.json` describes, with made-up weights: for measuring what it costs.
    ///
    /// Fails when there is no such file, and when the model is of an unsupported kind.
    pub fn with_random_weights(directory: &Path) -> Result<Self> {
        let config = ModelConfig::from_json_file(&directory.join("config.json"))?;
        let weights = Weights::random(directory, config.clone());
        Ok(Self {
            config,
            weights,
            tokenizer: None,
            chat_template: None,
            identity: "random".to_owned(),
            path: directory.to_owned(),
        })
    }

    /// The tokenizer, or an error that says where one was expected.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| Error::NoTokenizer {
            path: self.path.clone(),
        })
    }

    /// The chat template, or an error that says where one was expected.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        let missing = || Error::NoChatTemplate {
            path: self.path.clone(),
        };
        self.chat_template.as_ref().ok_or_else(missing)
    }

    fn open_directory(directory: &Path) -> Result<Self> {
        let config_path = directory.join("config.json");
        if config_path.is_file()
            && let Some(shards) = Shards::open(directory)?
        {
            let config = ModelConfig::from_json_file(&config_path)?;
            let identity = identity(shards.files().iter().map(|file| (file.header(), file.bytes())));
            let weights = Weights::from_safetensors(shards, config.clone());
            return Self::assemble(directory, config, weights, identity, None);
        }
        let mut found = Vec::new();
        let entries = std::fs::read_dir(directory).map_err(|source| Error::Read {
            path: directory.to_owned(),
            source,
        })?;
        for entry in entries {
            let entry = entry.map_err(|source| Error::Read {
                path: directory.to_owned(),
                source,
            })?;
            found.extend(Some(entry.path()).filter(|path| is_gguf(path)));
        }
        match &found[..] {
            [only] => Self::open_gguf(only, Some(directory)),
            [] if config_path.is_file() => Err(no_model(directory, "config.json without weights")),
            [] => Err(no_model(directory, "neither config.json nor a .gguf file")),
            several => Err(no_model(
                directory,
                &format!("{} .gguf files; name one of them", several.len()),
            )),
        }
    }

    /// Opens a GGUF file; texts in `directory` go before those of the file itself.
    fn open_gguf(path: &Path, directory: Option<&Path>) -> Result<Self> {
        let mut file = GgufFile::open(path)?;
        let config = ModelConfig::from_gguf(&file)?;
        let identity = identity(std::iter::once((file.header(), file.bytes())));
        let own = (Tokenizer::from_gguf(&file)?, ChatTemplate::from_gguf(&file)?);
        file.forget("tokenizer.");
        let weights = Weights::from_gguf(file, config.clone());
        let mut files = Self::assemble(directory.unwrap_or(path), config, weights, identity, Some(own))?;
        path.clone_into(&mut files.path);
        Ok(files)
    }

    /// Adds tokenizer and template of a directory, else `own`, and makes all parts agree on the end tokens.
    fn assemble(
        path: &Path,
        mut config: ModelConfig,
        weights: Weights,
        identity: String,
        own: Option<(Option<Tokenizer>, Option<ChatTemplate>)>,
    ) -> Result<Self> {
        let (own_tokenizer, own_template) = own.unwrap_or_default();
        let texts = TokenizerConfig::open(path)?;
        let mut tokenizer = Tokenizer::open(path, &texts)?.or(own_tokenizer);
        let mut chat_template = ChatTemplate::open(path, texts.chat_template.as_ref())?.or(own_template);
        if let Some(tokenizer) = &mut tokenizer {
            tokenizer.leave_out_images(&config);
            if tokenizer.vocab_size() > config.vocab_size {
                let reason = format!(
                    "it has token {}, the embedding has {} rows; the tokenizer belongs to another model",
                    tokenizer.vocab_size() - 1,
                    config.vocab_size
                );
                return Err(Error::Tokenizer {
                    path: path.to_owned(),
                    reason,
                });
            }
            tokenizer.agree_with(&mut config);
            chat_template = chat_template.map(|template| template.with_special_tokens(tokenizer));
        }
        Ok(Self {
            config,
            weights,
            tokenizer,
            chat_template,
            identity,
            path: path.to_owned(),
        })
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

fn no_model(path: &Path, found: &str) -> Error {
    Error::NoModel {
        path: path.to_owned(),
        found: found.to_owned(),
    }
}

/// Names weights without reading all of them: two checkpoints of one architecture have the same header and size, but
/// not the same bytes in each of 64 samples.
fn identity(files: impl Iterator<Item = (impl AsRef<[u8]>, llamaduo_kernels::SharedBytes)>) -> String {
    const SAMPLES: usize = 64;
    const SAMPLE_BYTES: usize = 4096;
    let mut hasher = Sha256::new();
    for (header, bytes) in files {
        let bytes: &[u8] = (*bytes).as_ref();
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(header.as_ref());
        for sample in 0..SAMPLES {
            let start = bytes.len() / SAMPLES * sample;
            let end = (start + SAMPLE_BYTES).min(bytes.len());
            hasher.update(bytes.get(start..end).unwrap_or_default());
        }
    }
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// What a model is, of which no more need be here than its `config.json`: that file, its directory, or what
/// [`ModelFiles::open`] opens.
pub fn describe(path: &Path) -> Result<ModelConfig> {
    let beside = path.join("config.json");
    if path.is_file() && path.extension().is_some_and(|end| end == "json") {
        ModelConfig::from_json_file(path)
    } else if beside.is_file() {
        ModelConfig::from_json_file(&beside)
    } else if path.is_file() && is_gguf(path) {
        ModelConfig::from_gguf(&GgufFile::open(path)?)
    } else {
        Ok(ModelFiles::open(path)?.config)
    }
}

/// A text file, whole. Fails when it cannot be read, is absurdly long or not UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let read = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let size = std::fs::metadata(path).map_err(read)?.len();
    if size > TEXT_BYTES_MAX {
        let found = format!("it has {size} bytes, more than {TEXT_BYTES_MAX}");
        return Err(Error::Damaged {
            path: path.to_owned(),
            found,
        });
    }
    std::fs::read_to_string(path).map_err(read)
}

/// A JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_str(&read_text(path)?).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })
}
