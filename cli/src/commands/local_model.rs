//! `eval` and `generate`: the engine without coordinator and worker.

mod token_rows;

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use llamaduo_data::import::ROW_FORM;
use llamaduo_engine::train::Conversation;
use llamaduo_engine::{
    Adapter, BatchOptions, Completion, EvalLoss, Finish, GenerateEvent, GenerateOptions, GenerateRequest,
    Likelihood, LocalModel, Message, Role, Sampling, TokenLogprob, Tokenizer, evaluate_observed, peft,
};
use llamaduo_worker::models::{Places, resolve};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::args::{Eval, Format, Generate, ModelArguments};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::model::{self, Held};
use crate::output::Output;
use crate::progress::words::counted;

/// Between two lines about how far `eval` is, where there is no bar.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// `eval`.
pub(super) fn eval(arguments: &Eval, output: &Output) -> Result<Exit> {
    match (&arguments.data, &arguments.ids) {
        (Some(path), _) => eval_conversations(path, arguments, output),
        (None, Some(path)) => token_rows::eval(path, arguments, output),
        (None, None) => Err(Error::Usage(
            "nothing is to be measured; give --data or --ids".to_owned(),
        )),
    }
}

fn eval_conversations(path: &Path, arguments: &Eval, output: &Output) -> Result<Exit> {
    let name = path.display().to_string();
    let (lines, rows): (Vec<u64>, Vec<Conversation>) =
        llamaduo_data::jsonl::read_lines(&name, &read(path)?, ROW_FORM)?
            .into_iter()
            .unzip();
    if rows.is_empty() {
        return Err(Error::Usage(format!("{name} holds no rows; expected {ROW_FORM}")));
    }
    let (model, adapter) = open(&arguments.model, output)?;
    let mut told = Told::new("eval", output);
    let loss = evaluate_observed(&model, adapter.as_ref(), &rows, &mut |n_done, n| {
        told.tell(n_done, n)
    });
    told.end();
    let loss = loss.map_err(|error| match error {
        llamaduo_engine::Error::RowTooLong {
            row,
            n_tokens,
            context_len,
        } => Error::Usage(format!(
            "{name}, line {}: the conversation has {n_tokens} tokens, more than the {context_len} of the model's \
             context; shorten it or leave it out",
            lines.get(row).copied().unwrap_or_default()
        )),
        error => Error::Engine(error),
    })?;
    let measured = Measured {
        loss,
        held: Held::from(&arguments.model),
    };
    output.result(&measured, || loss_in_words(loss, measured.held))?;
    Ok(Exit::Ok)
}

/// A loss, and of what.
#[derive(Serialize)]
struct Measured {
    #[serde(flatten)]
    loss: EvalLoss,
    #[serde(flatten)]
    held: Held,
}

fn loss_in_words(loss: EvalLoss, held: Held) -> String {
    let tokens = counted(loss.tokens, "token", "tokens");
    format!("loss {:.6} nats over {tokens} ({held})", loss.loss)
}

/// How far a measurement is: a bar on a terminal, a line now and then elsewhere.
struct Told<'a> {
    what: &'static str,
    output: &'a Output,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl<'a> Told<'a> {
    fn new(what: &'static str, output: &'a Output) -> Self {
        let bar = output.bars().map(|bars| {
            let style = ProgressStyle::with_template(EVAL_TEMPLATE);
            let bar = bars.add(ProgressBar::new(0));
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(what);
            bar
        });
        Self {
            what,
            output,
            bar,
            last_line: Instant::now(),
        }
    }

    fn tell(&mut self, n_done: u64, n_total: u64) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(n_total);
                bar.set_position(n_done);
            }
            None if self.last_line.elapsed() >= LINE_INTERVAL => {
                self.last_line = Instant::now();
                self.output
                    .line(&format!("  {}: {n_done}/{n_total} tokens", self.what));
            }
            None => {}
        }
    }

    fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

const EVAL_TEMPLATE: &str = "{msg} {bar:24} {pos}/{len} tokens · {elapsed}";

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

/// `generate`: as text, the answer is printed as it grows.
pub(super) fn generate(arguments: &Generate, output: &Output) -> Result<Exit> {
    let request = request(arguments, output.format())?;
    let (model, adapter) = open(&arguments.model, output)?;
    let mut printed = match output.format() {
        Format::Text => Some(Printed::new(output)),
        Format::Json => None,
    };
    let observe = &mut |event: GenerateEvent<'_>| match (&mut printed, event) {
        (Some(printed), GenerateEvent::Text { text, .. }) => printed.push(text),
        _ => ControlFlow::Continue(()),
    };
    let batch = BatchOptions::default();
    let completions = llamaduo_engine::generate(&model, adapter.as_ref(), &[request], &batch, observe)?;
    if let Some(failure) = printed.as_mut().and_then(|printed| printed.failure.take()) {
        return match failure.kind() {
            // Who read it has had enough.
            io::ErrorKind::BrokenPipe => Ok(Exit::Ok),
            _ => Err(failure.into()),
        };
    }
    let completion = completions.into_iter().next().ok_or_else(|| Error::Stopped {
        what: "generation".to_owned(),
    })?;
    let Completion {
        text,
        tokens,
        finish,
        logprobs,
        ..
    } = completion;
    if let Finish::Refused {
        prompt_tokens,
        max_tokens,
        context_len,
    } = finish
    {
        return Err(too_long(prompt_tokens, max_tokens, context_len));
    }
    let is_cut = finish == Finish::Length;
    match printed {
        Some(printed) => printed.end()?,
        None => {
            let told = |tokens: Vec<TokenLogprob>| told_tokens(model.tokenizer()?, &tokens);
            let generated = Generated {
                text,
                tokens,
                finish,
                logprobs: logprobs.map(told).transpose()?,
            };
            output.result(&generated, String::new)?;
        }
    }
    if is_cut {
        output.line(&format!(
            "note: the answer was cut at --max-tokens {}",
            arguments.max_tokens
        ));
    }
    Ok(Exit::Ok)
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
    Ok(GenerateRequest {
        id: 0,
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
    options
        .validate()
        .map_err(|error| Error::Usage(error.to_string()))?;
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

/// An answer on stdout while it grows, without the newlines at its end.
struct Printed<'a> {
    output: &'a Output,
    n_newlines: usize,
    failure: Option<io::Error>,
}

impl<'a> Printed<'a> {
    fn new(output: &'a Output) -> Self {
        Self {
            output,
            n_newlines: 0,
            failure: None,
        }
    }

    /// Prints more; breaks once nobody reads it.
    fn push(&mut self, text: &str) -> ControlFlow<()> {
        let words = text.trim_end_matches('\n');
        if !words.is_empty() {
            let newlines = "\n".repeat(std::mem::take(&mut self.n_newlines));
            if let Err(error) = self.output.part(&(newlines + words)) {
                self.failure = Some(error);
                return ControlFlow::Break(());
            }
        }
        self.n_newlines += text.len() - words.len();
        ControlFlow::Continue(())
    }

    fn end(self) -> Result<()> {
        Ok(self.output.part("\n")?)
    }
}

fn open(arguments: &ModelArguments, output: &Output) -> Result<(LocalModel, Option<Adapter>)> {
    let path = find(arguments, output)?;
    load(&path, arguments, None, output)
}

/// The model's files, fetched when they are not here.
pub(super) fn find(arguments: &ModelArguments, output: &Output) -> Result<PathBuf> {
    if let Some(directory) = &arguments.adapter {
        model::adapter_files(directory)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(model::find(&arguments.model, &CancellationToken::new(), output))
}

/// The files of a model as far as they are here: nothing is fetched but the small models that the product knows by name.
pub(super) fn find_here(reference: &str) -> Result<PathBuf> {
    let places = Places {
        offline: true,
        ..Places::from_env()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(resolve(reference, &places, &CancellationToken::new(), &|_| ()))?)
}

/// The model and the adapter that is beside it.
pub(super) fn load(
    path: &Path,
    arguments: &ModelArguments,
    threads: Option<usize>,
    output: &Output,
) -> Result<(LocalModel, Option<Adapter>)> {
    output.line(&format!("loading {}", path.display()));
    let model = model::open(path, &model::load_options(arguments, threads))?;
    let adapter = arguments
        .adapter
        .as_ref()
        .map(|directory| peft::load(directory, model.config()))
        .transpose()?;
    Ok((model, adapter))
}

pub(super) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
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
    fn templates_are_valid() {
        assert!(ProgressStyle::with_template(EVAL_TEMPLATE).is_ok());
    }
}
