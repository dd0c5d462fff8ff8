//! Asks a service LLM for new pairs like the train pairs.
//!
//! Invariant: examples come from the train artifact alone, and which ones a call shows depends on the run's seed and
//! the call's number only, so that another attempt asks, and pays, for nothing new.

use std::sync::Arc;

use llamaduo_data::synthesis::{Candidate, candidates};
use llamaduo_data::{Sample, SampleId, jsonl};
use llamaduo_prompts::{ExamplePair, Prompt, PromptName, SynthesisInput};
use llamaduo_proto::manifest::ManifestKind;
use llamaduo_proto::task::{SynthesizeOutput, SynthesizeTask, TaskOutput, TaskResult};
use sha2::{Digest as _, Sha256};

use super::{Bench, file, many, progress, request};
use crate::calls::Question;
use crate::error::Error;
use crate::link::AttemptHandle;
use crate::service_llm::ChatRequest;

const SAMPLES: &str = "samples.jsonl";

/// A cycle has at most 2^20 calls, as the contract says; the rest of the 31 bits that every server takes for a seed tells cycles
/// apart.
const REPEAT_CYCLE_SHIFT: u32 = 20;

/// One call, ready to be made.
struct Call {
    request: ChatRequest,
    /// The standing instruction of the examples.
    system: Option<String>,
    parents: Vec<SampleId>,
}

pub(super) async fn run(
    bench: &Arc<Bench>,
    task: &SynthesizeTask,
    attempt: &Arc<AttemptHandle>,
) -> Result<TaskResult, Error> {
    let train = bench.samples(task.train, attempt).await?;
    if train.is_empty() {
        let (what, expected) = ("the train split", "at least one pair".to_owned());
        return Err(Error::Task {
            what,
            expected,
            found: "none".to_owned(),
        });
    }
    let prompt = bench
        .prompt(PromptName::Synthesize, task.settings.prompt, attempt)
        .await?;
    let service = bench.services.get(&task.service_llm)?;
    attempt.progress(progress(0, u64::from(task.n_calls), "calls"));
    let prompt_hash: Arc<str> = prompt.hash().into();
    let spec = Arc::new(task.service_llm.clone());
    let calls = (0..task.n_calls).map(|idx| {
        let (bench, attempt, spec) = (Arc::clone(bench), Arc::clone(attempt), Arc::clone(&spec));
        let (service, prompt_hash) = (service.clone(), Arc::clone(&prompt_hash));
        // Planned when its turn comes, so that no more are held than are made at once. Below 2^20, so it fits.
        let call = plan(task, &train, &prompt, task.first_call.saturating_add(idx));
        async move {
            let call = call?;
            let question = Question {
                spec: &spec,
                service: &service,
                request: &call.request,
                prompt_hash: &prompt_hash,
            };
            let answer = bench.calls.ask(&attempt, &question).await?;
            attempt.advance();
            Ok(candidates(
                &answer.text,
                call.system.as_deref(),
                &call.parents,
                &answer.call,
            ))
        }
    });
    let replies = many::in_order(calls, task.service_llm.concurrency_max as usize).await?;
    store(bench, task, attempt, replies.into_iter().flatten().collect()).await
}

/// Stores what was written, malformed items too: they were paid for, and say how a prompt does.
async fn store(
    bench: &Bench,
    task: &SynthesizeTask,
    attempt: &AttemptHandle,
    items: Vec<Candidate>,
) -> Result<TaskResult, Error> {
    let n_malformed = items
        .iter()
        .filter(|item| matches!(item, Candidate::Malformed(_)))
        .count() as u32;
    let text = jsonl::write(&items)?;
    let parents = [task.train].into_iter().chain(task.settings.prompt).collect();
    let manifest = bench
        .store(
            attempt,
            ManifestKind::RawSamples,
            vec![(SAMPLES, text.into_bytes())],
            parents,
        )
        .await?;
    let output = SynthesizeOutput {
        samples: file(&manifest, SAMPLES)?,
        n_raw: items.len() as u32,
        n_malformed,
    };
    bench
        .result(attempt, &manifest, TaskOutput::Synthesize(output))
        .await
}

/// What the `number`-th call of a cycle shows and asks.
fn plan(task: &SynthesizeTask, train: &[Sample], prompt: &Prompt, number: u32) -> Result<Call, Error> {
    let chosen = choose(
        task.seed,
        task.cycle.0,
        number,
        train.len(),
        task.settings.examples_per_call as usize,
    );
    let examples: Vec<&Sample> = chosen.into_iter().filter_map(|idx| train.get(idx)).collect();
    let system = examples
        .first()
        .and_then(|sample| sample.system())
        .map(str::to_owned);
    let instructions: Vec<String> = examples.iter().map(|sample| sample.instruction()).collect();
    let pairs: Vec<ExamplePair<'_>> = examples
        .iter()
        .zip(&instructions)
        .map(|(sample, instruction)| ExamplePair {
            instruction,
            response: sample.response(),
        })
        .collect();
    let rendered = prompt.render_synthesis(SynthesisInput {
        examples: &pairs,
        system: system.as_deref(),
        topic: &task.topic,
        count: task.settings.pairs_per_call,
    })?;
    // The cycle is part of the repeat: the same examples may be drawn again, and are to give other pairs then.
    let repeat = u64::from(task.cycle.0) << REPEAT_CYCLE_SHIFT | u64::from(number);
    let parents = examples.iter().map(|sample| sample.id()).collect();
    Ok(Call {
        request: request(rendered, repeat),
        system,
        parents,
    })
}

/// `n_wanted` different positions below `n`, in the order drawn: the first of a shuffle by the seed.
fn choose(seed: u64, cycle: u32, number: u32, n: usize, n_wanted: usize) -> Vec<usize> {
    let mut positions: Vec<usize> = (0..n).collect();
    let n_wanted = n_wanted.min(n);
    for place in 0..n_wanted {
        let mut hash = Sha256::new_with_prefix(b"synthesis examples");
        hash.update(seed.to_le_bytes());
        hash.update(cycle.to_le_bytes());
        hash.update(number.to_le_bytes());
        hash.update((place as u64).to_le_bytes());
        let draw = hash
            .finalize()
            .iter()
            .take(8)
            .fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        // At most 2⁻³² of bias for fewer than 2³² samples.
        let other = place + (draw % (n - place) as u64) as usize;
        positions.swap(place, other);
    }
    positions.truncate(n_wanted);
    positions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_different_seeded_and_in_range() {
        for n in 1..20 {
            for number in 0..20 {
                let mut chosen = choose(7, 1, number, n, 5);
                assert_eq!(chosen, choose(7, 1, number, n, 5));
                assert_eq!(chosen.len(), n.min(5));
                chosen.sort_unstable();
                chosen.dedup();
                assert_eq!(chosen.len(), n.min(5));
                assert!(chosen.iter().all(|idx| *idx < n));
            }
        }
        assert_ne!(choose(7, 1, 0, 100, 5), choose(7, 1, 1, 100, 5));
        assert_ne!(choose(7, 1, 0, 100, 5), choose(7, 2, 0, 100, 5));
        assert_ne!(choose(7, 1, 0, 100, 5), choose(8, 1, 0, 100, 5));
    }
}
