//! The logits after each token of rows of any length, given out a few tokens at a time.
//!
//! Invariant: what is held is one row's keys and values and a bounded part of its logits, however many rows there are.

use llamaduo_kernels::{Backend, SequenceSpan};

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::local_model::LocalModel;
use crate::lora::Adapter;
use crate::model::{AdapterOnDevice, CachePlan, CachedDecoder, LoadedAdapters, PassInput};

/// Logits held at once, 16 MiB of them.
const LOGITS_MAX: usize = 4 << 20;
/// Most tokens of a pass: enough for the matrix products to run at full speed.
const PASS_ROWS_MAX: usize = 256;
/// Tokens of a page.
const PAGE_LEN: usize = 32;

/// The logits after each token of `ids [T]`, `[T, V]`.
///
/// Fails on no tokens, on more than the context holds, and on ids beyond the vocabulary.
pub fn logits<B: Backend>(model: &LocalModel<B>, adapter: Option<&Adapter>, ids: &[u32]) -> Result<Vec<f32>> {
    check_ids(model.config(), std::slice::from_ref(&ids))?;
    let model = model.inner();
    let adapter = adapter
        .map(|adapter| AdapterOnDevice::upload(model, adapter))
        .transpose()?;
    model.logits(ids, adapter.as_ref())
}

/// The same of many rows, in their order: `sink` is given the number of the row and the logits `[n, V]` after its next
/// `n` tokens, until it fails or all are given out.
pub fn stream_logits<B: Backend, E: From<Error>>(
    model: &LocalModel<B>,
    adapter: Option<&Adapter>,
    rows: &[Vec<u32>],
    sink: &mut impl FnMut(usize, &[f32]) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let rows_max = (LOGITS_MAX / model.config().vocab_size.max(1)).clamp(1, PASS_ROWS_MAX);
    stream_in_passes(model, adapter, rows, rows_max, sink)
}

/// [`stream_logits`] with at most `rows_max` tokens in a pass.
fn stream_in_passes<B: Backend, E: From<Error>>(
    model: &LocalModel<B>,
    adapter: Option<&Adapter>,
    rows: &[Vec<u32>],
    rows_max: usize,
    sink: &mut impl FnMut(usize, &[f32]) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    check_ids(model.config(), rows)?;
    let model = model.inner();
    let adapters = LoadedAdapters::one(model, adapter)?;
    let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
    if longest == 0 {
        return Ok(());
    }
    let n_pages = longest.div_ceil(PAGE_LEN);
    let plan = CachePlan {
        n_pages,
        page_len: PAGE_LEN,
        prefill_rows_max: 0,
        decode_rows_max: rows_max.min(longest),
    };
    let mut decoder = CachedDecoder::new(model, &adapters, plan)?;
    let mut logits = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let mut n_context = 0;
        for ids in row.chunks(rows_max) {
            n_context += ids.len();
            let span = SequenceSpan {
                first_row: 0,
                n_rows: ids.len(),
                n_context,
                pages: (0..n_pages as u32).collect(),
            };
            let input = PassInput {
                ids,
                sequences: &[span],
                adapters: &[],
            };
            decoder.logits(input, &mut logits)?;
            sink(number, &logits)?;
        }
    }
    Ok(())
}

/// Refuses rows that the model cannot be given; rows are numbered from 0.
pub fn check_ids<R: AsRef<[u32]>>(config: &ModelConfig, rows: &[R]) -> Result<()> {
    for (row, ids) in rows.iter().enumerate() {
        let (ids, context_len) = (ids.as_ref(), config.context_len);
        if ids.is_empty() {
            return Err(Error::NoTokens { row });
        }
        if ids.len() > context_len {
            return Err(Error::RowTooLong {
                row,
                n_tokens: ids.len(),
                context_len,
            });
        }
        let mut numbered = ids.iter().enumerate();
        if let Some((token, &id)) = numbered.find(|&(_, &id)| id as usize >= config.vocab_size) {
            return Err(Error::TokenUnknown {
                row,
                token,
                id,
                vocab_size: config.vocab_size,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local_model::BaseQuant;
    use crate::testing::{golden, open};

    fn rows() -> Vec<Vec<u32>> {
        let row = |len: u64| {
            (0..len)
                .map(|token| 3 + llamaduo_kernels::random::word(len, token) % 300)
                .collect()
        };
        [1, 70, 33, 2].map(row).to_vec()
    }

    #[test]
    fn streamed_logits_are_those_of_one_pass_bit_for_bit() {
        for family in ["llama_tied", "llama3", "mistral"] {
            let model = open(family, BaseQuant::Nf4 { double: true });
            let adapter = crate::peft::load(&golden(family).join("adapter"), model.config()).unwrap();
            for adapter in [None, Some(&adapter)] {
                for rows_max in [1, 7, 256] {
                    let mut streamed = vec![Vec::new(); 4];
                    let sink = &mut |row: usize, part: &[f32]| {
                        assert!(part.len() <= rows_max * model.config().vocab_size);
                        streamed[row].extend(part.iter().map(|value| value.to_bits()));
                        Ok::<(), Error>(())
                    };
                    stream_in_passes(&model, adapter, &rows(), rows_max, sink).unwrap();
                    for (row, streamed) in rows().iter().zip(&streamed) {
                        let whole = logits(&model, adapter, row).unwrap();
                        let whole: Vec<u32> = whole.iter().map(|value| value.to_bits()).collect();
                        assert!(*streamed == whole, "{family}, {rows_max} at once");
                    }
                }
            }
        }
    }

    #[test]
    fn a_sink_that_fails_ends_it() {
        let model = open("llama_tied", BaseQuant::None);
        let mut n_calls = 0;
        let outcome = stream_logits(&model, None, &rows(), &mut |_, _| {
            n_calls += 1;
            Err(Error::NothingToLearn)
        });
        assert!(matches!(outcome, Err(Error::NothingToLearn)));
        assert_eq!(n_calls, 1);
    }

    #[test]
    fn rows_that_the_model_cannot_be_given_are_named() {
        let config = open("llama_tied", BaseQuant::None).config().clone();
        let good = vec![0, config.vocab_size as u32 - 1];
        assert!(check_ids(&config, std::slice::from_ref(&good)).is_ok());
        let beyond = check_ids(&config, &[good.clone(), vec![0, 384]]).unwrap_err();
        assert!(
            matches!(
                beyond,
                Error::TokenUnknown {
                    row: 1,
                    token: 1,
                    id: 384,
                    vocab_size: 384
                }
            ),
            "{beyond}"
        );
        let empty = check_ids(&config, &[good, Vec::new()]).unwrap_err();
        assert!(matches!(empty, Error::NoTokens { row: 1 }), "{empty}");
        let long = check_ids(&config, &[vec![0; config.context_len + 1]]).unwrap_err();
        assert!(matches!(long, Error::RowTooLong { row: 0, .. }), "{long}");
    }
}
