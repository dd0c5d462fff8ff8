//! `status`, `watch` and `cancel`: what clients ask of a coordinator.

use std::ops::ControlFlow;

use llamaduo_proto::ids::RunId;
use llamaduo_proto::view::{RunDetails, RunView};

use crate::args::{Cancel, Format, Remote, Status, TokenFile, Watch};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::interrupt::Interrupts;
use crate::output::Output;
use crate::progress::{Progress, words};

/// Connects as the command line says.
pub(super) async fn connect(remote: &Remote) -> Result<Client> {
    Client::connect(&remote.coordinator, token(&remote.token)?.as_deref()).await
}

/// The bearer token, when there is one.
pub(super) fn token(file: &TokenFile) -> Result<Option<String>> {
    let Some(path) = &file.token_file else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.clone(),
        source,
    })?;
    let token = text.trim();
    if token.is_empty() {
        return Err(Error::Usage(format!(
            "the token file {} is empty; write the coordinator's token into it",
            path.display()
        )));
    }
    Ok(Some(token.to_owned()))
}

/// A run's id as the user gave it.
pub(super) fn run_id(text: &str) -> Result<RunId> {
    RunId::new(text).map_err(|error| Error::Usage(error.to_string()))
}

/// `status`.
pub(super) async fn status(arguments: &Status, output: &Output) -> Result<Exit> {
    let client = connect(&arguments.remote).await?;
    match &arguments.run {
        None => {
            let runs = client.list_runs().await?;
            output.result(&runs, || runs_table(&runs))?;
            Ok(Exit::Ok)
        }
        Some(run) => {
            let details = client.run(&run_id(run)?).await?;
            output.result(&details, || details_text(&details))?;
            Ok(Exit::Ok)
        }
    }
}

fn runs_table(runs: &[RunView]) -> String {
    if runs.is_empty() {
        return "no runs; submit one with `llamaduo submit`".to_owned();
    }
    let width = runs
        .iter()
        .map(|run| run.run.as_str().len())
        .max()
        .unwrap_or_default();
    let line = |run: &RunView| {
        let id = run.run.as_str();
        format!(
            "{id:width$}  {:16}  cycle {:2}  {}",
            words::status(run.status),
            run.cycle.0,
            run.name
        )
    };
    runs.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn details_text(details: &RunDetails) -> String {
    let run = &details.run;
    let mut lines = vec![format!(
        "{} \"{}\": {}, cycle {}",
        run.run,
        run.name,
        words::status(run.status),
        run.cycle.0
    )];
    lines.extend(run.reason.clone());
    for count in &run.stages {
        lines.push(format!(
            "  {:10} {}/{} tasks",
            words::stage(count.stage),
            count.n_done,
            count.n_total
        ));
    }
    for scored in &details.scores {
        lines.push(format!(
            "  {}: {}",
            words::subject_name(scored.subject),
            words::scores(&scored.scores)
        ));
    }
    for gate in &details.gates {
        lines.push(format!(
            "  gate after cycle {}: {}",
            gate.cycle.0, gate.decision.reason
        ));
    }
    lines.push(format!("  {}", words::cost(&run.cost)));
    lines.join("\n")
}

/// `watch`: events are data here, so they go to stdout.
pub(super) async fn watch(arguments: &Watch, output: &Output) -> Result<Exit> {
    let client = connect(&arguments.remote).await?;
    let run = run_id(&arguments.run)?;
    let mut interrupts = Interrupts::new()?;
    let follow = client.follow(&run, arguments.from, async |event| {
        if event.seq != 0 {
            match output.format() {
                Format::Json => output.result(&event, String::new)?,
                Format::Text => {
                    if let Some(sentence) = words::sentence(&event.kind) {
                        output.result(&(), || sentence)?;
                    }
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    });
    tokio::select! {
        followed = follow => followed?,
        () = interrupts.next() => return Err(Error::Interrupted),
    }
    Ok(Exit::of_run(client.run(&run).await?.run.status))
}

/// `cancel`.
pub(super) async fn cancel(arguments: &Cancel, output: &Output) -> Result<Exit> {
    let client = connect(&arguments.remote).await?;
    let run = client.cancel(&run_id(&arguments.run)?, &arguments.reason).await?;
    output.result(&run, || format!("{} is {}", run.run, words::status(run.status)))?;
    Ok(Exit::Ok)
}

/// Follows a run on stderr until it ends.
pub(super) async fn show_until_end(client: &Client, run: &RunId, output: &Output) -> Result<RunDetails> {
    let mut progress = Progress::new(output, &client.run(run).await?.run.name);
    let observe = async |event| {
        progress.event(&event);
        Ok(ControlFlow::Continue(()))
    };
    client.follow(run, 1, observe).await?;
    client.run(run).await
}
