//! Answers some of the test prompts, K times each: by the local model, or by the service LLM.
//!
//! Invariant: rows come in the order of (prompt, k), and an answer depends on its prompt, k and the task's seed only.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use llamaduo_data::{Response, Sample, SampleId, jsonl};
use llamaduo_engine::LocalModel;
use llamaduo_engine::generate::{
    BatchOptions, Completion, Finish, GenerateEvent, GenerateOptions, GenerateRequest, Sampling, context_max,
    generate,
};
use llamaduo_engine::lora::Adapter;
use llamaduo_engine::memory::{self, Base, GenerationBatch};
use llamaduo_engine::peft::{self, AdapterFiles};
use llamaduo_proto::Digest;
use llamaduo_proto::manifest::ManifestKind;
use llamaduo_proto::run::{InferSettings, LocalModelSpec, ServiceLlmSpec};
use llamaduo_proto::session::Assignment;
use llamaduo_proto::task::{Answerer, InferOutput, InferTask, TaskOutput, TaskResult};

use super::executor::{DEVICE_LOG, Loaded, base_quant};
use super::{Bench, file, many, progress};
use crate::calls::Question;
use crate::error::Error;
use crate::link::AttemptHandle;
use crate::service_llm::{ChatRequest, FinishReason};

const RESPONSES: &str = "responses.jsonl";

pub(super) async fn run(
    bench: &Arc<Bench>,
    task: &InferTask,
    assignment: &Assignment,
    attempt: &Arc<AttemptHandle>,
) -> Result<TaskResult, Error> {
    let prompts = prompts(bench, task, attempt).await?;
    let begun = Instant::now();
    let (responses, adapter) = match &task.answerer {
        Answerer::Base { local_model } => (
            locally(bench, task, local_model, None, prompts, assignment, attempt).await?,
            None,
        ),
        Answerer::Adapter { local_model, adapter } => {
            let files = adapter_files(bench, *adapter, attempt).await?;
            let responses = locally(
                bench,
                task,
                local_model,
                Some(files),
                prompts,
                assignment,
                attempt,
            )
            .await?;
            (responses, Some(*adapter))
        }
        Answerer::Service { service_llm } => (
            by_service(bench, task, service_llm, prompts, attempt).await?,
            None,
        ),
    };
    let seconds = begun.elapsed().as_secs_f64();
    let text = jsonl::write(&responses)?;
    let parents = std::iter::once(task.test).chain(adapter).collect();
    let manifest = bench
        .store(
            attempt,
            ManifestKind::Responses,
            vec![(RESPONSES, text.into_bytes())],
            parents,
        )
        .await?;
    let output = InferOutput {
        responses: file(&manifest, RESPONSES)?,
        n_responses: responses.len() as u32,
        n_tokens: responses.iter().map(|response| response.tokens).sum(),
        seconds,
    };
    bench.result(attempt, &manifest, TaskOutput::Infer(output)).await
}

/// The prompts of this task with their positions in the test split.
async fn prompts(
    bench: &Bench,
    task: &InferTask,
    attempt: &AttemptHandle,
) -> Result<Vec<(u32, Sample)>, Error> {
    let test = bench.samples(task.test, attempt).await?;
    let end = task.first_prompt.saturating_add(task.n_prompts);
    if end as usize > test.len() {
        return Err(Error::Task {
            what: "prompts of an infer task",
            expected: format!("positions {} to {end} of the test split", task.first_prompt),
            found: format!("{} prompts in it", test.len()),
        });
    }
    let numbered = (0..end).zip(test);
    Ok(numbered.skip(task.first_prompt as usize).collect())
}

fn n_responses(prompts: &[(u32, Sample)], task: &InferTask) -> u64 {
    prompts.len() as u64 * u64::from(task.settings.responses_per_prompt)
}

/// The files of an adapter, from its manifest.
pub(super) async fn adapter_files(
    bench: &Bench,
    manifest: Digest,
    attempt: &AttemptHandle,
) -> Result<AdapterFiles, Error> {
    let named = bench.artifacts.get_manifest(manifest, attempt.stopped()).await?;
    let config = bench
        .artifacts
        .get(file(&named, peft::CONFIG_FILE)?, attempt.stopped())
        .await?;
    let tensors = bench
        .artifacts
        .get(file(&named, peft::TENSORS_FILE)?, attempt.stopped())
        .await?;
    Ok(AdapterFiles { config, tensors })
}

async fn locally(
    bench: &Bench,
    task: &InferTask,
    local_model: &LocalModelSpec,
    adapter: Option<AdapterFiles>,
    prompts: Vec<(u32, Sample)>,
    assignment: &Assignment,
    attempt: &Arc<AttemptHandle>,
) -> Result<Vec<Response>, Error> {
    let path = bench.models.resolve_for(&local_model.reference, attempt).await?;
    let (quantization, compute) = (local_model.quantization, local_model.compute);
    attempt.progress(progress(0, n_responses(&prompts, task), "responses"));
    let requests = requests(&prompts, adapter.as_ref().map(|_| 0), &task.settings, task.seed);
    let samples: BTreeMap<u64, SampleId> = prompts
        .iter()
        .map(|(prompt_index, sample)| (u64::from(*prompt_index), sample.id()))
        .collect();
    let n_halvings = assignment.batch_halvings;
    let batch = BatchOptions {
        max_batch: halved(task.settings.batch_max as usize, n_halvings),
        cache_bytes_max: halved(BatchOptions::default().cache_bytes_max, n_halvings),
    };
    let attempt = Arc::clone(attempt);
    let work = move |loaded: &mut Loaded| {
        attempt.check()?;
        let room = loaded.room()?;
        let model = loaded.model(&path, quantization, compute)?;
        let adapter: Option<Adapter> = adapter
            .map(|files| peft::from_files(files, model.config()))
            .transpose()?;
        let batch = match room {
            Some(room) => {
                let base = Base {
                    config: model.config(),
                    quant: base_quant(quantization),
                };
                // what a card holds is known; only the machine's own memory needs a bound of its own
                let batch = BatchOptions {
                    cache_bytes_max: usize::MAX,
                    ..batch
                };
                fitted(model, base, adapter.as_ref(), &requests, batch, room, &attempt)?
            }
            None => batch,
        };
        let mut observe = |event: GenerateEvent<'_>| {
            if matches!(event, GenerateEvent::Completed(_)) {
                attempt.advance();
            }
            if attempt.stopped().is_cancelled() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let completions = generate(model, adapter.as_slice(), &requests, &batch, &mut observe)?;
        attempt.check()?;
        let completions = completions.into_iter();
        completions
            .map(|completion| response(completion, &samples))
            .collect()
    };
    bench.executor.run(work).await
}

/// As many responses at once as `room` bytes of a device hold. Says where that is fewer than were asked for.
fn fitted(
    model: &LocalModel,
    base: Base<'_>,
    adapter: Option<&Adapter>,
    requests: &[GenerateRequest],
    options: BatchOptions,
    room: u64,
    attempt: &AttemptHandle,
) -> Result<BatchOptions, Error> {
    let n_responses = requests.iter().map(|request| request.n).sum::<usize>().max(1);
    let options = BatchOptions {
        max_batch: options.max_batch.min(n_responses),
        ..options
    };
    let batch = GenerationBatch {
        adapters: &[adapter.map(Adapter::config)],
        options,
        context: context_max(model, requests)?,
    };
    let fitted = memory::fit_generation(base, batch, room)?;
    if fitted != options {
        let (n_at_once, n_before) = (fitted.max_batch, options.max_batch);
        tracing::warn!(target: DEVICE_LOG, task_id = %attempt.id.task, n_at_once, n_before, "the batch would not fit into the device's memory: fewer responses grow at once");
    }
    Ok(fitted)
}

fn requests(
    prompts: &[(u32, Sample)],
    adapter: Option<usize>,
    settings: &InferSettings,
    seed: u64,
) -> Vec<GenerateRequest> {
    let sampling = Sampling {
        temperature: settings.temperature,
        top_k: settings.top_k.unwrap_or(0) as usize,
        top_p: settings.top_p.unwrap_or(1.0),
        min_p: settings.min_p.unwrap_or(0.0),
        repetition_penalty: settings.repetition_penalty.unwrap_or(1.0),
    };
    let options = GenerateOptions {
        max_tokens: settings.tokens_max as usize,
        sampling,
        stop: settings.stop.clone(),
        stop_tokens: Vec::new(),
        logprobs: settings.logprobs.then_some(0),
        seed,
    };
    let request = |(prompt_index, sample): &(u32, Sample)| GenerateRequest {
        id: u64::from(*prompt_index),
        adapter,
        messages: super::train::messages(sample.prompt()),
        n: settings.responses_per_prompt as usize,
        options: options.clone(),
    };
    prompts.iter().map(request).collect()
}

fn response(completion: Completion, samples: &BTreeMap<u64, SampleId>) -> Result<Response, Error> {
    if let Finish::Refused {
        prompt_tokens,
        max_tokens,
        context_len,
    } = completion.finish
    {
        return Err(Error::Task {
            what: "a test prompt",
            expected: format!("prompt and response within the context of {context_len} tokens"),
            found: format!(
                "prompt {} of {prompt_tokens} tokens with up to {max_tokens} new ones; shorten it, lower infer.max_tokens, \
                 or choose a model with a longer context",
                completion.request
            ),
        });
    }
    Ok(Response {
        // Ids were made from positions, which are u32.
        prompt_index: completion.request as u32,
        sample: samples.get(&completion.request).copied(),
        k: completion.k as u32,
        text: completion.text,
        tokens: completion.tokens as u64,
        complete: completion.finish == Finish::Stop,
        logprobs: completion
            .logprobs
            .map(|tokens| tokens.iter().map(|token| token.chosen.logprob).collect()),
        call: None,
    })
}

async fn by_service(
    bench: &Arc<Bench>,
    task: &InferTask,
    spec: &ServiceLlmSpec,
    prompts: Vec<(u32, Sample)>,
    attempt: &Arc<AttemptHandle>,
) -> Result<Vec<Response>, Error> {
    let service = bench.services.get(spec)?;
    attempt.progress(progress(0, n_responses(&prompts, task), "responses"));
    let spec = Arc::new(spec.clone());
    let n_each = task.settings.responses_per_prompt.max(1);
    let places = prompts.into_iter().flat_map(move |(prompt_index, sample)| {
        let sample = Arc::new(sample);
        (0..n_each).map(move |k| (prompt_index, Arc::clone(&sample), k))
    });
    let calls = places.map(|(prompt_index, sample, k)| {
        let (bench, attempt, service) = (Arc::clone(bench), Arc::clone(attempt), service.clone());
        let (spec, sample_id) = (Arc::clone(&spec), sample.id());
        let request = ChatRequest {
            messages: sample.prompt().to_vec(),
            schema: None,
            repeat: u64::from(k),
        };
        async move {
            // The words are the dataset's own, so there is no prompt to name.
            let question = Question {
                spec: &spec,
                service: &service,
                request: &request,
                prompt_hash: "",
            };
            let answer = bench.calls.ask(&attempt, &question).await?;
            attempt.advance();
            Ok(Response {
                prompt_index,
                sample: Some(sample_id),
                k,
                tokens: answer.call.output_tokens,
                complete: answer.finish == FinishReason::Stop,
                logprobs: None,
                text: answer.text,
                call: Some(answer.call),
            })
        }
    });
    many::in_order(calls, spec.concurrency_max as usize).await
}

/// `n` halved so many times, at least 1.
pub(super) fn halved(n: usize, n_halvings: u32) -> usize {
    n.checked_shr(n_halvings).unwrap_or(0).max(1)
}
