//! A tokenizer as the metadata of a GGUF file.
//!
//! Invariant: a tokenizer is written only if llama.cpp's rules give the same tokens: byte-level BPE with splits that have
//! a name there, or SentencePiece's BPE whose merges follow from one score for each piece.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value as Json;
use tokenizers::PreTokenizerWrapper;

use crate::chat_template::{Message, Role};
use crate::error::{Error, Result};
use crate::files::{ModelFiles, read_text};
use crate::gguf::write::Header;
use crate::tokenizer::gguf::{CONTROL, KNOWN_SPLITS, NORMAL, UNKNOWN, USER_DEFINED, known_splits};

/// Kinds of a token that a tokenizer.json does not name, `llama_token_type` of llama.cpp.
const UNUSED: u64 = 5;
const BYTE: u64 = 6;

/// What SentencePiece writes for a space.
const SPACE: &str = "▁";

/// A tokenizer.json, as far as it matters.
#[derive(Debug, Deserialize)]
struct Definition {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<Json>,
    pre_tokenizer: Option<Json>,
    model: Model,
}

#[derive(Debug, Deserialize)]
struct AddedToken {
    id: usize,
    content: String,
    special: bool,
}

#[derive(Debug, Deserialize)]
struct Model {
    r#type: Option<String>,
    vocab: HashMap<String, usize>,
    #[serde(default)]
    merges: Vec<Merge>,
    unk_token: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

/// A pair, or a line of two parts as older files have it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

impl Merge {
    fn parts(&self) -> Option<(&str, &str)> {
        match self {
            Self::Pair(left, right) => Some((left, right)),
            Self::Line(line) => line.split_once(' '),
        }
    }
}

/// Adds the tokenizer of a model.
pub(super) fn describe(files: &ModelFiles, header: &mut Header) -> Result<()> {
    let tokenizer = files.tokenizer()?;
    let path = files.path.join("tokenizer.json");
    // The library drops one of two texts of the same token: Gemma spells the tab in two ways.
    let text = match path.is_file() {
        true => read_text(&path)?,
        false => tokenizer.definition()?,
    };
    let mut definition: Definition =
        serde_json::from_str(&text).map_err(|source| Error::Json { path, source })?;
    definition.pre_tokenizer = definition.pre_tokenizer.take().map(respelled);
    let refuse = |reason: String| Error::Export {
        what: "the tokenizer to GGUF".to_owned(),
        reason: format!(
            "{reason}; export the model to safetensors, or from a GGUF file that holds its tokenizer"
        ),
    };
    if definition.model.r#type.as_deref() != Some("BPE") {
        let found = definition.model.r#type.as_deref().unwrap_or("unnamed");
        return Err(refuse(format!(
            "its model is {found}, and only BPE can be written"
        )));
    }
    let tokens = Tokens::read(&definition, files.config.vocab_size);
    let is_bos_usual = match definition.model.byte_fallback {
        true => {
            tokens.write_sentence_piece(&definition, header).map_err(refuse)?;
            true
        }
        false => tokens.write_byte_level(&definition, header).map_err(refuse)? == "llama-bpe",
    };
    header.strings("tokenizer.ggml.tokens", &tokens.texts);
    header.i32s(
        "tokenizer.ggml.token_type",
        tokens.kinds.iter().map(|&kind| kind as i32),
    );
    let bos = tokenizer.bos().or(files.config.bos);
    let mut eos = files.config.eos.iter().copied();
    for (key, id) in [
        ("bos", bos),
        ("eos", eos.next()),
        ("eot", eos.next()),
        ("unknown", tokenizer.unknown()),
        ("padding", tokenizer.pad()),
    ] {
        if let Some(id) = id {
            header.u32(&format!("tokenizer.ggml.{key}_token_id"), id);
        }
    }
    header.flag("tokenizer.ggml.add_bos_token", bos.is_some() && is_bos_usual);
    header.flag("tokenizer.ggml.add_eos_token", false);
    Ok(())
}

/// Whether conversations begin with a BOS that their template writes; `None` where nobody can tell.
pub(super) fn begins_with_bos(files: &ModelFiles) -> Result<Option<bool>> {
    let (Some(tokenizer), Some(template)) = (&files.tokenizer, &files.chat_template) else {
        return Ok(None);
    };
    let Some(bos) = tokenizer.bos().and_then(|id| tokenizer.token_text(id)) else {
        return Ok(Some(false));
    };
    let message = Message {
        role: Role::User,
        content: "Hi".to_owned(),
    };
    let text = template.render(&[message], true)?;
    Ok(Some(!bos.is_empty() && text.starts_with(&bos)))
}

/// All tokens in the order of their ids.
struct Tokens {
    texts: Vec<String>,
    kinds: Vec<u64>,
}

impl Tokens {
    /// The vocabulary, filled up to the rows of the embedding.
    fn read(definition: &Definition, n_rows: usize) -> Self {
        let mut tokens = Self {
            texts: (0..n_rows).map(|id| format!("[PAD{id}]")).collect(),
            kinds: vec![UNUSED; n_rows],
        };
        let model = &definition.model;
        for (text, &id) in &model.vocab {
            let is_byte = model.byte_fallback && is_byte(text);
            if !is_byte && tokens.kinds.get(id) == Some(&BYTE) {
                continue;
            }
            let kind = match Some(text) == model.unk_token.as_ref() {
                true => UNKNOWN,
                false if is_byte => BYTE,
                false => NORMAL,
            };
            tokens.set(id, text, kind);
        }
        for added in &definition.added_tokens {
            let kind = match added.special {
                true if Some(&added.content) == model.unk_token.as_ref() => UNKNOWN,
                true => CONTROL,
                false => USER_DEFINED,
            };
            tokens.set(added.id, &added.content, kind);
        }
        tokens
    }

    /// A token beyond the rows stands for what is no text (Gemma 3's part of an image), and its letters spell it.
    fn set(&mut self, id: usize, text: &str, kind: u64) {
        if let (Some(its_text), Some(its_kind)) = (self.texts.get_mut(id), self.kinds.get_mut(id)) {
            text.clone_into(its_text);
            *its_kind = kind;
        }
    }

    /// GPT-2's kind, with the splits that have a name. Gives that name.
    fn write_byte_level(
        &self,
        definition: &Definition,
        header: &mut Header,
    ) -> std::result::Result<&'static str, String> {
        let ours = (
            definition.normalizer.clone().unwrap_or_default(),
            canonical(definition.pre_tokenizer.clone().unwrap_or_default()),
            definition.model.ignore_merges,
        );
        let name = KNOWN_SPLITS.into_iter().find(|name| {
            known_splits(name).is_some_and(|(normalizer, pre_tokenizer, ignore_merges)| {
                ours == (normalizer, canonical(respelled(pre_tokenizer)), ignore_merges)
            })
        });
        let name = name.ok_or_else(|| {
            format!(
                "how it splits text has no name that is known here; known are {}",
                KNOWN_SPLITS.join(", ")
            )
        })?;
        let lines: Option<Vec<String>> = definition
            .model
            .merges
            .iter()
            .map(|merge| merge.parts().map(|(left, right)| format!("{left} {right}")))
            .collect();
        header.string("tokenizer.ggml.model", "gpt2");
        header.string("tokenizer.ggml.pre", name);
        header.strings(
            "tokenizer.ggml.merges",
            &lines.ok_or("a merge is not of two parts")?,
        );
        Ok(name)
    }

    /// SentencePiece's kind, as Llama 2, Mistral and Gemma have it.
    fn write_sentence_piece(
        &self,
        definition: &Definition,
        header: &mut Header,
    ) -> std::result::Result<(), String> {
        header.string("tokenizer.ggml.model", "llama");
        header.string("tokenizer.ggml.pre", "default");
        header.f32s("tokenizer.ggml.scores", &self.scores(definition)?);
        header.flag("tokenizer.ggml.add_space_prefix", has_prefix(definition)?);
        Ok(())
    }

    /// A score for each token, such that the best score first gives the merges in their order. That can be said only if
    /// a piece's merges follow one another and are all the ways there are to make it from two.
    fn scores(&self, definition: &Definition) -> std::result::Result<Vec<f32>, String> {
        let vocab = &definition.model.vocab;
        let mut scores = vec![0.0; self.texts.len()];
        let mut n_ways: HashMap<usize, usize> = HashMap::new();
        let mut last = None;
        for merge in &definition.model.merges {
            let (left, right) = merge.parts().ok_or("a merge is not of two parts")?;
            let piece = format!("{left}{right}");
            let &id = vocab
                .get(&piece)
                .ok_or_else(|| format!("its merges make `{piece}`, which is no token"))?;
            if self.kinds.get(id) != Some(&NORMAL) {
                continue;
            }
            if last != Some(id) {
                if n_ways.contains_key(&id) {
                    return Err(format!("merges that make `{piece}` stand in several places"));
                }
                if let Some(score) = scores.get_mut(id) {
                    *score = -(n_ways.len() as f32) - 1.0;
                }
                last = Some(id);
            }
            *n_ways.entry(id).or_default() += 1;
        }
        for (id, text) in self.texts.iter().enumerate() {
            if self.kinds[id] != NORMAL {
                continue;
            }
            let splits = text.char_indices().skip(1);
            let n_splits = splits
                .map(|(middle, _)| text.split_at(middle))
                .filter(|(left, right)| vocab.contains_key(*left) && vocab.contains_key(*right))
                .count();
            if n_ways.get(&id).copied().unwrap_or(0) != n_splits {
                return Err(format!(
                    "`{text}` can be made from two tokens in {n_splits} ways, but its merges are others"
                ));
            }
        }
        Ok(scores)
    }
}

/// Whether a text gets a space in front.
fn has_prefix(definition: &Definition) -> std::result::Result<bool, String> {
    let (normalizer, pre_tokenizer) = (&definition.normalizer, &definition.pre_tokenizer);
    let prepends = parts(normalizer, "normalizers")
        .iter()
        .any(|part| part["type"] == "Prepend" && part["prepend"] == SPACE);
    let scheme = parts(pre_tokenizer, "pretokenizers")
        .into_iter()
        .find(|part| part["type"] == "Metaspace")
        .map(|part| part["prepend_scheme"].clone());
    match scheme.as_ref().and_then(Json::as_str) {
        _ if prepends => Ok(true),
        Some("always") => Ok(true),
        // Only where a text begins, and what the model was tuned on begins with a special token.
        Some("first" | "never") | None => Ok(false),
        Some(other) => Err(format!("it puts spaces in front by the scheme `{other}`")),
    }
}

/// A normalizer or pre-tokenizer, or those that it is made of.
fn parts<'j>(json: &'j Option<Json>, key: &str) -> Vec<&'j Json> {
    let Some(json) = json else { return Vec::new() };
    match json.get(key).and_then(Json::as_array) {
        Some(parts) => parts.iter().collect(),
        None => vec![json],
    }
}

/// A pre-tokenizer in the library's own spelling, with all its defaults.
fn respelled(json: Json) -> Json {
    let known = serde_json::from_value::<PreTokenizerWrapper>(json.clone());
    known.and_then(serde_json::to_value).unwrap_or(json)
}

/// A pre-tokenizer without what has no bearing on tokens.
fn canonical(mut json: Json) -> Json {
    if let Some(parts) = json.get_mut("pretokenizers").and_then(Json::as_array_mut) {
        let mut parts: Vec<Json> = std::mem::take(parts).into_iter().map(canonical).collect();
        return match parts.len() {
            1 => parts.remove(0),
            _ => serde_json::json!({ "type": "Sequence", "pretokenizers": parts }),
        };
    }
    if let Some(fields) = json.as_object_mut() {
        fields.remove("trim_offsets");
    }
    json
}

/// `<0x0A>` and the like.
fn is_byte(text: &str) -> bool {
    text.strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}
