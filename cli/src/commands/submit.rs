//! `submit`: a migration by a coordinator and workers elsewhere.

use llamaduo_proto::ids::RequestId;
use serde::Serialize;

use super::remote::connect;
use crate::args::{ConfigArguments, Submit};
use crate::client::Client;
use crate::config::{self, plan::Plan};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::model;
use crate::output::Output;

#[derive(Serialize)]
struct Submitted {
    run_id: String,
    request_id: String,
}

/// `submit`.
pub(super) async fn submit(arguments: &Submit, output: &Output) -> Result<Exit> {
    let plan = plan(&arguments.config, output)?;
    let reference = &plan.spec.local_model.reference;
    model::check_fit_if_here(reference, &plan.split.test, plan.spec.infer.tokens_max, output).await?;
    let request = match &arguments.request_id {
        Some(id) => RequestId::new(id).map_err(|error| Error::Usage(error.to_string()))?,
        None => new_request("submit")?,
    };
    let client: Client = connect(&arguments.remote).await?;
    client.upload(&plan.uploads).await?;
    let run = client.submit_run(request.clone(), plan.spec).await?;
    let submitted = Submitted {
        run_id: run.to_string(),
        request_id: request.to_string(),
    };
    output.result(&submitted, || run.to_string())?;
    output.line(&format!(
        "follow it with `llamaduo watch {run}`, fetch its report with `llamaduo report {run}`"
    ));
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
