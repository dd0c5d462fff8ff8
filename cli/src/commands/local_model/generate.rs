//! `generate`: one prompt, answered by the base, by an adapter, or by several of them in one batch.
//!
//! Invariant: an answer is the same whether it is alone or beside others.

mod printed;

use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use llamaduo_engine::train::Conversation;
use llamaduo_engine::{
    BatchOptions, Completion, Finish, GenerateEvent, GenerateOptions, GenerateRequest, Likelihood,
    LocalModel, Message, Role, Sampling, TokenLogprob, Tokenizer,
};
use serde::{Deserialize, Serialize};

use super::{find, load, read};
use crate::args::{AdapterChoice, Format, Generate};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::output::Output;
use printed::Printed;

/// One answer as programs are told it.
#[derive(Serialize)]
struct Generated {
    text: String,
    tokens: usize,
    /// `stop`: the model ended its answer; `length`: `--max-tokens` cut it.
    finish: Finish,
    /// Of each token; with `--logprobs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<ToldToken>>,
}

/// A token of the answer as programs are told it.
#[derive(Serialize)]
struct ToldToken {
    #[serde(flatten)]
    chosen: ToldLikelihood,
    /// The likeliest in its place, as many as were asked for.
    top_logprobs: Vec<ToldLikelihood>,
}

#[derive(Serialize)]
struct ToldLikelihood {
    /// Its text alone; half a character is U+FFFD.
    token: String,
    id: u32,
    /// Natural logarithm of its probability by the bare model, whatever the sampling.
    logprob: f32,
}

fn told_tokens(tokenizer: &Tokenizer, tokens: &[TokenLogprob]) -> llamaduo_engine::Result<Vec<ToldToken>> {
    let told = |&Likelihood { id, logprob }: &Likelihood| {
        let text = tokenizer.decode(&[id])?;
        // A special token has no text but its name.
        let name = || tokenizer.token_text(id).unwrap_or_default();
        let token = if text.is_empty() { name() } else { text };
        Ok(ToldLikelihood { token, id, logprob })
    };
    let tokens = tokens.iter().map(|token| {
        Ok(ToldToken {
            chosen: told(&token.chosen)?,
            top_logprobs: token
                .top
                .iter()
                .map(told)
                .collect::<llamaduo_engine::Result<_>>()?,
        })
    });
    tokens.collect()
}

/// What several adapters answered, in the order in which they were named.
#[derive(Serialize)]
struct SideBySide<'a> {
    answers: &'a [ByAdapter],
}

#[derive(Serialize)]
struct ByAdapter {
    /// Its directory; null of the base alone.
    adapter: Option<String>,
    #[serde(flatten)]
    generated: Generated,
}

/// `generate`: as text, an answer is printed as it grows; of several the first, and then what the next one has said.
pub(in crate::commands) fn generate(arguments: &Generate, output: &Output) -> Result<Exit> {
    let request = request(arguments, output.format())?;
    let answerers = answerers(&arguments.adapters)?;
    let directories: Vec<&Path> = answerers.iter().copied().flatten().collect();
    let path = find(&arguments.model, &directories, output)?;
    let (model, adapters) = load(&path, &arguments.model, &directories, None, output)?;
    let numbers = numbers(&answerers);
    let requests: Vec<GenerateRequest> = (numbers.iter())
        .map(|&adapter| GenerateRequest {
            adapter,
            ..request.clone()
        })
        .collect();
    let mut printed = match output.format() {
        Format::Text => Some(Printed::new(output, headings(&answerers))),
        Format::Json => None,
    };
    let place = |adapter: Option<usize>| numbers.iter().position(|of| *of == adapter).unwrap_or(0);
    let observe = &mut |event: GenerateEvent<'_>| match (&mut printed, event) {
        (Some(printed), GenerateEvent::Text { adapter, text, .. }) => printed.push(place(adapter), text),
        (Some(printed), GenerateEvent::Completed(completion)) => match completion.finish {
            Finish::Refused { .. } => ControlFlow::Break(()),
            Finish::Stop | Finish::Length => printed.end(place(completion.adapter)),
        },
        (None, _) => ControlFlow::Continue(()),
    };
    // so that all answers grow at once: the pages are those that they need, however many that are
    let batch = BatchOptions {
        cache_bytes_max: usize::MAX,
        ..BatchOptions::default()
    };
    let completions = llamaduo_engine::generate(&model, &adapters, &requests, &batch, observe)?;
    if let Some(failure) = printed.as_mut().and_then(Printed::failure) {
        return match failure.kind() {
            // Who read it has had enough.
            io::ErrorKind::BrokenPipe => Ok(Exit::Ok),
            _ => Err(failure.into()),
        };
    }
    let mut answers = Vec::new();
    for (completion, answerer) in completions.into_iter().zip(&answerers) {
        let generated = generated(&model, completion)?;
        let adapter = answerer.map(|directory| directory.display().to_string());
        answers.push(ByAdapter { adapter, generated });
    }
    if answers.is_empty() {
        return Err(Error::Stopped {
            what: "generation".to_owned(),
        });
    }
    if output.format() == Format::Json {
        match &answers[..] {
            [only] => output.result(&only.generated, String::new)?,
            _ => output.result(&SideBySide { answers: &answers }, String::new)?,
        }
    }
    tell_cuts(&answers, arguments.max_tokens, output);
    Ok(Exit::Ok)
}

/// Who answers: a directory of an adapter, or the base alone. Fails where one is named twice.
fn answerers(named: &[AdapterChoice]) -> Result<Vec<Option<&Path>>> {
    if named.is_empty() {
        return Ok(vec![None]);
    }
    let mut seen: Vec<(AdapterChoice, &AdapterChoice)> = Vec::new();
    for name in named {
        let place = place_of(name);
        if let Some((_, first)) = seen.iter().find(|(other, _)| *other == place) {
            let twice = match *first == name {
                true => "given twice".to_owned(),
                false => format!("the same as --adapter {first}"),
            };
            return Err(Error::Usage(format!(
                "--adapter {name} is {twice}; name each once"
            )));
        }
        seen.push((place, name));
    }
    Ok(named.iter().map(AdapterChoice::directory).collect())
}

/// The same of all spellings of a directory. One that is not there is refused later, by its name.
fn place_of(name: &AdapterChoice) -> AdapterChoice {
    match name
        .directory()
        .and_then(|directory| directory.canonicalize().ok())
    {
        Some(directory) => AdapterChoice::Directory(directory),
        None => name.clone(),
    }
}

/// The number of each among the adapters that are loaded.
fn numbers(answerers: &[Option<&Path>]) -> Vec<Option<usize>> {
    let mut n_loaded = 0;
    let number = |answerer: &Option<&Path>| {
        answerer.map(|_| {
            n_loaded += 1;
            n_loaded - 1
        })
    };
    answerers.iter().map(number).collect()
}

/// What stands over each of several answers.
fn headings(answerers: &[Option<&Path>]) -> Vec<String> {
    let heading = |answerer: &Option<&Path>| match answerer {
        Some(directory) => format!("--- {}", directory.display()),
        None => "--- the base alone".to_owned(),
    };
    match answerers {
        [_] => vec![String::new()],
        several => several.iter().map(heading).collect(),
    }
}

/// Fails where the prompt did not fit.
fn generated(model: &LocalModel, completion: Completion) -> Result<Generated> {
    if let Finish::Refused {
        prompt_tokens,
        max_tokens,
        context_len,
    } = completion.finish
    {
        return Err(too_long(prompt_tokens, max_tokens, context_len));
    }
    let told = |tokens: Vec<TokenLogprob>| told_tokens(model.tokenizer()?, &tokens);
    Ok(Generated {
        text: completion.text,
        tokens: completion.tokens,
        finish: completion.finish,
        logprobs: completion.logprobs.map(told).transpose()?,
    })
}

fn tell_cuts(answers: &[ByAdapter], max_tokens: u32, output: &Output) {
    for ByAdapter { adapter, generated } in answers {
        if generated.finish != Finish::Length {
            continue;
        }
        let whose = match (adapter, answers.len()) {
            (_, 1) => "the answer".to_owned(),
            (Some(directory), _) => format!("the answer of {directory}"),
            (None, _) => "the answer of the base".to_owned(),
        };
        output.line(&format!("note: {whose} was cut at --max-tokens {max_tokens}"));
    }
}

fn request(arguments: &Generate, format: Format) -> Result<GenerateRequest> {
    let messages = match (&arguments.prompt, &arguments.messages) {
        (Some(prompt), _) => vec![Message {
            role: Role::User,
            content: prompt.clone(),
        }],
        (None, Some(path)) => read_messages(path)?,
        (None, None) => {
            return Err(Error::Usage(
                "nothing is asked; give --prompt or --messages".to_owned(),
            ));
        }
    };
    if messages.iter().all(|message| message.content.trim().is_empty()) {
        let (option, text) = match arguments.prompt.is_some() {
            true => ("--prompt", "holds no text"),
            false => ("--messages", "names a conversation without any text"),
        };
        return Err(Error::Usage(format!(
            "{option} {text}; say there what the model is to answer"
        )));
    }
    Ok(GenerateRequest {
        id: 0,
        adapter: None,
        messages,
        n: 1,
        options: options(arguments, format)?,
    })
}

fn options(arguments: &Generate, format: Format) -> Result<GenerateOptions> {
    if arguments.logprobs.is_some() && format == Format::Text {
        return Err(Error::Usage(
            "--logprobs are only told to programs; give -o json too".to_owned(),
        ));
    }
    let sampling = match arguments.greedy {
        true => Sampling::GREEDY,
        false => Sampling {
            temperature: arguments.temperature,
            top_k: arguments.top_k.unwrap_or(0) as usize,
            top_p: arguments.top_p.unwrap_or(1.0),
            min_p: arguments.min_p.unwrap_or(0.0),
            ..Sampling::default()
        },
    };
    let options = GenerateOptions {
        max_tokens: arguments.max_tokens as usize,
        sampling: Sampling {
            repetition_penalty: arguments.repetition_penalty.unwrap_or(1.0),
            ..sampling
        },
        stop: arguments.stop.clone(),
        stop_tokens: Vec::new(),
        logprobs: arguments.logprobs.map(|n| n as usize),
        seed: arguments.seed,
    };
    // Before a model is loaded for nothing.
    options.validate().map_err(|error| match error {
        llamaduo_engine::Error::GenerateOptions {
            field,
            expected,
            found,
        } => Error::Usage(format!(
            "--{} is {found}; expected {expected}",
            field.replace('_', "-")
        )),
        error => Error::Engine(error),
    })?;
    Ok(options)
}

/// What to change so that prompt and answer fit into the context.
fn too_long(prompt_tokens: usize, max_tokens: usize, context_len: usize) -> Error {
    let remedy = match context_len.checked_sub(prompt_tokens) {
        None | Some(0) => "the prompt must be shortened".to_owned(),
        Some(room) => format!("give --max-tokens {room} or less, or shorten the prompt"),
    };
    Error::Usage(format!(
        "the prompt has {prompt_tokens} tokens and the answer may have {max_tokens}, but the model's context holds \
         {context_len} for both; {remedy}"
    ))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum MessagesFile {
    Bare(Vec<Message>),
    Row(Conversation),
}

fn read_messages(path: &Path) -> Result<Vec<Message>> {
    let invalid = |problem: String| {
        let expected = "expected [{\"role\": ..., \"content\": ...}], alone or under \"messages\"";
        Error::Usage(format!(
            "{} holds no conversation: {problem}; {expected}",
            path.display()
        ))
    };
    let file = serde_json::from_str(&read(path)?).map_err(|error| invalid(error.to_string()))?;
    let messages = match file {
        MessagesFile::Bare(messages) => messages,
        MessagesFile::Row(row) => row.messages,
    };
    if messages.is_empty() {
        Err(invalid("it is empty".to_owned()))
    } else {
        Ok(messages)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn what_does_not_fit_says_what_would() {
        let words = |prompt, max, context| too_long(prompt, max, context).to_string();
        assert!(words(100, 50, 120).contains("--max-tokens 20 or less"));
        for n_tokens in [120, 500] {
            let words = words(n_tokens, 50, 120);
            assert!(
                words.contains("must be shortened") && !words.contains("--max-tokens"),
                "{words}"
            );
        }
    }

    #[test]
    fn adapters_are_numbered_in_their_order_and_the_base_is_none() {
        let choice = |name: &str| AdapterChoice::from(PathBuf::from(name));
        let named: Vec<AdapterChoice> = ["a", "none", "b"].map(choice).to_vec();
        let answerers = answerers(&named).unwrap();
        assert_eq!(numbers(&answerers), [Some(0), None, Some(1)]);
        assert_eq!(headings(&answerers), ["--- a", "--- the base alone", "--- b"]);
        assert_eq!(headings(&answerers[..1]), [""]);
        assert_eq!(super::answerers(&[]).unwrap(), [None]);
        let twice = [named, vec![choice("none")]].concat();
        let said = super::answerers(&twice).unwrap_err().to_string();
        assert!(said.contains("--adapter none is given twice"), "{said}");
        let directory = tempfile::tempdir().unwrap();
        let given = |name: &str| AdapterChoice::Directory(directory.path().join(name));
        std::fs::create_dir(directory.path().join("a")).unwrap();
        let spelt = [given("a"), given("a/../a")];
        let said = super::answerers(&spelt).unwrap_err().to_string();
        assert!(said.contains("a/../a is the same as --adapter"), "{said}");
        assert!(super::answerers(&[given("a"), given("b")]).is_ok());
    }
}
