//! `watch` and `cancel`, and what every client of a coordinator needs.
//!
//! Invariant: what a command prints of a run is what the coordinator said, not what was asked of it.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use llamaduo_proto::ids::RunId;
use llamaduo_proto::run::RunStatus;
use llamaduo_proto::view::RunView;

use crate::args::{Cancel, Format, Remote, TokenFile, Watch};
use crate::client::Client;
use crate::directory::RunDirectory;
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::interrupt::Interrupts;
use crate::output::Output;
use crate::progress::{Overall, Progress, words};

/// Between two looks at a run as a whole.
const BAR_INTERVAL: Duration = Duration::from_secs(1);

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

/// A run's id as the user gave it, for a command that asks a coordinator. Looked at before a coordinator is looked for, so
/// that the directory of a run on this machine is told from an id.
pub(super) fn run_id(text: &str) -> Result<RunId> {
    let path = Path::new(text);
    if RunDirectory::existing(path).holds_run() {
        let (directory, events) = (path.display(), path.join("events.jsonl"));
        return Err(Error::Usage(format!(
            "{directory} is the directory of a run on this machine, and this command asks a coordinator for a run by its id; \
             `llamaduo report {directory}` prints what the run came to, {} tells what happened so far, the command \
             that began it goes on with it and shows how far it is, and Ctrl-C there stops it",
            events.display()
        )));
    }
    RunId::new(text).map_err(|error| {
        let problem = match path.exists() {
            true => format!("{text} is a path on this machine, not the id of a run"),
            false => error.to_string(),
        };
        Error::Usage(format!(
            "{problem}; `llamaduo status` lists a coordinator's runs with their ids"
        ))
    })
}

/// Keeps the bar of a run in step with it.
#[derive(Debug, Default)]
pub(super) struct Bar {
    looked: Option<Instant>,
}

impl Bar {
    /// Looks at the run as a whole, if a bar shows it and the last look was a while ago.
    /// A coordinator that does not answer is left to who follows the events.
    pub(super) async fn keep_up(&mut self, client: &Client, run: &RunId, progress: &Progress) {
        let is_due = self.looked.is_none_or(|looked| looked.elapsed() >= BAR_INTERVAL);
        if is_due && progress.has_bars() {
            self.looked = Some(Instant::now());
            if let Ok(details) = client.run(run).await {
                progress.overall(&Overall::of(&details.run));
            }
        }
    }
}

/// `watch`: events are data here, so they go to stdout; how far each task is goes to stderr.
pub(super) async fn watch(arguments: &Watch, output: &Output) -> Result<Exit> {
    let run = run_id(&arguments.run)?;
    let client = connect(&arguments.remote).await?;
    let mut interrupts = Interrupts::new()?;
    let mut progress = Progress::new(output, &client.run(&run).await?.run.name);
    let mut bar = Bar::default();
    let mut n_told = 0_u64;
    let follow = client.follow(&run, arguments.from, async |event| {
        if event.seq != 0 {
            n_told += 1;
            match output.format() {
                Format::Json => output.result(&event, String::new)?,
                Format::Text => {
                    if let Some(sentence) = words::sentence(&event.kind) {
                        output.result(&(), || sentence)?;
                    }
                }
            }
        }
        progress.show(&event.kind);
        bar.keep_up(&client, &run, &progress).await;
        Ok(ControlFlow::Continue(()))
    });
    tokio::select! {
        followed = follow => followed?,
        () = interrupts.next() => return Err(Error::Interrupted),
    }
    progress.end();
    if n_told == 0 {
        output.line(&format!(
            "{run} has ended and has no event number {} or later; without --from they are all shown",
            arguments.from
        ));
    }
    Ok(Exit::of_run(client.run(&run).await?.run.status))
}

/// `cancel`.
pub(super) async fn cancel(arguments: &Cancel, output: &Output) -> Result<Exit> {
    let run = run_id(&arguments.run)?;
    let client = connect(&arguments.remote).await?;
    let before = client.run(&run).await?;
    let after = client.cancel(&run, &arguments.reason).await?;
    output.result(&after, || cancelled(&before.run, &after))?;
    let is_cancelled = after.status == RunStatus::Cancelled || after.ending == Some(RunStatus::Cancelled);
    if is_cancelled && before.spec.is_some() {
        output.line(&format!(
            "what was trained and paid for is kept; `llamaduo submit --resume {run}` with its config goes on with it"
        ));
    }
    Ok(Exit::Ok)
}

/// What a cancellation came to: it takes a moment to stop what runs, and one that has ended stays as it is.
fn cancelled(before: &RunView, after: &RunView) -> String {
    let run = &after.run;
    if before.status != RunStatus::Running {
        return format!("{run} had ended already: {}", words::status(before.status));
    }
    match (after.status, after.ending) {
        (RunStatus::Cancelled, _) => format!("{run} was cancelled"),
        (RunStatus::Running, None | Some(RunStatus::Cancelled)) => {
            let already = match before.ending {
                Some(_) => "already ",
                None => "",
            };
            format!("{run} is {already}being cancelled: what runs is stopped, then its report is made")
        }
        (RunStatus::Running, Some(ending)) => {
            format!("{run} is ending already: {}", words::status(ending))
        }
        (status, _) => format!("{run} has just ended: {}", words::status(status)),
    }
}

#[cfg(test)]
mod tests;
