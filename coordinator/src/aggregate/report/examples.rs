//! The same test prompts answered by everyone.

use std::collections::BTreeMap;

use llamaduo_artifacts::Directory;
use llamaduo_data::report::{Example, ExampleAnswer};
use llamaduo_data::{Response, Sample, Verdict};
use llamaduo_proto::ids::Cycle;
use llamaduo_proto::run::{Quantization, RunSpec, Subject};

use super::AllJudged;
use crate::aggregate::{Error, inputs};
use crate::machine::Run;

/// Prompts shown: as many as a reader compares.
const EXAMPLES_MAX: usize = 6;

/// Answers and gradings of one subject.
struct Answers {
    name: String,
    responses: BTreeMap<u32, Response>,
    verdicts: BTreeMap<u32, Verdict>,
}

/// Test prompts spread over the split, with each subject's first answer.
pub(super) fn examples(
    artifacts: &Directory,
    run: &Run,
    spec: &RunSpec,
    all: &AllJudged,
) -> Result<Vec<Example>, Error> {
    let test: Vec<Sample> = inputs::rows(artifacts, "the test split", &spec.coverage.test)?;
    let mut subjects = Vec::new();
    for &(cycle, subject) in all.keys() {
        let first = |k: u32| k == 0;
        let responses = inputs::responses(artifacts, run, cycle, subject)?;
        let responses = responses
            .into_iter()
            .filter(|row| first(row.k))
            .map(|row| (row.prompt_index, row));
        let verdicts = inputs::verdicts(artifacts, run, cycle, subject)?;
        let graded = verdicts
            .into_iter()
            .filter(|row| first(row.k) && row.outcome.judgement().is_some());
        // The first grading of each answer is the one that is quoted.
        let mut quoted = BTreeMap::new();
        for row in graded {
            quoted.entry(row.prompt_index).or_insert(row);
        }
        subjects.push((
            (cycle, subject),
            Answers {
                name: name(cycle, subject),
                responses: responses.collect(),
                verdicts: quoted,
            },
        ));
    }
    let stride = test.len().div_ceil(EXAMPLES_MAX).max(1);
    let chosen = test.iter().enumerate().step_by(stride);
    let example = |(index, sample): (usize, &Sample)| {
        let prompt_index = u32::try_from(index).unwrap_or(u32::MAX);
        let answers = subjects
            .iter()
            .filter_map(|(key, answers)| answer(answers, prompt_index, all, key));
        Example {
            prompt_index,
            prompt: sample.instruction(),
            reference: sample.response().to_owned(),
            answers: answers.collect(),
        }
    };
    Ok(chosen.map(example).collect())
}

fn answer(
    answers: &Answers,
    prompt_index: u32,
    all: &AllJudged,
    key: &(Cycle, Subject),
) -> Option<ExampleAnswer> {
    let response = answers.responses.get(&prompt_index)?;
    let scores = all.get(key)?.responses().iter();
    let score = scores
        .clone()
        .find(|score| score.prompt_index == prompt_index && score.k == 0);
    let judgement = answers
        .verdicts
        .get(&prompt_index)
        .and_then(|verdict| verdict.outcome.judgement());
    let reasons = judgement.map(|judgement| {
        vec![
            judgement.similarity.reason.clone(),
            judgement.precision.reason.clone(),
        ]
    });
    Some(ExampleAnswer {
        subject: answers.name.clone(),
        text: response.text.clone(),
        similarity: score.and_then(|score| score.similarity),
        precision: score.and_then(|score| score.precision),
        reasons: reasons.unwrap_or_default(),
    })
}

fn name(cycle: Cycle, subject: Subject) -> String {
    match subject {
        Subject::Base(Quantization::None) => "base (as its file holds it)".to_owned(),
        Subject::Base(Quantization::Nf4 | Quantization::Nf4Double) => "base (NF4)".to_owned(),
        Subject::Service => "service LLM".to_owned(),
        Subject::Adapter(_) => format!("cycle {}", cycle.0),
    }
}
