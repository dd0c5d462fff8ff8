//! A tokenizer from the files beside a checkpoint: `tokenizer.json`, `tokenizer_config.json`,
//! `special_tokens_map.json`.
//!
//! Invariant: a file that is there but wrong is an error; only an absent one is passed over.

use std::path::Path;

use serde::Deserialize;

use super::Tokenizer;
use crate::error::Result;
use crate::files::{read_json, read_text};

/// `tokenizer_config.json`, with what `special_tokens_map.json` adds.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct TokenizerConfig {
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
    unk_token: Option<TokenText>,
    pad_token: Option<TokenText>,
    /// Where templates lay before `chat_template.jinja`.
    pub(crate) chat_template: Option<serde_json::Value>,
}

/// A token as text, or described at length.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TokenText {
    Plain(String),
    Described { content: String },
}

impl TokenText {
    fn text(&self) -> &str {
        match self {
            Self::Plain(text) | Self::Described { content: text } => text,
        }
    }
}

impl TokenizerConfig {
    /// Reads the files of `directory`; empty when there are none, or when it is no directory.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let read = |name: &str| -> Result<Self> {
            let path = directory.join(name);
            if path.is_file() {
                read_json(&path)
            } else {
                Ok(Self::default())
            }
        };
        let (own, map) = (read("tokenizer_config.json")?, read("special_tokens_map.json")?);
        Ok(Self {
            bos_token: own.bos_token.or(map.bos_token),
            eos_token: own.eos_token.or(map.eos_token),
            unk_token: own.unk_token.or(map.unk_token),
            pad_token: own.pad_token.or(map.pad_token),
            chat_template: own.chat_template,
        })
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` of `directory`; `None` when there is none.
    pub(crate) fn open(directory: &Path, config: &TokenizerConfig) -> Result<Option<Self>> {
        let path = directory.join("tokenizer.json");
        if !path.is_file() {
            return Ok(None);
        }
        let mut tokenizer = Self::build(&path, read_text(&path)?.as_bytes())?;
        let id = |token: &Option<TokenText>| tokenizer.token_id(token.as_ref()?.text());
        let (bos, eos) = (id(&config.bos_token), id(&config.eos_token));
        let (unknown, pad) = (id(&config.unk_token), id(&config.pad_token));
        tokenizer.bos = bos;
        tokenizer.eos = eos.into_iter().collect();
        tokenizer.unknown = unknown;
        tokenizer.pad = pad;
        Ok(Some(tokenizer))
    }
}
