//! What each command does, one module for each kind.
//!
//! Invariant: a command returns how the process ends; it never ends it.

mod bench;
mod demo;
mod doctor;
mod export;
mod init;
mod local_model;
mod plan;
mod reach;
mod remote;
mod report;
mod roles;
mod run;
mod stage;
mod status;
mod submit;

use std::time::Duration;

use crate::args::{Arguments, Command};
use crate::error::Result;
use crate::exit::Exit;
use crate::output::Output;

/// After a second Ctrl-C a compute thread may be deep in a training step; the process does not wait longer for it.
const THREADS_STOP_TIMEOUT: Duration = Duration::from_millis(200);

/// Runs the command. A device on which no model can run is refused before anything else.
pub(crate) fn run(mut arguments: Arguments, output: &Output) -> Result<Exit> {
    arguments.device.check()?;
    arguments.command.set_device(arguments.device);
    match arguments.command {
        Command::Doctor => doctor::doctor(output),
        Command::Init(arguments) => init::init(&arguments, output),
        Command::Eval(arguments) => local_model::eval(&arguments, output),
        Command::Generate(arguments) => local_model::generate::generate(&arguments, output),
        Command::Bench(arguments) => bench::bench(&arguments, output),
        Command::Plan(arguments) => plan::plan(&arguments, output),
        Command::Export(arguments) => export::export(&arguments, output),
        command => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let result = runtime.block_on(run_async(command, output));
            runtime.shutdown_timeout(THREADS_STOP_TIMEOUT);
            result
        }
    }
}

async fn run_async(command: Command, output: &Output) -> Result<Exit> {
    match command {
        Command::Demo(arguments) => demo::demo(&arguments, output).await,
        Command::Run(arguments) => run::run(&arguments, output).await,
        Command::Coordinator(arguments) => roles::coordinator(&arguments, output).await,
        Command::Worker(arguments) => roles::worker(&arguments, output).await,
        Command::StandInService(arguments) => roles::stand_in_service(&arguments, output).await,
        Command::Submit(arguments) => submit::submit(&arguments, output).await,
        Command::Status(arguments) => status::status(&arguments, output).await,
        Command::Watch(arguments) => remote::watch(&arguments, output).await,
        Command::Cancel(arguments) => remote::cancel(&arguments, output).await,
        Command::Train(arguments) => stage::train(&arguments, output).await,
        Command::Infer(arguments) => stage::infer(&arguments, output).await,
        Command::Judge(arguments) => stage::judge(&arguments, output).await,
        Command::Synth(arguments) => stage::synth(&arguments, output).await,
        Command::Report(arguments) => report::report(&arguments, output).await,
        // Synchronous commands are done before a runtime exists.
        Command::Doctor
        | Command::Init(_)
        | Command::Eval(_)
        | Command::Generate(_)
        | Command::Bench(_)
        | Command::Plan(_)
        | Command::Export(_) => Ok(Exit::Ok),
    }
}
