//! Text to tokens and back.
//!
//! Invariant: no token is ever added that the text does not spell; who wants a BOS writes it (templates do).

pub(crate) mod gguf;
mod hugging_face;
mod stream;
#[cfg(test)]
mod tests;

use std::path::Path;

use crate::config::{Family, ModelConfig};
use crate::error::{Error, Result};
use crate::guard;

pub(crate) use hugging_face::TokenizerConfig;
pub use stream::StreamDecoder;

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    eos: Vec<u32>,
    unknown: Option<u32>,
    pad: Option<u32>,
    vocab_size: usize,
    /// Whether [`IMAGE_TOKEN`] has no row in the embedding.
    spells_image_token: bool,
}

/// What stands for a part of an image in Gemma 3. Its text models come with it too, one token beyond their embedding.
const IMAGE_TOKEN: &str = "<image_soft_token>";

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .finish()
    }
}

impl Tokenizer {
    /// Tokens of `text`, none added; the text of a special token becomes that token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        if !self.spells_image_token {
            return self.encode_part(text);
        }
        let mut parts = text.split(IMAGE_TOKEN);
        let mut ids = self.encode_part(parts.next().unwrap_or_default())?;
        for part in parts {
            let (head, tail) = IMAGE_TOKEN.split_at(1);
            for part in [head, tail, part] {
                ids.extend(self.encode_part(part)?);
            }
        }
        Ok(ids)
    }

    fn encode_part(&self, text: &str) -> Result<Vec<u32>> {
        let encoded = guarded(|| self.inner.encode_fast(text, false));
        let encoded = encoded.map_err(|source| Error::Encode {
            n_bytes: text.len(),
            source,
        })?;
        Ok(encoded.get_ids().to_vec())
    }

    /// Text of `ids`, special tokens and unknown ids left out; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, true)).map_err(|source| Error::Decode {
            n_tokens: ids.len(),
            source,
        })
    }

    /// First token of a sequence, where the tokenizer has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Tokens that end a response.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Padding token.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// The token with exactly this text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The special token with exactly this text.
    pub fn special_id(&self, token: &str) -> Option<u32> {
        let is_special = self.inner.get_added_vocabulary().is_special_token(token);
        self.token_id(token).filter(|_| is_special)
    }

    /// The text of a token as the vocabulary spells it.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The token that stands for what no other spells.
    pub(crate) fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// The texts of all special tokens.
    pub(crate) fn special_tokens(&self) -> Vec<String> {
        let added = self.inner.get_added_tokens_decoder().into_values();
        let mut texts: Vec<String> = added
            .filter(|token| token.special)
            .map(|token| token.content)
            .collect();
        texts.sort_unstable();
        texts
    }

    /// The whole definition, as `tokenizer.json` spells it.
    pub(crate) fn definition(&self) -> Result<String> {
        guarded(|| self.inner.to_string(false))
            .map_err(|source| build_error(Path::new("tokenizer.json"), &source))
    }

    /// Whether a token adds anything to a decoded text: special and unknown ones do not.
    fn has_text(&self, id: u32) -> bool {
        self.token_text(id)
            .is_some_and(|text| !self.inner.get_added_vocabulary().is_special_token(&text))
    }

    /// One more than the largest id that text can become.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The special tokens under the names that chat templates know them by.
    pub(crate) fn special_texts(&self) -> Vec<(&'static str, String)> {
        [
            ("bos_token", self.bos),
            ("eos_token", self.eos.first().copied()),
            ("unk_token", self.unknown),
            ("pad_token", self.pad),
        ]
        .into_iter()
        .filter_map(|(name, id)| Some((name, self.token_text(id?)?)))
        .collect()
    }

    /// The end tokens of the model's description and of the tokenizer become one list in both, the tokenizer's own
    /// first; what the tokenizer lacks otherwise it takes from the description.
    pub(crate) fn agree_with(&mut self, config: &mut ModelConfig) {
        for &id in &config.eos {
            if !self.eos.contains(&id) {
                self.eos.push(id);
            }
        }
        config.eos.clone_from(&self.eos);
        self.pad = self.pad.or(config.pad);
    }

    /// Leaves the token that stands for images to its letters, where the model has no row for it.
    pub(crate) fn leave_out_images(&mut self, config: &ModelConfig) {
        let is_one_more = self.vocab_size == config.vocab_size + 1;
        let last = self
            .vocab_size
            .checked_sub(1)
            .and_then(|id| u32::try_from(id).ok());
        if config.family == Family::Gemma3 && is_one_more && self.token_id(IMAGE_TOKEN) == last {
            self.spells_image_token = true;
            self.vocab_size = config.vocab_size;
        }
    }

    /// Builds the library's tokenizer from its JSON definition.
    fn build(path: &Path, definition: &[u8]) -> Result<Self> {
        let failed = |source| build_error(path, &source);
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(definition)).map_err(failed)?;
        // A definition may carry the settings of some training run; texts are never cut or filled here.
        inner.with_truncation(None).map_err(failed)?;
        inner.with_padding(None);
        let vocab_size = inner
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |id| id as usize + 1);
        Ok(Self::of(inner, vocab_size))
    }

    /// With no special tokens known yet.
    fn of(inner: tokenizers::Tokenizer, vocab_size: usize) -> Self {
        Self {
            inner,
            bos: None,
            eos: Vec::new(),
            unknown: None,
            pad: None,
            vocab_size,
            spells_image_token: false,
        }
    }
}

fn build_error(path: &Path, source: &tokenizers::Error) -> Error {
    Error::Tokenizer {
        path: path.to_owned(),
        reason: source.to_string(),
    }
}

/// Runs the tokenizers library, which indexes by what a definition says and so may panic on a malformed one.
fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    guard::guarded(run)
        .unwrap_or_else(|| Err("the definition contradicts itself; fetch the file again".into()))
}
