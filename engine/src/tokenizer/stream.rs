//! Text of tokens as they come.
//!
//! Invariant: what is given out is valid for good and never half a character; for tokens that spell UTF-8 it is
//! together exactly the text of all of them at once.

use super::Tokenizer;
use crate::error::Result;

/// Most tokens held back in the hope of completing a character, which takes at most four byte tokens.
const HELD_MAX: usize = 8;

/// Turns tokens into text as they come.
#[derive(Clone, Debug, Default)]
pub struct StreamDecoder {
    /// Tokens given out last, as context (some decoders drop a leading space), then those held back.
    window: Vec<u32>,
    /// How many of `window` have been given out.
    n_given: usize,
}

impl StreamDecoder {
    /// Takes one token and gives the text it completes, which may be empty.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        if !tokenizer.has_text(id) {
            return Ok(String::new());
        }
        self.window.push(id);
        let text = self.held_text(tokenizer)?;
        if self.window.len() - self.n_given > HELD_MAX {
            // No UTF-8 at all. It is no context for what follows either.
            self.window.clear();
            self.n_given = 0;
            return Ok(text);
        }
        if text.is_empty() || text.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        self.window.drain(..self.n_given);
        self.n_given = self.window.len();
        Ok(text)
    }

    /// Gives what is left; an incomplete character becomes U+FFFD.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let text = self.held_text(tokenizer)?;
        self.window.clear();
        self.n_given = 0;
        Ok(text)
    }

    /// The text that the held tokens add to the given ones.
    fn held_text(&self, tokenizer: &Tokenizer) -> Result<String> {
        let (given, held) = self.window.split_at(self.n_given);
        let given = tokenizer.decode(given)?;
        match tokenizer.decode(&self.window)?.strip_prefix(&given) {
            Some(added) => Ok(added.to_owned()),
            None => tokenizer.decode(held),
        }
    }
}
