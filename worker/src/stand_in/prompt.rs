//! Tells from a request's words what is asked: the quoted blocks of LlamaDuo's own prompts, or a support message.
//!
//! Invariant: quoted texts are found by the code on the lines around them, so nothing that a quoted text says can
//! end its block.

use super::chat::ChatRequest;
use super::tickets::{TASK_INSTRUCTION, reference_label};

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Grade `response` against `reference`.
    Grade { reference: String, response: String },
    /// Write `n_pairs` pairs like these (message, answer).
    Synthesize {
        examples: Vec<(String, String)>,
        n_pairs: usize,
    },
    /// Triage a support message.
    Triage { message: String },
    /// Something else.
    Other,
}

/// Pairs of one call when the prompt names no number.
const PAIRS_PER_CALL: usize = 5;
/// Most pairs of one call: what fits into a reply of the usual length.
const PAIRS_PER_CALL_MAX: usize = 100;

/// What `request` asks for.
pub(super) fn recognize(request: &ChatRequest) -> Ask {
    let texts: Vec<String> = request.messages.iter().map(|message| message.text()).collect();
    let Some(last) = request
        .messages
        .iter()
        .rposition(|message| message.role == "user")
    else {
        return Ask::Other;
    };
    let user = texts.get(last).map(String::as_str).unwrap_or_default();
    let (blocks, rest) = quoted_blocks(user);
    let titled = |title: &str| {
        blocks
            .iter()
            .find(|block| block.title == title)
            .map(|block| block.text.clone())
    };

    if let (Some(reference), Some(response)) = (titled("human response"), titled("language model response")) {
        return Ask::Grade { reference, response };
    }
    let examples: Vec<(String, String)> = blocks
        .windows(2)
        .filter_map(|pair| match pair {
            [ask, answer] if ask.title == "instruction" && answer.title == "response" => {
                Some((ask.text.clone(), answer.text.clone()))
            }
            _ => None,
        })
        .collect();
    if examples
        .iter()
        .any(|(message, _)| reference_label(message).is_some())
    {
        let n_pairs = first_number(rest)
            .unwrap_or(PAIRS_PER_CALL)
            .min(PAIRS_PER_CALL_MAX);
        return Ask::Synthesize { examples, n_pairs };
    }
    let is_triage = texts.iter().any(|text| text.contains(TASK_INSTRUCTION));
    let message = user.replace(TASK_INSTRUCTION, "").trim().to_owned();
    if blocks.is_empty() && (is_triage || reference_label(&message).is_some()) {
        return Ask::Triage { message };
    }
    Ask::Other
}

struct Block {
    title: String,
    text: String,
}

/// The blocks between lines `=== CODE title ===`, up to a line titled `end`, and the text after the last of them. The
/// code is the first such line's.
fn quoted_blocks(text: &str) -> (Vec<Block>, &str) {
    let (mut blocks, mut open): (Vec<Block>, Option<Block>) = (Vec::new(), None);
    let (mut code, mut rest, mut at) = (None, text, 0);
    for line in text.split_inclusive('\n') {
        at += line.len();
        match heading(line).filter(|(found, _)| code.is_none_or(|code| code == *found)) {
            Some((found, title)) => {
                code = Some(found);
                blocks.extend(open.take());
                if title != "end" {
                    open = Some(Block {
                        title: title.to_owned(),
                        text: String::new(),
                    });
                }
                rest = text.get(at..).unwrap_or_default();
            }
            None => {
                if let Some(block) = &mut open {
                    block.text.push_str(line);
                }
            }
        }
    }
    blocks.extend(open);
    for block in &mut blocks {
        block.text = block.text.trim().to_owned();
    }
    (blocks, rest)
}

/// Code and title of a line `=== CODE title ===`.
fn heading(line: &str) -> Option<(&str, &str)> {
    line.trim_end()
        .strip_prefix("=== ")?
        .strip_suffix(" ===")?
        .split_once(' ')
}

fn first_number(text: &str) -> Option<usize> {
    text.split(|c: char| !c.is_ascii_digit())
        .find(|digits| !digits.is_empty())?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests;
