//! Responses to prompts: continuous batching over a paged key/value cache.
//!
//! Invariant: a response is a function of (model, its adapter, prompt, its options, its request id and number `k`), not of
//! what else is in the batch, whatever adapters that has.

mod batcher;
mod logprobs;
mod pages;
mod prefixes;
mod response;
mod sampler;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;

use llamaduo_kernels::Backend;
use serde::{Deserialize, Serialize};

pub use logprobs::{LOGPROBS_MAX, Likelihood, TokenLogprob};
pub use sampler::Sampling;

use batcher::Batcher;
pub(crate) use batcher::{PAGE_LEN, PREFILL_ROWS};

use crate::chat_template::{Message, encode_chat};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::local_model::LocalModel;
use crate::lora::Adapter;
use crate::model::{AdapterSet, LoadedAdapters, Model};

/// How one request's responses are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateOptions {
    /// Most tokens of a response, at least 1.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// A response ends before any of these; besides the model's own end-of-turn tokens. One that names a special token,
    /// which no text shows, stands for that token.
    pub stop: Vec<String>,
    /// A response ends before any of these tokens too.
    pub stop_tokens: Vec<u32>,
    /// Tell how likely each token was, and the so many likeliest in its place, at most [`LOGPROBS_MAX`].
    pub logprobs: Option<usize>,
    /// Decides the random numbers, with the request's id and the response's number.
    pub seed: u64,
}

impl Default for GenerateOptions {
    /// The paper's.
    fn default() -> Self {
        Self {
            max_tokens: 1024,
            sampling: Sampling::default(),
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            logprobs: None,
            seed: 0,
        }
    }
}

impl GenerateOptions {
    /// Checks ranges; the error names the field.
    pub fn validate(&self) -> Result<()> {
        at_least_one("max_tokens", self.max_tokens)?;
        match self.logprobs {
            Some(n) if n > LOGPROBS_MAX => Err(Error::GenerateOptions {
                field: "logprobs",
                expected: "at most 20",
                found: n.to_string(),
            }),
            _ => self.sampling.validate(),
        }
    }
}

/// A prompt that is to be answered.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    /// Names the request in events and completions, beside its adapter, and its random stream.
    pub id: u64,
    /// Which of the adapters answers; the base alone when absent.
    pub adapter: Option<usize>,
    /// Ends with what is to be answered.
    pub messages: Vec<Message>,
    /// Responses to this prompt; they share its pages in the cache.
    pub n: usize,
    /// How they are made.
    pub options: GenerateOptions,
}

/// How much is done at once; no text depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchOptions {
    /// Most responses that grow together.
    pub max_batch: usize,
    /// Most bytes of keys and values; one response is run even if it alone needs more.
    pub cache_bytes_max: usize,
}

impl Default for BatchOptions {
    fn default() -> Self {
        // 32 rows keep the matrix products busy; half a GiB holds some 11,000 tokens of a 135M model.
        Self {
            max_batch: 32,
            cache_bytes_max: 512 << 20,
        }
    }
}

impl BatchOptions {
    /// Pages of each layer's cache that the bytes allow, those of 32-bit floats.
    pub(crate) fn n_pages_max(&self, config: &ModelConfig) -> usize {
        let heads = config.heads;
        let page_bytes =
            config.n_layers * 2 * heads.n_kv_heads * heads.head_dim * PAGE_LEN * size_of::<f32>();
        self.cache_bytes_max / page_bytes.max(1)
    }
}

/// Why a response ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finish {
    /// The model ended its turn, or a stop string came.
    Stop,
    /// `max_tokens` are made.
    Length,
    /// Never begun: prompt and `max_tokens` together do not fit into the context.
    Refused {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Asked for.
        max_tokens: usize,
        /// What fits.
        context_len: usize,
    },
}

impl std::fmt::Display for Finish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stop => f.write_str("stop"),
            Self::Length => f.write_str("length"),
            Self::Refused {
                prompt_tokens,
                max_tokens,
                context_len,
            } => write!(
                f,
                "refused: a prompt of {prompt_tokens} tokens and up to {max_tokens} new ones do not fit into the \
                 context of {context_len}; shorten the prompt or lower max_tokens"
            ),
        }
    }
}

/// A finished response.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Id of its request.
    pub request: u64,
    /// The adapter of its request.
    pub adapter: Option<usize>,
    /// Its number among the request's responses, from 0.
    pub k: usize,
    /// Without special tokens and stop strings.
    pub text: String,
    /// How many tokens were made, the one that ended it not counted.
    pub tokens: usize,
    /// Those tokens.
    pub ids: Vec<u32>,
    /// Of each of those tokens, where that was asked for.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// Why it ended.
    pub finish: Finish,
}

/// What generation tells while it goes on.
#[derive(Debug)]
pub enum GenerateEvent<'a> {
    /// A response grew.
    Text {
        /// Id of its request.
        request: u64,
        /// The adapter of its request.
        adapter: Option<usize>,
        /// Its number.
        k: usize,
        /// What is new; whole characters.
        text: &'a str,
    },
    /// A response ended.
    Completed(&'a Completion),
}

/// A prompt as tokens.
#[derive(Clone, Debug)]
pub(crate) struct PromptIds {
    pub(crate) id: u64,
    pub(crate) adapter: Option<usize>,
    pub(crate) ids: Vec<u32>,
    pub(crate) n: usize,
    pub(crate) options: GenerateOptions,
}

/// Answers all requests, `n` times each, by the one of `adapters` that each of them names; completions come in the order
/// of (request, k). Requests of different adapters share their steps.
///
/// A request that cannot fit into the context is refused by its completion's [`Finish`] and harms no other. When
/// `observe` breaks off, what is complete by then is returned. Fails on options without a meaning, on an adapter that is not
/// given, and on one that was made for a model of other sizes.
pub fn generate<B: Backend>(
    model: &LocalModel<B>,
    adapters: &[Adapter],
    requests: &[GenerateRequest],
    batch: &BatchOptions,
    observe: &mut dyn FnMut(GenerateEvent<'_>) -> ControlFlow<()>,
) -> Result<Vec<Completion>> {
    let (tokenizer, template) = (model.tokenizer()?, model.chat_template()?);
    let mut prompts = Vec::with_capacity(requests.len());
    for request in requests {
        let mut options = request.options.clone();
        let special = options.stop.iter().filter_map(|text| tokenizer.special_id(text));
        options.stop_tokens.extend(special);
        prompts.push(PromptIds {
            id: request.id,
            adapter: request.adapter,
            ids: encode_chat(tokenizer, template, &request.messages, true)?,
            n: request.n,
            options,
        });
    }
    let mut stop_tokens = model.config().eos.clone();
    stop_tokens.extend_from_slice(tokenizer.eos());
    stop_tokens.extend(END_OF_TURN.iter().filter_map(|text| tokenizer.token_id(text)));
    generate_ids(model, adapters, &prompts, &stop_tokens, batch, observe)
}

/// Most tokens that one of the requests' responses and its prompt can have together, those that do not fit into the
/// context left out: for a plan of memory.
pub fn context_max<B: Backend>(model: &LocalModel<B>, requests: &[GenerateRequest]) -> Result<usize> {
    let (tokenizer, template) = (model.tokenizer()?, model.chat_template()?);
    let mut longest = 0;
    for request in requests {
        let n_prompt = encode_chat(tokenizer, template, &request.messages, true)?.len();
        let n_tokens = n_prompt.saturating_add(request.options.max_tokens);
        if n_tokens <= model.config().context_len {
            longest = longest.max(n_tokens);
        }
    }
    Ok(longest)
}

/// Tokens with which the chat templates of the supported families end a turn; some models list only their end of text.
const END_OF_TURN: [&str; 4] = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>"];

/// Bounds what a call holds in memory for responses that wait; far beyond any shard.
const RESPONSES_MAX: usize = 1 << 20;

/// [`generate`] on prompts that are already tokens.
pub(crate) fn generate_ids<B: Backend>(
    model: &LocalModel<B>,
    adapters: &[Adapter],
    prompts: &[PromptIds],
    stop_tokens: &[u32],
    batch: &BatchOptions,
    observe: &mut dyn FnMut(GenerateEvent<'_>) -> ControlFlow<()>,
) -> Result<Vec<Completion>> {
    check(prompts, adapters.len(), batch)?;
    let context_len = model.config().context_len;
    let (accepted, refused): (Vec<_>, Vec<_>) = prompts
        .iter()
        .enumerate()
        .partition(|(_, prompt)| prompt.ids.len().saturating_add(prompt.options.max_tokens) <= context_len);
    let mut completions: Vec<(usize, Completion)> = Vec::new();
    for (index, prompt) in refused {
        let refusal = |k| (index, Completion::refused(prompt, k, prompt.refusal(context_len)));
        completions.extend((0..prompt.n).map(refusal));
    }
    let mut flow = ControlFlow::Continue(());
    for (_, refused) in &completions {
        if flow.is_continue() {
            flow = observe(GenerateEvent::Completed(refused));
        }
    }
    if flow.is_continue() && accepted.iter().any(|(_, prompt)| prompt.n > 0) {
        let adapters = load(model.inner(), adapters, &accepted)?;
        let tokenizer = model.tokenizer().ok();
        let batcher = Batcher::new(model.inner(), &adapters, tokenizer, &accepted, stop_tokens, batch)?;
        batcher.run(&mut completions, observe)?;
    }
    completions.sort_by_key(|(index, completion)| (*index, completion.k));
    Ok(completions
        .into_iter()
        .map(|(_, completion)| completion)
        .collect())
}

/// One adapter that all prompts name is held alone, as in training; where they differ, all that were given are.
fn load<B: Backend>(
    model: &Model<B>,
    adapters: &[Adapter],
    prompts: &[(usize, &PromptIds)],
) -> Result<LoadedAdapters<B>> {
    let mut named = prompts.iter().map(|(_, prompt)| prompt.adapter);
    let first = named.next().flatten();
    match named.all(|other| other == first) {
        true => LoadedAdapters::one(model, first.map(|adapter| &adapters[adapter])),
        false => AdapterSet::upload(model, adapters).map(LoadedAdapters::Several),
    }
}

/// Refuses options without a meaning, adapters that are not there, and calls that could not be held in memory.
fn check(prompts: &[PromptIds], n_adapters: usize, batch: &BatchOptions) -> Result<()> {
    at_least_one("max_batch", batch.max_batch)?;
    for prompt in prompts {
        if let Some(adapter) = prompt.adapter.filter(|&adapter| adapter >= n_adapters) {
            return Err(Error::GenerateOptions {
                field: "adapter",
                expected: "the number of one of the adapters, which begin at 0",
                found: adapter.to_string(),
            });
        }
        at_least_one("tokens of the prompt", prompt.ids.len())?;
        prompt.options.validate()?;
    }
    let n_responses = prompts
        .iter()
        .fold(0usize, |sum, prompt| sum.saturating_add(prompt.n));
    if n_responses > RESPONSES_MAX {
        let expected = "at most 1,048,576 responses in one call; divide the requests";
        return Err(Error::GenerateOptions {
            field: "n",
            expected,
            found: n_responses.to_string(),
        });
    }
    Ok(())
}

fn at_least_one(field: &'static str, value: usize) -> Result<()> {
    match value {
        0 => Err(Error::GenerateOptions {
            field,
            expected: "at least 1",
            found: "0".to_owned(),
        }),
        _ => Ok(()),
    }
}

impl PromptIds {
    fn refusal(&self, context_len: usize) -> Finish {
        Finish::Refused {
            prompt_tokens: self.ids.len(),
            max_tokens: self.options.max_tokens,
            context_len,
        }
    }
}

impl Completion {
    fn refused(request: &PromptIds, k: usize, finish: Finish) -> Self {
        Self {
            request: request.id,
            adapter: request.adapter,
            k,
            text: String::new(),
            tokens: 0,
            ids: Vec::new(),
            logprobs: None,
            finish,
        }
    }
}
