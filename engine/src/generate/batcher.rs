//! Which responses grow in each step, and where their keys and values lie.
//!
//! Invariant: a response is only begun when pages for its longest form are held, so nothing begun ever has to wait or
//! be thrown away.
//!
//! The pages that a prompt fills whole are written once and shared by all its responses, and by other prompts of the same
//! adapter as far as they begin alike; the rest of the prompt, less than a page, is run again for each. Prefill stops one
//! token short: the prompt's last token is a response's first decoded row, so logits are only ever made for rows that are
//! sampled from.
//!
//! Rows of one adapter follow one another, which is what the backend does best with.

use std::collections::VecDeque;
use std::ops::{ControlFlow, Range};

use llamaduo_kernels::{Backend, SampleRow, SequenceSpan, random};

use super::pages::Pages;
use super::prefixes::Prefixes;
use super::response::Response;
use super::{BatchOptions, Completion, GenerateEvent, PromptIds, TokenLogprob};
use crate::error::{Error, Result};
use crate::model::{CachePlan, CachedDecoder, LoadedAdapters, Model, PassInput};
use crate::tokenizer::Tokenizer;

/// Tokens of a page: small, since the part of a prompt beyond its last whole page is run for every response.
pub(crate) const PAGE_LEN: usize = 8;
/// Rows of a prefill step: enough for the matrix products to run at full speed.
pub(crate) const PREFILL_ROWS: usize = 256;
/// Sets sampling apart from the other random streams of the same seed.
const SAMPLING_STREAM: u64 = 5;

/// All responses of one call.
#[derive(Debug)]
pub(crate) struct Batcher<'a, B: Backend> {
    decoder: CachedDecoder<'a, B>,
    tokenizer: Option<&'a Tokenizer>,
    stop_tokens: &'a [u32],
    max_batch: usize,
    pages: Pages,
    prefixes: Prefixes,
    prompts: Vec<Prompt<'a>>,
    waiting: VecDeque<(usize, usize)>,
    active: Vec<Sequence>,
}

/// A prompt and the pages its responses share.
#[derive(Debug)]
struct Prompt<'a> {
    index: usize,
    request: &'a PromptIds,
    shared: Vec<u32>,
    n_unfinished: usize,
}

/// A response with its part of the cache.
#[derive(Debug)]
struct Sequence {
    prompt: usize,
    k: usize,
    /// All its pages, the shared ones first.
    pages: Vec<u32>,
    response: Response,
    key: u64,
}

/// Tokens that are to be written into the cache.
struct Prefill<'a> {
    ids: &'a [u32],
    range: Range<usize>,
    pages: Vec<u32>,
    adapter: Option<usize>,
}

/// The rows of a pass, as they are gathered.
#[derive(Default)]
struct Rows {
    ids: Vec<u32>,
    sequences: Vec<SequenceSpan>,
    adapters: Vec<Option<usize>>,
}

impl Rows {
    /// Adds `ids`, the last of a sequence's first `n_context` tokens.
    fn push(&mut self, ids: &[u32], n_context: usize, pages: &[u32], adapter: Option<usize>) {
        self.sequences.push(SequenceSpan {
            first_row: self.ids.len(),
            n_rows: ids.len(),
            n_context,
            pages: pages.to_vec(),
        });
        self.ids.extend_from_slice(ids);
        self.adapters.push(adapter);
    }

    fn input(&self) -> PassInput<'_> {
        PassInput {
            ids: &self.ids,
            sequences: &self.sequences,
            adapters: &self.adapters,
        }
    }
}

impl Prompt<'_> {
    /// Tokens in pages that the prompt fills whole, its last token left out.
    fn shared_len(&self) -> usize {
        (self.request.ids.len() - 1) / PAGE_LEN * PAGE_LEN
    }

    fn n_shared_pages(&self) -> usize {
        self.shared_len() / PAGE_LEN
    }

    /// Pages of one response beside the shared ones: its last token is never written.
    fn n_own_pages(&self) -> usize {
        let n_tokens = self.request.ids.len() + self.request.options.max_tokens - 1;
        (n_tokens - self.shared_len()).div_ceil(PAGE_LEN)
    }
}

impl<'a, B: Backend> Batcher<'a, B> {
    /// Prepares to answer `requests`, each with its place among the caller's.
    pub(crate) fn new(
        model: &'a Model<B>,
        adapters: &'a LoadedAdapters<B>,
        tokenizer: Option<&'a Tokenizer>,
        requests: &[(usize, &'a PromptIds)],
        stop_tokens: &'a [u32],
        batch: &BatchOptions,
    ) -> Result<Self> {
        let prompts: Vec<Prompt<'a>> = requests
            .iter()
            .map(|&(index, request)| Prompt {
                index,
                request,
                shared: Vec::new(),
                n_unfinished: request.n,
            })
            .collect();
        let waiting: VecDeque<(usize, usize)> = prompts
            .iter()
            .enumerate()
            .flat_map(|(prompt, of)| (0..of.request.n).map(move |k| (prompt, k)))
            .collect();
        let max_batch = batch.max_batch.min(waiting.len());
        let n_pages = n_pages(&prompts, max_batch, batch.n_pages_max(&model.config));
        let plan = CachePlan {
            n_pages,
            page_len: PAGE_LEN,
            prefill_rows_max: PREFILL_ROWS,
            decode_rows_max: max_batch,
        };
        Ok(Self {
            decoder: CachedDecoder::new(model, adapters, plan)?,
            tokenizer,
            stop_tokens,
            max_batch,
            pages: Pages::new(n_pages),
            prefixes: Prefixes::new(PAGE_LEN),
            prompts,
            waiting,
            active: Vec::new(),
        })
    }

    /// Runs until every response is complete or `observe` breaks off.
    pub(crate) fn run(
        mut self,
        completions: &mut Vec<(usize, Completion)>,
        observe: &mut dyn FnMut(GenerateEvent<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        while !(self.waiting.is_empty() && self.active.is_empty()) {
            let prefills = self.admit();
            self.prefill(&prefills)?;
            if self.decode(observe)?.is_break() || self.retire(completions, observe).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Begins waiting responses, in their order, while there is room; gives what must be written for them.
    fn admit(&mut self) -> Vec<Prefill<'a>> {
        let mut prefills = Vec::new();
        while self.active.len() < self.max_batch
            && let Some(&(index, k)) = self.waiting.front()
        {
            let prompt = &mut self.prompts[index];
            let PromptIds {
                id, options, adapter, ..
            } = prompt.request;
            let (ids, adapter) = (&prompt.request.ids[..], *adapter);
            let whole = &ids[..prompt.shared_len()];
            let known = match prompt.shared.is_empty() {
                true => self.prefixes.find(adapter, whole),
                false => prompt.shared.clone(),
            };
            let n_new = prompt.n_shared_pages() - known.len();
            if n_new + prompt.n_own_pages() > self.pages.n_free() {
                break;
            }
            if prompt.shared.is_empty()
                && let Some(new) = self.pages.allocate(n_new)
            {
                self.pages.retain(&known);
                let start = known.len() * PAGE_LEN;
                prompt.shared = [known, new].concat();
                self.prefixes.list(adapter, whole, &prompt.shared);
                // What others have begun with is written already, or by an earlier row of the same step.
                if start < whole.len() {
                    prefills.push(Prefill {
                        ids,
                        range: start..whole.len(),
                        pages: prompt.shared.clone(),
                        adapter,
                    });
                }
            }
            let Some(own) = self.pages.allocate(prompt.n_own_pages()) else {
                break;
            };
            self.pages.retain(&prompt.shared);
            let pages: Vec<u32> = prompt.shared.iter().copied().chain(own).collect();
            let tail = prompt.shared_len()..ids.len() - 1;
            if !tail.is_empty() {
                prefills.push(Prefill {
                    ids,
                    range: tail,
                    pages: pages.clone(),
                    adapter,
                });
            }
            let key = random::key(&[options.seed, SAMPLING_STREAM, *id, k as u64]);
            self.active.push(Sequence {
                prompt: index,
                k,
                pages,
                response: Response::new(),
                key,
            });
            self.waiting.pop_front();
        }
        // Stable: what a prompt begins with stays before what follows it.
        prefills.sort_by_key(|prefill| prefill.adapter);
        let prompts = &self.prompts;
        self.active
            .sort_by_key(|sequence| prompts[sequence.prompt].request.adapter);
        prefills
    }

    /// Writes prompts into the cache, in steps of bounded size.
    fn prefill(&mut self, prefills: &[Prefill<'_>]) -> Result<()> {
        let mut rows = Rows::default();
        for Prefill {
            ids,
            range,
            pages,
            adapter,
        } in prefills
        {
            let mut start = range.start;
            while start < range.end {
                let n_context = range.end.min(start + PREFILL_ROWS - rows.ids.len());
                rows.push(&ids[start..n_context], n_context, pages, *adapter);
                start = n_context;
                if rows.ids.len() == PREFILL_ROWS {
                    self.decoder.prefill(rows.input())?;
                    rows = Rows::default();
                }
            }
        }
        if !rows.ids.is_empty() {
            self.decoder.prefill(rows.input())?;
        }
        Ok(())
    }

    /// One more token for every active response.
    fn decode(
        &mut self,
        observe: &mut dyn FnMut(GenerateEvent<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let mut rows = Rows::default();
        for sequence in &self.active {
            let said = sequence.response.ids();
            let request = self.prompts[sequence.prompt].request;
            let n_context = request.ids.len() + said.len();
            let last = said.last().or(request.ids.last()).copied();
            rows.push(last.as_slice(), n_context, &sequence.pages, request.adapter);
        }
        let seen: Vec<Vec<u32>> = self.active.iter().map(|sequence| self.seen(sequence)).collect();
        let choices = self.active.iter().zip(&seen).map(|(sequence, seen)| SampleRow {
            spec: self.prompts[sequence.prompt].request.options.sampling.spec(),
            random: random_number(sequence.key, sequence.response.ids().len() as u64),
            seen,
        });
        let choices: Vec<SampleRow<'_>> = choices.collect();
        let chosen = self
            .decoder
            .decode(rows.input(), &choices)
            .map_err(|error| self.name_adapter(error))?;
        for (row, (sequence, id)) in self.active.iter_mut().zip(chosen).enumerate() {
            let request = self.prompts[sequence.prompt].request;
            let options = &request.options;
            let logprob = match options.logprobs {
                Some(n_top) => Some(TokenLogprob::of(&self.decoder.read_logits(row)?, id, n_top)),
                None => None,
            };
            let text = sequence
                .response
                .push(id, logprob, self.tokenizer, self.stop_tokens, options)?;
            if !text.is_empty() {
                let event = GenerateEvent::Text {
                    request: request.id,
                    adapter: request.adapter,
                    k: sequence.k,
                    text,
                };
                if observe(event).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Says in the words of a request whose row no token could be chosen from.
    fn name_adapter(&self, error: Error) -> Error {
        let Error::Kernel(llamaduo_kernels::Error::NotFinite { row, .. }) = &error else {
            return error;
        };
        match self.active.get(*row) {
            Some(sequence) => Error::NoToken {
                adapter: self.prompts[sequence.prompt].request.adapter,
            },
            None => error,
        }
    }

    /// What was asked and said so far, where it matters.
    fn seen(&self, sequence: &Sequence) -> Vec<u32> {
        let request = self.prompts[sequence.prompt].request;
        match request.options.sampling.repetition_penalty == 1.0 {
            true => Vec::new(),
            false => [&request.ids, sequence.response.ids()].concat(),
        }
    }

    /// Takes finished responses out of the batch.
    fn retire(
        &mut self,
        completions: &mut Vec<(usize, Completion)>,
        observe: &mut dyn FnMut(GenerateEvent<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let finished = self
            .active
            .extract_if(.., |sequence| sequence.response.is_finished());
        for sequence in finished {
            self.prefixes.forget(self.pages.release(&sequence.pages));
            let prompt = &mut self.prompts[sequence.prompt];
            prompt.n_unfinished -= 1;
            if prompt.n_unfinished == 0 {
                self.prefixes.forget(self.pages.release(&prompt.shared));
            }
            let completion = sequence.response.complete(prompt.request, sequence.k);
            let flow = observe(GenerateEvent::Completed(&completion));
            completions.push((prompt.index, completion));
            flow?;
        }
        ControlFlow::Continue(())
    }
}

/// Pages that let `max_batch` responses grow to their longest, but at most `n_max`, and enough for any one response.
fn n_pages(prompts: &[Prompt<'_>], max_batch: usize, n_max: usize) -> usize {
    let mut sizes: Vec<usize> = prompts
        .iter()
        .flat_map(|prompt| {
            let with_prompt = prompt.n_shared_pages() + prompt.n_own_pages();
            std::iter::repeat_n(with_prompt, prompt.request.n)
        })
        .collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let largest = sizes.first().copied().unwrap_or(0);
    sizes
        .iter()
        .take(max_batch)
        .sum::<usize>()
        .min(n_max)
        .max(largest)
}

/// The `position`-th number of a stream, of 53 bits.
fn random_number(key: u64, position: u64) -> u64 {
    let (high, low) = (
        random::word(key, 2 * position),
        random::word(key, 2 * position + 1),
    );
    u64::from(high) << 21 | u64::from(low >> 11)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::GenerateOptions;
    use crate::local_model::BaseQuant;
    use crate::testing::open;

    #[test]
    fn what_prompts_of_one_adapter_begin_alike_with_is_written_once() {
        let model = open("llama_tied", BaseQuant::None);
        let prompt = |id: u64, adapter: Option<usize>, last: u32| PromptIds {
            id,
            adapter,
            ids: (10..50).chain([last; 5]).collect(),
            n: 2,
            options: GenerateOptions::default(),
        };
        // Five whole pages of 8 for all that have the same adapter, then four tokens up to the last for each response.
        for (others, n_alike) in [(None, 1), (Some(0), 2)] {
            let prompts = [prompt(0, None, 3), prompt(1, others, 4), prompt(2, None, 3)];
            let requests: Vec<(usize, &PromptIds)> = prompts.iter().enumerate().collect();
            let options = BatchOptions::default();
            let adapters = LoadedAdapters::Nothing;
            let mut batcher = Batcher::new(model.inner(), &adapters, None, &requests, &[], &options).unwrap();
            let n_rows = |prefills: Vec<Prefill<'_>>| {
                prefills.iter().map(|prefill| prefill.range.len()).sum::<usize>()
            };
            assert_eq!(n_rows(batcher.admit()), n_alike * 40 + 6 * 4);
            assert!(
                batcher
                    .active
                    .is_sorted_by_key(|sequence| prompts[sequence.prompt].adapter)
            );
            batcher.active.clear();
            assert_eq!(n_rows(batcher.admit()), 0);
        }
    }
}
