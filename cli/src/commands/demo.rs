//! `demo`: the whole loop on a real task with a real model, and a stand-in for the service LLM.
//!
//! Invariant: nothing but the service LLM is a stand-in, and it is reached as any other service would be.

mod settings;

use std::path::Path;

use llamaduo_worker::stand_in::{self, tickets};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::run::{Began, migrate};
use crate::args::Demo;
use crate::config::plan::plan;
use crate::directory::{RunDirectory, read_json, write_file, write_json};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::output::Output;

/// What a later start needs to go on with the same demo.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct DemoRecord {
    seed: u64,
    /// The stand-in's port, which the run's specification holds.
    port: u16,
}

/// `demo`.
pub(super) async fn demo(arguments: &Demo, output: &Output) -> Result<Exit> {
    let directory = RunDirectory::create(&arguments.out)?;
    let (record, listener) = stand_in_listener(&directory, arguments.seed).await?;
    let coverage = arguments.out.join("data/coverage.jsonl");
    write_file(&coverage, tickets::coverage_dataset(record.seed).as_bytes())?;
    output.line(&introduction(record, &arguments.out));
    let plan = plan(&settings::config(record.seed, record.port), &arguments.out)?;
    plan.notes.iter().for_each(|note| output.line(note));
    let stop = CancellationToken::new();
    let mut service = JoinSet::new();
    service.spawn(stand_in::serve(
        stand_in::Options::new(record.seed),
        listener,
        stop.clone(),
    ));
    let exit = tokio::select! {
        exit = migrate(plan, Began::ByDemo, &arguments.out, arguments.device, output) => exit,
        ended = service.join_next() => Err(match ended {
            Some(Ok(Err(error))) => Error::from(error),
            _ => Error::Stopped { what: "the stand-in service".to_owned() },
        }),
    };
    stop.cancel();
    service.shutdown().await;
    exit
}

/// The stand-in's address: chosen once, since a run that is gone on with calls it where it was.
async fn stand_in_listener(directory: &RunDirectory, seed: u64) -> Result<(DemoRecord, TcpListener)> {
    let path = directory.state().join("demo.json");
    let stored: Option<DemoRecord> = read_json(&path)?;
    if let Some(record) = stored.filter(|record| record.seed != seed) {
        let out = directory.root().display();
        return Err(Error::Usage(format!(
            "{out} holds a demo with seed {}; name another directory with --out, or give --seed {}",
            record.seed, record.seed
        )));
    }
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], stored.map_or(0, |record| record.port)));
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| Error::Listen { address, source })?;
    let record = DemoRecord {
        seed,
        port: listener.local_addr()?.port(),
    };
    write_json(&path, &record)?;
    Ok((record, listener))
}

fn introduction(record: DemoRecord, out: &Path) -> String {
    format!(
        "This migrates support-ticket triage to {} with seed {}.\n\
         The service LLM is a stand-in on this machine (http://127.0.0.1:{}/v1); everything else is as in a real run.\n\
         Everything is written to {}; the same command goes on after an interruption.",
        settings::LOCAL_MODEL,
        record.seed,
        record.port,
        out.display()
    )
}
