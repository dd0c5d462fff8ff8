//! `report`: what a run came to, from its directory or from a coordinator.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::remote::{connect, run_id};
use crate::args;
use crate::directory::RunDirectory;
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::output::Output;
use crate::table;

/// `report`: a directory when there is one of that name, else a run's id.
pub(super) async fn report(arguments: &args::Report, output: &Output) -> Result<Exit> {
    let path = Path::new(&arguments.run);
    let directory = if path.is_dir() {
        path.to_owned()
    } else {
        fetch(arguments, output).await?
    };
    let report = RunDirectory::existing(&directory).report()?.ok_or_else(|| {
        let directory = directory.display();
        Error::Usage(format!("{directory} holds no report.json yet; let its run end first, with `llamaduo run --out {directory}`"))
    })?;
    rewrite_page(&directory, &report)?;
    output.result(&report, || table::report_text(&report, &directory))?;
    Ok(Exit::Ok)
}

/// Downloads a run's files.
async fn fetch(arguments: &args::Report, output: &Output) -> Result<PathBuf> {
    let run = run_id(&arguments.run)?;
    let client = connect(&arguments.remote).await?;
    let details = client.run(&run).await?;
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
