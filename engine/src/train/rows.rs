//! Conversations to rows of tokens and labels.
//!
//! Invariant: `labels[t]` is the token after `ids[t]`, or no label; the last token of a row never has one.

use llamaduo_kernels::NO_LABEL;

use super::config::LossOn;
use crate::chat_template::{ChatTemplate, Message, Role, encode_chat};
use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// The messages of one row.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Conversation {
    /// In the order they were said.
    pub messages: Vec<Message>,
}

/// A row as the model sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) ids: Vec<u32>,
    pub(crate) labels: Vec<u32>,
}

impl Row {
    /// A row of `ids`, where `is_learnt(t)` says whether token `t` is to be predicted.
    pub(crate) fn new(ids: Vec<u32>, is_learnt: impl Fn(usize) -> bool) -> Self {
        let labels = (1..=ids.len())
            .map(|next| {
                if next < ids.len() && is_learnt(next) {
                    ids[next]
                } else {
                    NO_LABEL
                }
            })
            .collect();
        Self { ids, labels }
    }

    /// Keeps the first `len_max` tokens; whether there were more.
    fn cut(&mut self, len_max: usize) -> bool {
        let is_longer = self.ids.len() > len_max;
        self.ids.truncate(len_max);
        self.labels.truncate(len_max);
        if let (true, Some(last)) = (is_longer, self.labels.last_mut()) {
            *last = NO_LABEL;
        }
        is_longer
    }

    /// Tokens that are predicted.
    pub(crate) fn n_labels(&self) -> usize {
        self.labels.iter().filter(|&&label| label != NO_LABEL).count()
    }
}

/// The rows of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    /// Each with a token to learn.
    pub(crate) learnt: Vec<Row>,
    /// How many of them were cut.
    pub(crate) n_cut: usize,
    /// How many others there were, without a token to learn.
    pub(crate) n_dropped: usize,
}

impl Rows {
    /// Takes the first `len_max` tokens of a row, where there is one to learn among them.
    pub(crate) fn push(&mut self, mut row: Row, len_max: usize) {
        let is_cut = row.cut(len_max);
        if row.n_labels() == 0 {
            self.n_dropped += 1;
            return;
        }
        self.n_cut += usize::from(is_cut);
        self.learnt.push(row);
    }
}

/// Renders and encodes one conversation, whole.
pub(crate) fn encode_row(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
    loss_on: LossOn,
) -> Result<Row> {
    let ids = encode_chat(tokenizer, template, messages, false)?;
    if loss_on == LossOn::WholeSequence {
        return Ok(Row::new(ids, |_| true));
    }
    let mut learnt = vec![false; ids.len()];
    for (turn, message) in messages.iter().enumerate() {
        if message.role == Role::Assistant {
            let asked = encode_chat(tokenizer, template, &messages[..turn], true)?;
            let answered = encode_chat(tokenizer, template, &messages[..=turn], false)?;
            let start = common_prefix(&ids, &asked);
            let end = common_prefix(&ids, &answered);
            learnt[start.min(end)..end].fill(true);
        }
    }
    Ok(Row::new(ids, |token| learnt[token]))
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
