//! `report`: what a run came to, from its directory or from a coordinator.
//!
//! Invariant: what it prints is what `report.json` holds; a page is made anew from that alone.

use std::path::{Path, PathBuf};

use llamaduo_proto::ids::RunId;
use serde_json::Value;

use super::remote::connect;
use crate::args;
use crate::directory::RunDirectory;
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::output::Output;
use crate::table;

/// `report`: a directory when there is one of that name, unless a coordinator's run is to be written to another; else a
/// run's id.
pub(super) async fn report(arguments: &args::Report, output: &Output) -> Result<Exit> {
    let path = Path::new(&arguments.run);
    let is_here = path.is_dir() && arguments.out.is_none();
    let directory = match is_here {
        true => path.to_owned(),
        false => fetch(arguments, output).await?,
    };
    let run = RunDirectory::existing(&directory);
    let Some(report) = run.report()? else {
        return Err(without_report(&run));
    };
    if is_here && !run.holds_run() && RunId::new(&arguments.run).is_ok() {
        output.line(&format!(
            "from the copy in {0}; give --out {0} to fetch the report anew",
            directory.display()
        ));
    }
    if run.holds_run() && !run.has_ended()? {
        output.line(&format!(
            "the run in {} goes on since this report was made; when it ends again there is a newer one",
            directory.display()
        ));
    }
    rewrite_page(&directory, &report)?;
    output.result(&report, || table::report_text(&report, &directory))?;
    Ok(Exit::Ok)
}

/// What to do about a directory that has no report.
fn without_report(run: &RunDirectory) -> Error {
    let directory = run.root().display();
    Error::Usage(match run.holds_run() {
        false => format!(
            "there is no run in {directory}; name the directory that `llamaduo run` or `llamaduo demo` wrote (its --out)"
        ),
        true => format!(
            "the run in {directory} has not ended yet, so there is no report; the command that began it goes on with it"
        ),
    })
}

/// Downloads a run's files.
async fn fetch(arguments: &args::Report, output: &Output) -> Result<PathBuf> {
    let name = &arguments.run;
    let is_file = Path::new(name).exists();
    let Ok(run) = RunId::new(name) else {
        let what = if is_file {
            "is no directory"
        } else {
            "does not exist"
        };
        return Err(Error::Usage(format!(
            "{name} {what}; name the directory that `llamaduo run` or `llamaduo demo` wrote (its --out), or the id of a \
             coordinator's run"
        )));
    };
    let client = connect(&arguments.remote).await.map_err(|error| match error {
        Error::Connect { url, .. } => Error::Usage(format!(
            "there is no directory {name} here, and no coordinator at {url} that might have a run of that id; name the \
             directory that `llamaduo run` wrote (its --out), or the coordinator with --coordinator"
        )),
        error => error,
    })?;
    let details = client.run(&run).await.map_err(|error| match error {
        Error::UnknownRun { run } if !Path::new(name).is_dir() => Error::Usage(format!(
            "there is no directory {name} here, and the coordinator has no run {run}; `llamaduo status` lists the runs that \
             it has"
        )),
        error => error,
    })?;
    if details.run.report.is_none() {
        return Err(Error::Usage(format!(
            "run {run} has no report yet; follow it with `llamaduo watch {run}`"
        )));
    }
    let root = arguments
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(run.as_str()));
    let directory = RunDirectory::existing(&root);
    directory.write_cycles(&client, &run, |_| true).await?;
    directory.write_results(&client, &details).await?;
    output.line(&format!("written to {}", root.display()));
    Ok(root)
}

/// Makes the page and the plots anew from `report.json`, which holds everything they show.
fn rewrite_page(directory: &Path, report: &Value) -> Result<()> {
    let path = directory.join("report.json");
    let report: llamaduo_data::report::Report =
        serde_json::from_value(report.clone()).map_err(|error| Error::Damaged {
            path,
            problem: error.to_string(),
        })?;
    let rendered = report.render()?;
    crate::directory::write_file(&directory.join("report.html"), rendered.html.as_bytes())?;
    for (name, text) in &rendered.files {
        crate::directory::write_file(&directory.join(name), text.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Format, Remote, TokenFile};

    /// Nothing listens on the discard port.
    async fn refused(run: &Path) -> String {
        let arguments = args::Report {
            run: run.display().to_string(),
            out: None,
            remote: Remote {
                coordinator: "http://127.0.0.1:9".to_owned(),
                token: TokenFile::default(),
            },
        };
        let error = report(&arguments, &Output::new(Format::Json)).await.unwrap_err();
        assert_eq!(error.exit(), Exit::Usage, "{error}");
        error.to_string()
    }

    #[tokio::test]
    async fn where_there_is_no_report_it_says_which_directory_has_one() {
        let root = tempfile::tempdir().unwrap();
        let empty = refused(root.path()).await;
        assert!(empty.contains("no run in"), "{empty}");
        let nowhere = refused(&root.path().join("nowhere")).await;
        assert!(nowhere.contains("nowhere does not exist"), "{nowhere}");
        let id = refused(Path::new("no-such-directory")).await;
        assert!(id.contains("no directory no-such-directory here"), "{id}");
        std::fs::create_dir(root.path().join(".llamaduo")).unwrap();
        std::fs::write(root.path().join(".llamaduo/run.json"), "{").unwrap();
        let unfinished = refused(root.path()).await;
        assert!(unfinished.contains("has not ended"), "{unfinished}");
    }
}
