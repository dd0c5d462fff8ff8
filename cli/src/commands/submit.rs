//! `submit`: a migration by a coordinator and workers elsewhere.
//!
//! Invariant: a run is never changed without being told to, and never said to be as it is not.

use llamaduo_proto::ids::{RequestId, RunId};
use llamaduo_proto::run::RunSpec;
use serde::Serialize;

use super::reach;
use super::remote::{connect, run_id};
use super::run::resume::{self, GoneOn};
use crate::args::{ConfigArguments, Submit};
use crate::client::Client;
use crate::config::{self, changes, plan::Plan};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::model;
use crate::output::Output;
use crate::progress::words::counted;

#[derive(Serialize)]
struct Submitted {
    run_id: String,
    request_id: String,
}

/// `submit`.
pub(super) async fn submit(arguments: &Submit, output: &Output) -> Result<Exit> {
    if let Some(run) = &arguments.resume {
        let run = run_id(run)?;
        let client = connect(&arguments.remote).await?;
        return go_on(&client, &run, &arguments.config, output).await;
    }
    let plan = fitting_plan(&arguments.config, output).await?;
    let request = match &arguments.request_id {
        Some(id) => RequestId::new(id).map_err(|error| Error::Usage(error.to_string()))?,
        None => new_request("submit")?,
    };
    let client: Client = connect(&arguments.remote).await?;
    reach::from_here(&plan.spec, output).await;
    client.upload(&plan.uploads).await?;
    let (run, is_new) = client.submit_run(request.clone(), plan.spec.clone()).await?;
    if !is_new {
        refuse_other_limits(&client, &run, &request, &plan).await?;
    }
    let submitted = Submitted {
        run_id: run.to_string(),
        request_id: request.to_string(),
    };
    output.result(&submitted, || run.to_string())?;
    if !is_new {
        output.line(&format!("request id {request} had made this run before"));
    }
    output.line(&follow_words(&run));
    Ok(Exit::Ok)
}

/// The plan, which tells the coordinator what the command line changes in the config.
async fn fitting_plan(arguments: &ConfigArguments, output: &Output) -> Result<Plan> {
    let mut plan = plan(arguments, output)?;
    plan.spec.overrides.clone_from(&arguments.set);
    let reference = &plan.spec.local_model.reference;
    model::check_fit_if_here(reference, &plan.split.test, plan.spec.infer.tokens_max, output).await?;
    Ok(plan)
}

fn follow_words(run: &RunId) -> String {
    format!("follow it with `llamaduo watch {run}`, fetch its report with `llamaduo report {run}`")
}

/// A request id that is given again changes nothing, so it must not look as if it did.
async fn refuse_other_limits(client: &Client, run: &RunId, request: &RequestId, plan: &Plan) -> Result<()> {
    let Some(stored) = client.run(run).await?.spec else {
        return Ok(());
    };
    let mut wanted = plan.spec.clone();
    wanted.overrides.clone_from(&stored.overrides);
    if stored == wanted {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "request id {request} made run {run} under other limits or with its service LLMs reached in another way; go on \
         with it under those of now by `submit --resume {run}`, or choose another request id for a new run:\n  {}",
        changes_between(&stored, &wanted, plan)
    )))
}

fn changes_between(stored: &RunSpec, wanted: &RunSpec, plan: &Plan) -> String {
    let (stored, wanted) = (changes::plain(stored), changes::plain(wanted));
    changes::describe(None, &plan.settings, &stored, &wanted).join("\n  ")
}

#[derive(Serialize)]
struct Resumed {
    run_id: String,
    /// Whether it was not running as it is to run already.
    resumed: bool,
}

/// `submit --resume`: with the `--set` options that the run was last given.
async fn go_on(client: &Client, run: &RunId, arguments: &ConfigArguments, output: &Output) -> Result<Exit> {
    let Some(stored) = client.run(run).await?.spec else {
        return Err(Error::Usage(format!(
            "{run} is a single task; give the command that made it again, which goes on with it"
        )));
    };
    let mut arguments = arguments.clone();
    arguments.set = resume::with_remembered(&stored.overrides, &arguments.set, output);
    let plan = fitting_plan(&arguments, output).await?;
    let wanted = resume::comparable(&stored, &plan.spec);
    if stored != wanted {
        return Err(Error::Usage(format!(
            "run {run} has other settings; undo the change, or submit a new run without --resume:\n  {}",
            changes_between(&stored, &wanted, &plan)
        )));
    }
    let otherwise = format!("end the run with `llamaduo cancel {run}` when it has done enough");
    resume::refuse_fewer_cycles(
        &format!("run {run}"),
        stored.cycles_max,
        plan.spec.cycles_max,
        &otherwise,
    )?;
    reach::from_here(&plan.spec, output).await;
    client.upload(&plan.uploads).await?;
    let gone_on = resume::go_on(client, run, &plan.spec).await?;
    let said = match gone_on {
        GoneOn::Resumed => format!("{run} goes on"),
        GoneOn::RunsAlready => format!("{run} is running already, with the same settings"),
        GoneOn::Passed => {
            return Err(Error::Usage(format!(
                "{run} has passed; there is nothing to go on with"
            )));
        }
        GoneOn::CyclesUsed => {
            let used = counted(stored.cycles_max.into(), "cycle", "cycles");
            return Err(Error::Usage(format!(
                "{run} did not pass its gate in {used}; raise run.cycles_max to go on with it"
            )));
        }
        GoneOn::NothingNew => {
            return Err(Error::Usage(format!(
                "{run} did not pass its gate, and {}; submit a new run with other settings of [synthesis]",
                resume::NOTHING_NEW
            )));
        }
    };
    let resumed = Resumed {
        run_id: run.to_string(),
        resumed: gone_on == GoneOn::Resumed,
    };
    output.result(&resumed, || run.to_string())?;
    output.line(&format!("{said}; {}", follow_words(run)));
    Ok(Exit::Ok)
}

/// Reads the config and makes its plan, telling what the user should know.
pub(super) fn plan(arguments: &ConfigArguments, output: &Output) -> Result<Plan> {
    let config = config::load(&arguments.config, &arguments.set)?;
    let plan = config::plan::plan(&config, config::directory_of(&arguments.config))?;
    plan.notes.iter().for_each(|note| output.line(note));
    Ok(plan)
}

/// A request id that no other submission has: each is a wish of its own.
pub(super) fn new_request(prefix: &str) -> Result<RequestId> {
    let now = jiff::Timestamp::now().as_nanosecond();
    let id = format!("{prefix}-{now:x}-{}", std::process::id());
    RequestId::new(&id).map_err(|error| Error::Usage(error.to_string()))
}
