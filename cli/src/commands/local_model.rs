//! `eval`, and what it shares with the other commands that open a model in this process: the engine without coordinator
//! and worker.
//!
//! Invariant: an adapter that is none is refused before the model is looked for.

pub(super) mod generate;
mod token_rows;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use llamaduo_data::import::ROW_FORM;
use llamaduo_engine::train::Conversation;
use llamaduo_engine::{Adapter, EvalLoss, LocalModel, Role, evaluate_observed, peft};
use llamaduo_worker::models::{Places, resolve};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::args::{AdapterChoice, Eval, ModelArguments};
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
    refuse_unanswered(&name, &lines, &rows)?;
    let (model, adapter) = open(arguments, output)?;
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
        over: OVER_CONVERSATIONS,
        held: Held::from(&arguments.model),
    };
    output.result(&measured, || loss_in_words(loss, measured.over, measured.held))?;
    Ok(Exit::Ok)
}

/// A conversation that nobody answers says nothing of how a model answers: it is a slip in the file.
fn refuse_unanswered(name: &str, lines: &[u64], rows: &[Conversation]) -> Result<()> {
    let is_unanswered =
        |row: &Conversation| row.messages.iter().all(|message| message.role != Role::Assistant);
    match lines.iter().zip(rows).find(|(_, row)| is_unanswered(row)) {
        Some((line, _)) => Err(Error::Usage(format!(
            "{name}, line {line}: the conversation has no message of the assistant, so there is no answer to measure; expected \
             {ROW_FORM}"
        ))),
        None => Ok(()),
    }
}

/// A loss, and of what.
#[derive(Serialize)]
struct Measured {
    #[serde(flatten)]
    loss: EvalLoss,
    /// Which tokens the mean is over.
    over: &'static str,
    #[serde(flatten)]
    held: Held,
}

/// Which tokens a loss is the mean of. Nothing predicts the first of a row.
const OVER_CONVERSATIONS: &str =
    "all but the first of each conversation, prompt and template as well as answer";
const OVER_ROWS: &str = "all but the first of each row";

fn loss_in_words(loss: EvalLoss, over: &str, held: Held) -> String {
    let tokens = counted(loss.tokens, "token", "tokens");
    format!(
        "loss {:.6} nats a token, mean over {tokens}: {over} ({held})",
        loss.loss
    )
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

/// The model and the adapter that is beside it.
fn open(arguments: &Eval, output: &Output) -> Result<(LocalModel, Option<Adapter>)> {
    let directory = arguments.adapter.as_ref().and_then(AdapterChoice::directory);
    let adapters = directory.as_slice();
    let path = find(&arguments.model, adapters, output)?;
    let (model, adapters) = load(&path, &arguments.model, adapters, None, output)?;
    Ok((model, adapters.into_iter().next()))
}

/// The model's files, fetched when they are not here. Fails first where a directory holds no adapter.
pub(super) fn find(
    arguments: &ModelArguments,
    adapters: &[impl AsRef<Path>],
    output: &Output,
) -> Result<PathBuf> {
    for directory in adapters {
        model::adapter_files(directory.as_ref())?;
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

/// The model and the adapters that are beside it.
pub(super) fn load(
    path: &Path,
    arguments: &ModelArguments,
    adapters: &[impl AsRef<Path>],
    threads: Option<usize>,
    output: &Output,
) -> Result<(LocalModel, Vec<Adapter>)> {
    output.line(&format!("loading {}", path.display()));
    let model = model::open(path, &model::load_options(arguments, threads))?;
    let adapters = adapters
        .iter()
        .map(|directory| peft::load(directory.as_ref(), model.config()));
    let adapters = adapters.collect::<llamaduo_engine::Result<_>>()?;
    Ok((model, adapters))
}

pub(super) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_without_an_answer_is_named_by_its_line() {
        let row = |roles: &[Role]| Conversation {
            messages: roles
                .iter()
                .map(|role| llamaduo_engine::Message {
                    role: *role,
                    content: "text".to_owned(),
                })
                .collect(),
        };
        let answered = row(&[Role::User, Role::Assistant]);
        let unanswered = row(&[Role::System, Role::User]);
        refuse_unanswered("rows.jsonl", &[1, 3], &[answered.clone(), answered.clone()]).unwrap();
        let refused = refuse_unanswered("rows.jsonl", &[1, 3], &[answered, unanswered]);
        let said = refused.unwrap_err().to_string();
        assert!(
            said.starts_with("rows.jsonl, line 3: ") && said.contains("no message of the assistant"),
            "{said}"
        );
    }

    #[test]
    fn templates_are_valid() {
        assert!(ProgressStyle::with_template(EVAL_TEMPLATE).is_ok());
    }
}
