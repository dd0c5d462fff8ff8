//! A tokenizer from the metadata of a GGUF file: the parts that a `tokenizer.json` of the same model would describe.
//!
//! Invariant: a pre-tokenizer whose splits are not known exactly is refused, since tokens that are almost right train
//! a model that is quietly wrong.

use serde_json::{Value as Json, json};
use tokenizers::models::bpe::{BPE, BpeBuilder, Merges, Vocab};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::Tokenizer;
use crate::error::{Error, Result};
use crate::gguf::{GgufFile, Value};

/// Kinds of a token, `llama_token_type` of llama.cpp.
pub(crate) const NORMAL: u64 = 1;
pub(crate) const UNKNOWN: u64 = 2;
pub(crate) const CONTROL: u64 = 3;
pub(crate) const USER_DEFINED: u64 = 4;

/// Most bytes of a piece of SentencePiece; trainers make pieces of at most some 50. Every place to divide one is
/// looked at, so a piece of megabytes would take hours.
const PIECE_BYTES_MAX: usize = 256;

/// Names of the known ways to split text, one for each.
pub(crate) const KNOWN_SPLITS: [&str; 4] = ["gpt-2", "smollm", "llama-bpe", "qwen2"];

/// What a pre-tokenizer's name stands for: `(normalizer, pre-tokenizer, whether a whole word in the vocabulary needs no
/// merges)`.
pub(crate) fn known_splits(name: &str) -> Option<(Json, Json, bool)> {
    let byte_level = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    let digits = |group: &str| {
        let pattern = format!("{}{group}{}", SPLIT_AROUND_DIGITS.0, SPLIT_AROUND_DIGITS.1);
        let split = json!({
            "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false,
        });
        json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] })
    };
    Some(match name {
        "gpt-2" | "phi-2" | "olmo" => (Json::Null, byte_level(true), false),
        "smollm" | "starcoder" | "refact" => {
            let single = json!({ "type": "Digits", "individual_digits": true });
            let both = json!({ "type": "Sequence", "pretokenizers": [single, byte_level(true)] });
            (Json::Null, both, false)
        }
        "llama-bpe" | "llama3" | "llama-v3" => (Json::Null, digits(r"\p{N}{1,3}"), true),
        "qwen2" | "deepseek-r1-qwen" => (json!({ "type": "NFC" }), digits(r"\p{N}"), false),
        _ => return None,
    })
}

/// How Llama 3 splits text; the groups of digits differ between models.
const SPLIT_AROUND_DIGITS: (&str, &str) = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

impl Tokenizer {
    /// Reads the vocabulary of a GGUF file; `None` when it has none.
    pub fn from_gguf(file: &GgufFile) -> Result<Option<Self>> {
        let Some(vocabulary) = Vocabulary::read(file)? else {
            return Ok(None);
        };
        let parts = match vocabulary.model {
            "gpt2" => vocabulary.byte_level()?,
            "llama" => vocabulary.sentence_piece()?,
            other => {
                return Err(vocabulary.error(&format!("its model is `{other}`; known are gpt2 and llama")));
            }
        };
        let mut tokenizer = vocabulary.assemble(parts)?;
        let id = |key: &str| -> Result<Option<u32>> {
            let id = file.unsigned(&format!("tokenizer.ggml.{key}_token_id"))?;
            Ok(id.and_then(|id| u32::try_from(id).ok()))
        };
        tokenizer.bos = id("bos")?;
        tokenizer.unknown = id("unknown")?;
        tokenizer.pad = id("padding")?;
        tokenizer.eos.extend(id("eos")?.into_iter().chain(id("eot")?));
        tokenizer.eos.dedup();
        Ok(Some(tokenizer))
    }
}

/// What a tokenizer is made of; all but the model in the spelling of `tokenizer.json`.
struct Parts {
    normalizer: Json,
    pre_tokenizer: Json,
    decoder: Json,
    model: BpeBuilder,
}

/// The parts of a vocabulary, as the file holds them.
struct Vocabulary<'f> {
    file: &'f GgufFile,
    model: &'f str,
    tokens: Vec<&'f str>,
    /// One per token.
    kinds: Vec<u64>,
}

impl<'f> Vocabulary<'f> {
    fn read(file: &'f GgufFile) -> Result<Option<Self>> {
        let tokens = file.array("tokenizer.ggml.tokens", "an array of strings", Value::as_str)?;
        let (Some(tokens), Some(model)) = (tokens, file.string("tokenizer.ggml.model")?) else {
            return Ok(None);
        };
        let kinds = file.array(
            "tokenizer.ggml.token_type",
            "an array of integers",
            Value::as_unsigned,
        )?;
        let kinds = kinds.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
        let vocabulary = Self {
            file,
            model,
            tokens,
            kinds,
        };
        let (n_tokens, n_kinds) = (vocabulary.tokens.len(), vocabulary.kinds.len());
        if n_tokens == n_kinds {
            Ok(Some(vocabulary))
        } else {
            Err(vocabulary.error(&format!("it has {n_tokens} tokens and {n_kinds} token types")))
        }
    }

    fn error(&self, reason: &str) -> Error {
        Error::Tokenizer {
            path: self.file.path().to_owned(),
            reason: reason.to_owned(),
        }
    }

    fn ids(&self) -> Vocab {
        // The reader's bound on elements keeps ids far below u32's.
        (0u32..)
            .zip(&self.tokens)
            .map(|(id, &token)| (token.to_owned(), id))
            .collect()
    }

    /// Byte-pair encoding over bytes, as GPT-2 has it.
    fn byte_level(&self) -> Result<Parts> {
        let ids = self.ids();
        let lines = self
            .file
            .array("tokenizer.ggml.merges", "an array of strings", Value::as_str)?;
        let mut merges = Vec::new();
        for line in lines.ok_or_else(|| self.error("`tokenizer.ggml.merges` is missing"))? {
            let makes_token = |(left, right): &(&str, &str)| ids.contains_key(&format!("{left}{right}"));
            let (left, right) = line.split_once(' ').filter(makes_token).ok_or_else(|| {
                self.error(&format!(
                    "merge `{line}` does not make a token of the vocabulary from two"
                ))
            })?;
            merges.push((left.to_owned(), right.to_owned()));
        }
        let (normalizer, pre_tokenizer, ignore_merges) = self.splits()?;
        let decoder =
            json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
        let model = BPE::builder()
            .vocab_and_merges(ids, merges)
            .ignore_merges(ignore_merges);
        Ok(Parts {
            normalizer,
            pre_tokenizer,
            decoder,
            model,
        })
    }

    /// `(normalizer, pre-tokenizer, whether a whole word in the vocabulary needs no merges)`.
    fn splits(&self) -> Result<(Json, Json, bool)> {
        // Files of Llama 3 and Qwen2 from before the key existed lack it, so its absence does not mean GPT-2.
        let name = self.file.string("tokenizer.ggml.pre")?.ok_or_else(|| {
            self.error(
                "`tokenizer.ggml.pre` is missing, so how it splits text is not known; take a newer conversion of the \
                 model, or put its tokenizer.json beside the file, in a directory of their own",
            )
        })?;
        known_splits(name).ok_or_else(|| {
            self.error(&format!(
                "its pre-tokenizer is `{name}`; known are {}; put the model's tokenizer.json beside the file, in a \
                 directory of their own",
                KNOWN_SPLITS.join(", ")
            ))
        })
    }

    /// SentencePiece's byte-pair encoding, as Llama 2, Mistral and Gemma have it: merges follow from the scores.
    fn sentence_piece(&self) -> Result<Parts> {
        let scores = self
            .file
            .array("tokenizer.ggml.scores", "an array of numbers", Value::as_float)?;
        let scores = scores
            .filter(|scores| scores.len() == self.tokens.len())
            .ok_or_else(|| self.error("`tokenizer.ggml.scores` must hold one score for each token"))?;
        let unknown = self
            .file
            .unsigned("tokenizer.ggml.unknown_token_id")?
            .unwrap_or(0);
        let unknown = usize::try_from(unknown)
            .ok()
            .and_then(|id| self.tokens.get(id).copied());
        let has_prefix = self.file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
        let mut normalizers = vec![replace];
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if has_prefix {
            normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        let normalizer = json!({ "type": "Sequence", "normalizers": normalizers });
        let decoder = json!({ "type": "Sequence", "decoders": decoders });
        let is_too_long = |piece: &&str| piece.len() > PIECE_BYTES_MAX;
        if let Some(piece) = self.normal().map(|(piece, _)| piece).find(is_too_long) {
            return Err(self.error(&format!(
                "it has a piece of {} bytes, more than {PIECE_BYTES_MAX}",
                piece.len()
            )));
        }
        let ids = self.ids();
        let merges = self.merges_by_score(&scores, &ids);
        let mut model = BPE::builder()
            .vocab_and_merges(ids, merges)
            .fuse_unk(true)
            .byte_fallback(true);
        if let Some(unknown) = unknown {
            model = model.unk_token(unknown.to_owned());
        }
        Ok(Parts {
            normalizer,
            pre_tokenizer: Json::Null,
            decoder,
            model,
        })
    }

    /// The normal tokens, with their ids.
    fn normal(&self) -> impl Iterator<Item = (&'f str, usize)> {
        let all = self.tokens.iter().zip(&self.kinds).enumerate();
        all.filter(|(_, (_, kind))| **kind == NORMAL)
            .map(|(id, (&token, _))| (token, id))
    }

    /// Every way to make a piece from two others, best score first, in the order of transformers' converter: ties go
    /// to the longer left part, then the longer right part, then the smaller ids.
    fn merges_by_score(&self, scores: &[f64], ids: &Vocab) -> Merges {
        let mut merges = Vec::new();
        for (piece, id) in self.normal() {
            let score = scores[id];
            let mut splits = Vec::new();
            for (middle, _) in piece.char_indices().skip(1) {
                let (left, right) = piece.split_at(middle);
                if let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) {
                    splits.push(((left_id, right_id), [left, right]));
                }
            }
            splits.sort_by_key(|split| split.0);
            merges.extend(splits.into_iter().map(|(_, pair)| {
                let [left, right] = pair.map(|part| part.chars().count());
                (score, left, right, pair)
            }));
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (b.1, b.2).cmp(&(a.1, a.2))));
        merges
            .into_iter()
            .map(|(.., [left, right])| (left.to_owned(), right.to_owned()))
            .collect()
    }

    /// The tokenizer of these parts, with the special tokens of the vocabulary.
    fn assemble(&self, parts: Parts) -> Result<Tokenizer> {
        let failed = |source: tokenizers::Error| self.error(&source.to_string());
        let model = super::guarded(|| parts.model.build()).map_err(failed)?;
        let mut inner = tokenizers::Tokenizer::new(model);
        let part = |error: serde_json::Error| self.error(&error.to_string());
        inner
            .with_normalizer(
                serde_json::from_value::<Option<NormalizerWrapper>>(parts.normalizer).map_err(part)?,
            )
            .map_err(failed)?;
        let pre_tokenizer = serde_json::from_value::<Option<PreTokenizerWrapper>>(parts.pre_tokenizer);
        inner.with_pre_tokenizer(pre_tokenizer.map_err(part)?);
        inner.with_decoder(serde_json::from_value::<Option<DecoderWrapper>>(parts.decoder).map_err(part)?);
        let of_kinds = |kinds: &'static [u64]| {
            let all = self.tokens.iter().zip(&self.kinds);
            let special = kinds.contains(&CONTROL);
            all.filter(|(_, kind)| kinds.contains(kind))
                .map(move |(token, _)| AddedToken::from(*token, special).normalized(false))
        };
        inner
            .add_special_tokens(of_kinds(&[UNKNOWN, CONTROL]))
            .map_err(failed)?;
        inner.add_tokens(of_kinds(&[USER_DEFINED])).map_err(failed)?;
        Ok(Tokenizer::of(inner, self.tokens.len()))
    }
}
