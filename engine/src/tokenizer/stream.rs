//! Text of tokens as they come.
//!
//! Invariant: what is given out is valid for good and never half a character; for tokens that spell UTF-8 it is
//! together exactly the text of all of them at once.

use super::Tokenizer;
use crate::error::Result;

/// Tokens that an incomplete character can take: all but one of its at most four bytes.
const INCOMPLETE_MAX: usize = 3;
/// Most tokens held back. More of them than an incomplete character needs are U+FFFD themselves, or no UTF-8.
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
            return self.give_all_but_incomplete(tokenizer, text);
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

    /// Gives out `text`, that of the held tokens, up to what may be an incomplete character at its end. Tokens may be
    /// parted where both parts spell what they spell together.
    fn give_all_but_incomplete(&mut self, tokenizer: &Tokenizer, text: String) -> Result<String> {
        self.window.drain(..self.n_given);
        self.n_given = 0;
        for n_kept in (1..=INCOMPLETE_MAX).rev() {
            let (given, kept) = self.window.split_at(self.window.len() - n_kept);
            let (given, kept) = (tokenizer.decode(given)?, tokenizer.decode(kept)?);
            if text.strip_prefix(&given) == Some(&kept) {
                self.window.drain(..self.window.len() - n_kept);
                return Ok(given);
            }
        }
        self.window.clear();
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
