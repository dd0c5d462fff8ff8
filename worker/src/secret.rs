//! A text that must not be seen: an API key or a bearer token.
//!
//! Invariant: it leaves this type only into a header marked sensitive; `Debug` and [`Secret::redact`] never show it.

use std::fmt;

/// What stands where a secret stood.
const REDACTED: &str = "[redacted]";

/// Start of a key that is searched for in foreign text: vendors repeat the first letters of a refused key.
const PREFIX_CHARS: usize = 8;

/// A key or a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes `text` without the white space around it; nothing when that leaves nothing.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// `Bearer …` as a header's value, or nothing when the secret holds characters that no header may hold.
    pub(crate) fn bearer(&self) -> Option<reqwest::header::HeaderValue> {
        let mut value = reqwest::header::HeaderValue::from_str(&format!("Bearer {}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// `Bearer …` as gRPC metadata.
    pub(crate) fn metadata(&self) -> Option<tonic::metadata::AsciiMetadataValue> {
        let mut value: tonic::metadata::AsciiMetadataValue = format!("Bearer {}", self.0).parse().ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// `text` without this secret, and without words that begin like it or that a vendor masked.
    pub(crate) fn redact(&self, text: &str) -> String {
        let text = text.replace(&self.0, REDACTED);
        let prefix: String = self.0.chars().take(PREFIX_CHARS).collect();
        let telling =
            |word: &str| word.contains("***") || (prefix.len() >= PREFIX_CHARS && word.contains(&prefix));
        if !text.split_whitespace().any(telling) {
            return text;
        }
        let words: Vec<&str> = text
            .split_whitespace()
            .map(|word| if telling(word) { REDACTED } else { word })
            .collect();
        words.join(" ")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

#[cfg(test)]
mod tests;
