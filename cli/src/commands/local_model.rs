//! `eval` and `generate`: the engine without coordinator and worker.

use std::ops::ControlFlow;
use std::path::Path;

use llamaduo_engine::train::Conversation;
use llamaduo_engine::{
    Adapter, BatchOptions, Finish, GenerateOptions, GenerateRequest, LocalModel, Message, Role, Sampling,
    evaluate, peft,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::args::{Eval, Generate, ModelArguments};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::model;
use crate::output::Output;

/// `eval`.
pub(super) fn eval(arguments: &Eval, output: &Output) -> Result<Exit> {
    let path = &arguments.data;
    let rows: Vec<Conversation> = llamaduo_data::jsonl::read(&path.display().to_string(), &read(path)?)?;
    let (model, adapter) = open(&arguments.model, output)?;
    let loss = evaluate(&model, adapter.as_ref(), &rows)?;
    output.result(&loss, || {
        format!("loss {:.6} nats over {} tokens", loss.loss, loss.tokens)
    })?;
    Ok(Exit::Ok)
}

#[derive(Serialize)]
struct Generated {
    text: String,
    tokens: usize,
}

/// `generate`.
pub(super) fn generate(arguments: &Generate, output: &Output) -> Result<Exit> {
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
    let sampling = match arguments.greedy {
        true => Sampling::GREEDY,
        false => Sampling {
            temperature: arguments.temperature,
            top_k: arguments.top_k.unwrap_or(0) as usize,
            top_p: arguments.top_p.unwrap_or(1.0),
            ..Sampling::default()
        },
    };
    let options = GenerateOptions {
        max_tokens: arguments.max_tokens as usize,
        sampling,
        stop: Vec::new(),
        seed: arguments.seed,
    };
    let request = GenerateRequest {
        id: 0,
        messages,
        n: 1,
        options,
    };
    let (model, adapter) = open(&arguments.model, output)?;
    let batch = BatchOptions::default();
    let go_on = &mut |_: llamaduo_engine::GenerateEvent<'_>| ControlFlow::Continue(());
    let completions = llamaduo_engine::generate(&model, adapter.as_ref(), &[request], &batch, go_on)?;
    let completion = completions.into_iter().next().ok_or_else(|| Error::Stopped {
        what: "generation".to_owned(),
    })?;
    if let refused @ Finish::Refused { .. } = &completion.finish {
        return Err(Error::Usage(refused.to_string()));
    }
    let generated = Generated {
        text: completion.text,
        tokens: completion.tokens,
    };
    output.result(&generated, || generated.text.clone())?;
    Ok(Exit::Ok)
}

fn open(arguments: &ModelArguments, output: &Output) -> Result<(LocalModel, Option<Adapter>)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let path = runtime.block_on(model::find(&arguments.model, &CancellationToken::new(), output))?;
    let model = model::open(&path, arguments.quant)?;
    let adapter = arguments
        .adapter
        .as_ref()
        .map(|directory| peft::load(directory, model.config()))
        .transpose()?;
    Ok((model, adapter))
}

fn read(path: &Path) -> Result<String> {
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
