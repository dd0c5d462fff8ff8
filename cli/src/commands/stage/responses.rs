//! The responses that `judge` is given: do they answer the test prompts of this config?
//!
//! Invariant: what passes holds at most one answer to each (prompt, k), and none that says it answers another prompt.

use std::collections::{BTreeMap, BTreeSet};

use llamaduo_data::{Response, Sample, jsonl};

use crate::error::{Error, Result};
use crate::progress::words::counted;

/// A row, for errors.
const ROW_FORM: &str = r#"a row as `infer` writes it: {"prompt_index": 0, "k": 0, "text": "...", "tokens": 9, "complete": true}"#;

/// What to do about responses to other prompts.
const REMEDY: &str = "judge them with the config, the coverage dataset and the --set options that they were inferred \
                      with, or infer again";

/// Responses that may be judged.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) n: u64,
    /// What the user should know of them.
    pub(super) note: Option<String>,
}

/// Reads the rows of `text`, which the user knows as `name`, against the test split.
pub(super) fn checked(name: &str, text: &str, test: &[Sample]) -> Result<Checked> {
    let rows: Vec<(u64, Response)> = jsonl::read_lines(name, text, ROW_FORM)?;
    if rows.is_empty() {
        return Err(Error::Usage(format!(
            "{name} holds no responses; write some with `llamaduo infer`"
        )));
    }
    let mut seen: BTreeMap<(u32, u32), u64> = BTreeMap::new();
    let mut n_without_sample = 0;
    for (line, response) in &rows {
        let (index, k) = (response.prompt_index, response.k);
        let refuse = |problem: String| Err(Error::Usage(format!("{name}, line {line}: {problem}")));
        let Some(sample) = test.get(index as usize) else {
            let n_test = counted(test.len() as u64, "prompt", "prompts");
            return refuse(format!(
                "prompt_index is {index}, but the test split has {n_test}, counted from 0; {REMEDY}"
            ));
        };
        match response.sample {
            Some(id) if id != sample.id() => {
                return refuse(format!(
                    "this answers another prompt than test prompt {index} of this config; {REMEDY}"
                ));
            }
            Some(_) => {}
            None => n_without_sample += 1,
        }
        if let Some(first) = seen.insert((index, k), *line) {
            return refuse(format!(
                "this is answer k = {k} to prompt_index {index} again, as on line {first}; give the responses of one \
                 subject only, and each answer to a prompt a k of its own"
            ));
        }
    }
    let n = rows.len() as u64;
    let answered: BTreeSet<u32> = seen.keys().map(|(index, _)| *index).collect();
    let missing = (answered.len() < test.len()).then(|| {
        format!(
            "note: {name} answers {} of the {} of this config's test split; the scores are of those alone",
            answered.len(),
            counted(test.len() as u64, "prompt", "prompts")
        )
    });
    let unnamed = (n_without_sample > 0).then(|| {
        format!(
            "note: {n_without_sample} of {} in {name} do not say which sample they answer, so they are matched by \
             prompt_index alone; they must be of this very test split",
            counted(n, "row", "rows")
        )
    });
    let notes: Vec<String> = missing.into_iter().chain(unnamed).collect();
    let note = (!notes.is_empty()).then(|| notes.join("\n"));
    Ok(Checked { n, note })
}

#[cfg(test)]
mod tests {
    use llamaduo_data::{Message, Provenance, Role};

    use super::*;

    fn test_split() -> Vec<Sample> {
        let pair = |prompt: &str| {
            let messages = vec![
                Message::new(Role::User, prompt),
                Message::new(Role::Assistant, "yes"),
            ];
            Sample::new(messages, Provenance::Coverage { line: 1 }).unwrap()
        };
        vec![pair("a"), pair("b")]
    }

    fn row(prompt_index: u32, k: u32, sample: Option<&Sample>) -> Response {
        Response {
            prompt_index,
            sample: sample.map(Sample::id),
            k,
            text: "x".to_owned(),
            tokens: 1,
            complete: true,
            logprobs: None,
            call: None,
        }
    }

    fn check(rows: &[Response]) -> Result<Checked> {
        checked("r.jsonl", &jsonl::write(rows).unwrap(), &test_split())
    }

    #[test]
    fn responses_of_another_split_are_refused_by_line() {
        let test = test_split();
        let fitting = [row(0, 0, Some(&test[0])), row(1, 0, Some(&test[1]))];
        let fit = check(&fitting).unwrap();
        assert!(fit.n == 2 && fit.note.is_none());
        let swapped = check(&[row(0, 0, Some(&test[0])), row(1, 0, Some(&test[0]))]);
        let beyond = check(&[row(0, 0, Some(&test[0])), row(2, 0, None)]);
        for refused in [swapped, beyond] {
            let message = refused.unwrap_err().to_string();
            assert!(
                message.starts_with("r.jsonl, line 2: ") && message.contains("infer again"),
                "{message}"
            );
        }
    }

    #[test]
    fn rows_that_name_no_sample_are_said_to_be_taken_by_their_position() {
        let test = test_split();
        let mixed = check(&[row(0, 0, Some(&test[0])), row(1, 0, None)]).unwrap();
        assert!(mixed.note.unwrap().contains("1 of 2 rows"));
    }

    #[test]
    fn prompts_without_an_answer_are_counted() {
        let half = check(&[row(1, 0, Some(&test_split()[1]))]).unwrap();
        assert!(half.note.unwrap().contains("answers 1 of the 2 prompts"));
    }

    #[test]
    fn answers_of_two_subjects_are_not_mixed() {
        let message = check(&[row(0, 0, None), row(0, 1, None), row(0, 0, None)])
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("line 3") && message.contains("line 1"),
            "{message}"
        );
        assert!(check(&[]).unwrap_err().to_string().contains("llamaduo infer"));
    }
}
