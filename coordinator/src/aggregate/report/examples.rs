//! The same test prompts answered by everyone.
//!
//! Invariant: the delivered adapter's worst answers are among them, so that examples never look better than the run.

use std::collections::BTreeMap;

use llamaduo_artifacts::Directory;
use llamaduo_data::report::{About, Example, ExampleAnswer, Who};
use llamaduo_data::score::Judged;
use llamaduo_data::{Response, Sample, Verdict};
use llamaduo_proto::ids::Cycle;
use llamaduo_proto::run::{Quantization, RunSpec, Subject};

use super::AllJudged;
use crate::aggregate::{Error, inputs};
use crate::machine::Run;

/// Prompts shown: as many as a reader compares.
const EXAMPLES_MAX: usize = 6;

/// Those among them that are shown for how badly they were answered.
const WORST_MAX: usize = 3;

/// Answers and gradings of one subject.
struct Answers {
    name: String,
    responses: BTreeMap<u32, Response>,
    verdicts: BTreeMap<u32, Verdict>,
}

/// The delivered adapter's worst answers and prompts spread over the split, with each subject's first answer.
pub(super) fn examples(
    artifacts: &Directory,
    run: &Run,
    spec: &RunSpec,
    all: &AllJudged,
    about: &About,
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
                name: about.name_of(who(cycle, subject)),
                responses: responses.collect(),
                verdicts: quoted,
            },
        ));
    }
    let delivered = about
        .adapter_cycle
        .and_then(|cycle| all.get(&(Cycle(cycle), Subject::Adapter(Cycle(cycle)))));
    let example = |(prompt_index, worst): (u32, bool)| {
        let sample = test.get(prompt_index as usize)?;
        let answers = subjects
            .iter()
            .filter_map(|(key, answers)| answer(answers, prompt_index, all, key));
        Some(Example {
            prompt_index,
            worst,
            prompt: sample.prompt_text(),
            reference: sample.response().to_owned(),
            answers: answers.collect(),
        })
    };
    let chosen = chosen(test.len(), delivered);
    Ok(chosen.into_iter().filter_map(example).collect())
}

/// Which of `n` prompts are shown, and whether for being among the worst: those first, then others at equal distances.
pub(in crate::aggregate) fn chosen(n: usize, delivered: Option<&Judged>) -> Vec<(u32, bool)> {
    let first_answers = delivered.into_iter().flat_map(Judged::responses);
    let mut worst: Vec<(f64, u32)> = first_answers
        .filter(|score| score.k == 0)
        .filter_map(|score| Some((score.similarity? + score.precision?, score.prompt_index)))
        .collect();
    worst.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    worst.truncate(WORST_MAX);
    let mut chosen: Vec<(u32, bool)> = worst.into_iter().map(|(_, prompt)| (prompt, true)).collect();
    let others = EXAMPLES_MAX - chosen.len();
    let spread = (0..n).step_by(n.div_ceil(others).max(1));
    for prompt in spread.filter_map(|prompt| u32::try_from(prompt).ok()) {
        if chosen.iter().all(|(known, _)| *known != prompt) {
            chosen.push((prompt, false));
        }
    }
    chosen
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

fn who(cycle: Cycle, subject: Subject) -> Who {
    match subject {
        Subject::Base(Quantization::None) => Who::BaseUnquantized,
        Subject::Base(Quantization::Nf4 | Quantization::Nf4Double) => Who::Base,
        Subject::Service => Who::Service,
        Subject::Adapter(_) => Who::Cycle(cycle.0),
    }
}
