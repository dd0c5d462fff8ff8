//! The local model in this process: found, opened, and asked whether the test prompts fit into it.
//!
//! Invariant: nothing here runs beside an event loop; the callers that have one move it off.

use std::fmt;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use llamaduo_data::Sample;
use llamaduo_engine::{
    BaseQuant, Compute, LoadOptions, LocalModel, Message, ModelFiles, Role, encode_chat, peft,
};
use llamaduo_proto::run;
use llamaduo_worker::models::{Fetching, Places, resolve};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::args::ModelArguments;
use crate::config::sections::{LocalSection, Quant};
use crate::error::{Error, Result};
use crate::output::Output;

/// The files of a model reference; fetched, with a bar, when they are not here.
pub(crate) async fn find(reference: &str, stopped: &CancellationToken, output: &Output) -> Result<PathBuf> {
    let bar = output.bars().map(|bars| {
        let style = ProgressStyle::with_template("{msg} {bar:24} {bytes}/{total_bytes}");
        let bar = bars.add(ProgressBar::no_length());
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar
    });
    let told = std::sync::Mutex::new(String::new());
    let tell = |fetching: Fetching| match &bar {
        Some(bar) => {
            if let Some(total) = fetching.n_bytes_total {
                bar.set_length(total);
            }
            bar.set_position(fetching.n_bytes);
            bar.set_message(fetching.what);
        }
        None => {
            // Once for each thing: a log needs no byte counts.
            let mut told = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if *told != fetching.what {
                output.line(&fetching.what);
                told.clone_from(&fetching.what);
            }
        }
    };
    let path = resolve(reference, &Places::from_env(), stopped, &tell).await;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(path?)
}

/// The engine's word for how a base is held.
pub(crate) fn base_quant(quant: Quant) -> BaseQuant {
    match quant {
        Quant::Nf4 => BaseQuant::Nf4 { double: true },
        Quant::Nf4Single => BaseQuant::Nf4 { double: false },
        Quant::None => BaseQuant::None,
    }
}

/// What a command line says of how a model is loaded.
pub(crate) fn load_options(arguments: &ModelArguments, threads: Option<usize>) -> LoadOptions {
    LoadOptions {
        quant: base_quant(arguments.quant),
        threads,
        compute: arguments.compute,
        device: arguments.device,
    }
}

/// As the user spells it.
pub(crate) fn quant_name(quant: Quant) -> &'static str {
    match quant {
        Quant::Nf4 => "nf4",
        Quant::Nf4Single => "nf4_single",
        Quant::None => "none",
    }
}

/// How a local model is held and computed with, in the words of the config and the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Held {
    pub(crate) quant: Quant,
    pub(crate) compute: run::Compute,
}

impl From<&ModelArguments> for Held {
    fn from(arguments: &ModelArguments) -> Self {
        Self {
            quant: arguments.quant,
            compute: match arguments.compute {
                Compute::F32 => run::Compute::F32,
                Compute::Bf16 => run::Compute::Bf16,
                Compute::Int16 => run::Compute::Int16,
            },
        }
    }
}

impl From<&LocalSection> for Held {
    fn from(section: &LocalSection) -> Self {
        Self {
            quant: section.quant,
            compute: section.compute,
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quant = quant_name(self.quant);
        let compute = match self.compute {
            run::Compute::F32 => "f32",
            run::Compute::Bf16 => "bf16",
            run::Compute::Int16 => "int16",
        };
        write!(f, "quant {quant}, compute {compute}")
    }
}

/// Loads a model for use in this process.
pub(crate) fn open(path: &Path, options: &LoadOptions) -> Result<LocalModel> {
    Ok(LocalModel::open(ModelFiles::open(path)?, options)?)
}

/// Finds the model, fetching it if it must, and looks whether it is one: before anything else is begun.
pub(crate) async fn check_here(reference: &str, output: &Output) -> Result<()> {
    let path = find(reference, &CancellationToken::new(), output).await?;
    let check = tokio::task::spawn_blocking(move || ModelFiles::open(&path).map(|_| ()));
    let checked = check.await.map_err(|error| Error::Stopped {
        what: error.to_string(),
    })?;
    Ok(checked?)
}

/// The files of the adapter in `directory`, by name.
pub(crate) fn adapter_files(directory: &Path) -> Result<[&'static str; 2]> {
    let names = [peft::CONFIG_FILE, peft::TENSORS_FILE];
    match names.iter().find(|name| !directory.join(name).is_file()) {
        Some(missing) => Err(Error::Usage(format!(
            "{} holds no adapter: there is no {missing} in it; name a directory as `llamaduo train`, `llamaduo run` \
             (DIR/adapter) or PEFT writes it",
            directory.display()
        ))),
        None => Ok(names),
    }
}

/// Whether there is an adapter in `directory`, or a part of one.
pub(crate) fn holds_adapter(directory: &Path) -> bool {
    let names = [peft::CONFIG_FILE, peft::TENSORS_FILE];
    names.iter().any(|name| directory.join(name).exists())
}

/// Finds the model, fetching it if it must, and refuses a test prompt that does not fit into it.
pub(crate) async fn check_fit(
    reference: &str,
    test: &[Sample],
    max_tokens: u32,
    output: &Output,
) -> Result<()> {
    let path = find(reference, &CancellationToken::new(), output).await?;
    let test = test.to_vec();
    let check = tokio::task::spawn_blocking(move || check_prompts(&path, &test, max_tokens));
    check.await.map_err(|error| Error::Stopped {
        what: error.to_string(),
    })?
}

/// The same where workers elsewhere will use the model: nothing is fetched for the check alone.
pub(crate) async fn check_fit_if_here(
    reference: &str,
    test: &[Sample],
    max_tokens: u32,
    output: &Output,
) -> Result<()> {
    if Path::new(reference).exists() {
        return check_fit(reference, test, max_tokens, output).await;
    }
    output.line(&format!(
        "note: {reference} is no path on this machine, so it is left to the workers to find out whether every test prompt \
         fits into its context"
    ));
    Ok(())
}

/// Refuses a test prompt that leaves no room for `max_tokens` in the model's context, before anything is spent on it.
pub(crate) fn check_prompts(path: &Path, test: &[Sample], max_tokens: u32) -> Result<()> {
    let files = ModelFiles::open(path)?;
    let (tokenizer, template) = (files.tokenizer()?, files.chat_template()?);
    let context = files.config.context_len;
    for (index, sample) in test.iter().enumerate() {
        let prompt: Vec<Message> = sample.prompt().iter().map(message).collect();
        let n_tokens = encode_chat(tokenizer, template, &prompt, true)?.len();
        if n_tokens + max_tokens as usize > context {
            let line = match sample.provenance() {
                llamaduo_data::Provenance::Coverage { line } => {
                    format!("line {line} of the coverage dataset")
                }
                llamaduo_data::Provenance::Synthetic { .. } => format!("row {} of the test split", index + 1),
            };
            return Err(Error::Usage(format!(
                "the prompt on {line} has {n_tokens} tokens, which with infer.max_tokens = {max_tokens} is more than \
                 the {context} of the model's context; shorten the prompt or lower infer.max_tokens"
            )));
        }
    }
    Ok(())
}

fn message(message: &llamaduo_data::Message) -> Message {
    let role = match message.role {
        llamaduo_data::Role::System => Role::System,
        llamaduo_data::Role::User => Role::User,
        llamaduo_data::Role::Assistant => Role::Assistant,
    };
    Message {
        role,
        content: message.content.clone(),
    }
}
