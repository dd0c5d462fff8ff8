//! One response as it grows: its tokens, its text, and when it ends.
//!
//! Invariant: text that was sent is never taken back: what may turn out to begin a stop string waits.

use super::{Completion, Finish, GenerateOptions, PromptIds, TokenLogprob};
use crate::error::Result;
use crate::tokenizer::{StreamDecoder, Tokenizer};

/// A response in the making.
#[derive(Debug)]
pub(crate) struct Response {
    ids: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
    decoder: StreamDecoder,
    text: String,
    n_sent: usize,
    finish: Option<Finish>,
}

impl Response {
    pub(crate) fn new() -> Self {
        Self {
            ids: Vec::new(),
            logprobs: Vec::new(),
            decoder: StreamDecoder::default(),
            text: String::new(),
            n_sent: 0,
            finish: None,
        }
    }

    pub(crate) fn ids(&self) -> &[u32] {
        &self.ids
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// Takes the next token, with its likelihood where that was asked for, and gives the text that is now certain, which may be empty.
    pub(crate) fn push(
        &mut self,
        id: u32,
        logprob: Option<TokenLogprob>,
        tokenizer: Option<&Tokenizer>,
        stop_tokens: &[u32],
        options: &GenerateOptions,
    ) -> Result<&str> {
        if stop_tokens.contains(&id) || options.stop_tokens.contains(&id) {
            self.finish = Some(Finish::Stop);
        } else {
            self.ids.push(id);
            self.logprobs.extend(logprob);
            if let Some(tokenizer) = tokenizer {
                self.text += &self.decoder.push(tokenizer, id)?;
            }
            if self.ids.len() >= options.max_tokens {
                self.finish = Some(Finish::Length);
            }
        }
        if let (Some(tokenizer), true) = (tokenizer, self.is_finished()) {
            self.text += &self.decoder.finish(tokenizer)?;
        }
        if let Some(start) = first_match(&self.text, self.n_sent, &options.stop) {
            self.text.truncate(start);
            self.finish = Some(Finish::Stop);
        }
        let certain = match self.is_finished() {
            true => self.text.len(),
            false => self.text.len() - longest_beginning(&self.text[self.n_sent..], &options.stop),
        };
        let from = std::mem::replace(&mut self.n_sent, certain);
        Ok(&self.text[from..certain])
    }

    pub(crate) fn complete(self, request: &PromptIds, k: usize) -> Completion {
        let finish = self.finish.unwrap_or(Finish::Length);
        Completion {
            request: request.id,
            adapter: request.adapter,
            k,
            text: self.text,
            tokens: self.ids.len(),
            ids: self.ids,
            logprobs: request.options.logprobs.map(|_| self.logprobs),
            finish,
        }
    }
}

/// Where the earliest stop string begins, at or after `from`: before it, nothing can begin one.
fn first_match(text: &str, from: usize, stop: &[String]) -> Option<usize> {
    let text = &text[from..];
    stop.iter()
        .filter(|stop| !stop.is_empty())
        .filter_map(|stop| text.find(stop.as_str()))
        .min()
        .map(|at| at + from)
}

/// Bytes of the longest end of `text` that begins a stop string without being one.
fn longest_beginning(text: &str, stop: &[String]) -> usize {
    let begins = |stop: &String| {
        let ends = stop.char_indices().rev().map(|(at, _)| at);
        ends.into_iter()
            .find(|&end| text.ends_with(&stop[..end]))
            .unwrap_or(0)
    };
    stop.iter().map(begins).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_stop_string_waits() {
        let stop = vec!["END".to_owned(), "é!".to_owned()];
        assert_eq!(longest_beginning("the E", &stop), 1);
        assert_eq!(longest_beginning("the EN", &stop), 2);
        assert_eq!(longest_beginning("thé", &stop), 2);
        assert_eq!(longest_beginning("the", &stop), 0);
    }

    #[test]
    fn the_earliest_stop_string_cuts() {
        let stop = vec!["b".to_owned(), "ab".to_owned(), String::new()];
        assert_eq!(first_match("xxab", 1, &stop), Some(2));
        assert_eq!(first_match("xxab", 3, &stop), Some(3));
        assert_eq!(first_match("xx", 0, &stop), None);
    }
}
