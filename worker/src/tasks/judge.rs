//! Grades the responses of one infer task, M times each.
//!
//! Invariant: each (response, m) gives exactly one verdict, in that order; a reply that cannot be read is a verdict
//! that says so.

use std::sync::Arc;

use llamaduo_data::verdict::Outcome;
use llamaduo_data::{Response, Sample, Verdict, jsonl};
use llamaduo_prompts::{JudgeInput, Prompt, PromptName};
use llamaduo_proto::manifest::ManifestKind;
use llamaduo_proto::task::{JudgeOutput, JudgeTask, TaskOutput, TaskResult};

use super::{Bench, file, many, progress, request};
use crate::calls::Question;
use crate::error::Error;
use crate::link::AttemptHandle;
use crate::service_llm::ChatRequest;

const VERDICTS: &str = "verdicts.jsonl";

pub(super) async fn run(
    bench: &Arc<Bench>,
    task: &JudgeTask,
    attempt: &Arc<AttemptHandle>,
) -> Result<TaskResult, Error> {
    let test = bench.samples(task.test, attempt).await?;
    let responses: Vec<Response> = bench
        .rows(task.responses, "responses as JSON lines", attempt)
        .await?;
    let prompt = bench
        .prompt(PromptName::Judge, task.settings.prompt, attempt)
        .await?;
    let service = bench.services.get(&task.judge_llm)?;
    let gradings = gradings(&test, responses, &prompt)?;
    let n_each = task.settings.gradings_per_response.max(1);
    let n = (gradings.len() as u64).saturating_mul(u64::from(n_each));
    attempt.progress(progress(0, n, "verdicts"));
    let prompt_hash: Arc<str> = prompt.hash().into();
    let spec = Arc::new(task.judge_llm.clone());
    let repeats = gradings
        .into_iter()
        .flat_map(move |grading| (0..n_each).map(move |m| (Arc::clone(&grading), m)));
    let calls = repeats.map(|(grading, m)| {
        let (bench, attempt, spec) = (Arc::clone(bench), Arc::clone(attempt), Arc::clone(&spec));
        let (service, prompt_hash) = (service.clone(), Arc::clone(&prompt_hash));
        async move {
            let (response, asked) = &*grading;
            let request = ChatRequest {
                repeat: u64::from(m),
                ..asked.clone()
            };
            let question = Question {
                spec: &spec,
                service: &service,
                request: &request,
                prompt_hash: &prompt_hash,
            };
            let answer = bench.calls.ask(&attempt, &question).await?;
            attempt.advance();
            Ok(Verdict {
                prompt_index: response.prompt_index,
                k: response.k,
                m,
                outcome: Outcome::from_reply(&answer.text),
                call: answer.call,
            })
        }
    });
    let verdicts = many::in_order(calls, task.judge_llm.concurrency_max as usize).await?;
    store(bench, task, attempt, &verdicts).await
}

/// A response, and the question about it.
type Grading = Arc<(Response, ChatRequest)>;

/// The responses with their questions, in order.
fn gradings(test: &[Sample], responses: Vec<Response>, prompt: &Prompt) -> Result<Vec<Grading>, Error> {
    let grading = |response: Response| {
        let sample = tested(test, &response)?;
        // With the standing instructions: an answer is right or wrong by them too.
        let instruction = sample.prompt_text();
        let rendered = prompt.render_judge(JudgeInput {
            instruction: &instruction,
            human_response: sample.response(),
            model_response: &response.text,
        })?;
        Ok(Arc::new((response, request(rendered, 0))))
    };
    responses.into_iter().map(grading).collect()
}

/// Stores the verdicts, unreadable ones too.
async fn store(
    bench: &Bench,
    task: &JudgeTask,
    attempt: &AttemptHandle,
    verdicts: &[Verdict],
) -> Result<TaskResult, Error> {
    let n_graded = verdicts
        .iter()
        .filter(|verdict| verdict.outcome.judgement().is_some())
        .count() as u32;
    let text = jsonl::write(verdicts)?;
    let parents = [task.responses, task.test]
        .into_iter()
        .chain(task.settings.prompt)
        .collect();
    let manifest = bench
        .store(
            attempt,
            ManifestKind::Verdicts,
            vec![(VERDICTS, text.into_bytes())],
            parents,
        )
        .await?;
    let output = JudgeOutput {
        verdicts: file(&manifest, VERDICTS)?,
        n_graded,
        n_unparsed: verdicts.len() as u32 - n_graded,
    };
    bench.result(attempt, &manifest, TaskOutput::Judge(output)).await
}

/// The test sample that a response answers.
fn tested<'a>(test: &'a [Sample], response: &Response) -> Result<&'a Sample, Error> {
    let sample = test
        .get(response.prompt_index as usize)
        .ok_or_else(|| Error::Task {
            what: "a response's prompt",
            expected: format!("a position below {}", test.len()),
            found: response.prompt_index.to_string(),
        })?;
    match response.sample {
        Some(id) if id != sample.id() => Err(Error::Task {
            what: "a response's sample",
            expected: format!("that of prompt {} of the test split", response.prompt_index),
            found: id.to_string(),
        }),
        _ => Ok(sample),
    }
}
