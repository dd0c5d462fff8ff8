//! The mean next-token loss of a model over conversations or rows of tokens, and its logits.
//!
//! Invariant: independent of how rows are grouped: each is its own document, and sums are over tokens.

mod logits;

use llamaduo_kernels::Backend;

pub use logits::{check_ids, logits, stream_logits};

use crate::error::{Error, Result};
use crate::local_model::LocalModel;
use crate::lora::Adapter;
use crate::model::{ActivationPlan, Activations, AdapterOnDevice, Keep};
use crate::train::{Conversation, LossOn, Row, encode_row, micro_batches};

/// Tokens of a pass: enough for the matrix products to run at full speed.
const PASS_TOKENS: usize = 512;

/// How well rows are predicted.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct EvalLoss {
    /// Mean over all predicted tokens of all rows, in nats.
    pub loss: f64,
    /// How many were predicted.
    pub tokens: u64,
}

/// The loss over whole chat-templated conversations.
///
/// Fails on a row that is longer than the context, when no row has two tokens, and when the loss is not finite.
pub fn evaluate<B: Backend>(
    model: &LocalModel<B>,
    adapter: Option<&Adapter>,
    rows: &[Conversation],
) -> Result<EvalLoss> {
    evaluate_observed(model, adapter, rows, &mut |_, _| {})
}

/// [`evaluate`], telling `observe` after each pass how many tokens are predicted, and of how many.
pub fn evaluate_observed<B: Backend>(
    model: &LocalModel<B>,
    adapter: Option<&Adapter>,
    rows: &[Conversation],
    observe: &mut dyn FnMut(u64, u64),
) -> Result<EvalLoss> {
    let (tokenizer, template) = (model.tokenizer()?, model.chat_template()?);
    let encode = |row: &Conversation| encode_row(tokenizer, template, &row.messages, LossOn::WholeSequence);
    let rows: Vec<Row> = rows.iter().map(encode).collect::<Result<_>>()?;
    evaluate_rows_observed(model, adapter, &rows, observe)
}

/// The loss over rows of token ids, as [`evaluate_observed`]: for a model without a tokenizer too.
///
/// Fails on what [`check_ids`] refuses and when no row has two tokens.
pub fn evaluate_ids<B: Backend>(
    model: &LocalModel<B>,
    adapter: Option<&Adapter>,
    rows: &[Vec<u32>],
    observe: &mut dyn FnMut(u64, u64),
) -> Result<EvalLoss> {
    check_ids(model.config(), rows)?;
    let rows: Vec<Row> = rows.iter().map(|ids| Row::new(ids.clone(), |_| true)).collect();
    evaluate_rows_observed(model, adapter, &rows, observe)
}

/// [`evaluate`] on rows that are already tokens.
#[cfg(test)]
pub(crate) fn evaluate_rows<B: Backend>(
    model: &LocalModel<B>,
    adapter: Option<&Adapter>,
    rows: &[Row],
) -> Result<EvalLoss> {
    evaluate_rows_observed(model, adapter, rows, &mut |_, _| {})
}

fn evaluate_rows_observed<B: Backend>(
    model: &LocalModel<B>,
    adapter: Option<&Adapter>,
    rows: &[Row],
    observe: &mut dyn FnMut(u64, u64),
) -> Result<EvalLoss> {
    let context_len = model.config().context_len;
    if let Some((row, n_tokens)) = rows
        .iter()
        .map(|row| row.ids.len())
        .enumerate()
        .find(|&(_, n_tokens)| n_tokens > context_len)
    {
        return Err(Error::RowTooLong {
            row,
            n_tokens,
            context_len,
        });
    }
    let model = model.inner();
    let batches = micro_batches(rows.iter().filter(|row| row.n_labels() > 0), PASS_TOKENS);
    let tokens: u64 = batches.iter().map(|batch| batch.n_labels() as u64).sum();
    if tokens == 0 {
        return Err(Error::NothingToLearn);
    }
    let adapter = adapter
        .map(|adapter| AdapterOnDevice::upload(model, adapter))
        .transpose()?;
    let plan = ActivationPlan {
        m_max: batches.iter().map(|batch| batch.ids.len()).max().unwrap_or(0),
        lora_rank: adapter.as_ref().map_or(0, |adapter| adapter.layout.rank()),
        keep: Keep::Nothing,
    };
    let mut activations = Activations::new(&model.backend, &model.config, plan)?;
    let (mut sum, mut n_done) = (0.0, 0);
    for batch in &batches {
        sum += model.loss(batch, &mut activations, adapter.as_ref(), None, None)?;
        n_done += batch.n_labels() as u64;
        observe(n_done, tokens);
    }
    let loss = sum / tokens as f64;
    if !loss.is_finite() {
        return Err(Error::NotFinite {
            what: "the mean loss",
            value: loss,
        });
    }
    Ok(EvalLoss { loss, tokens })
}
