//! The `llamaduo` binary: parses the command line, starts roles in one process or many, shows progress, prints results.
//!
//! Invariant: no decision about a run is made here; stdout is data, stderr is progress, and no input makes it panic.

mod args;
mod client;
mod cluster;
mod commands;
mod config;
mod directory;
mod error;
mod exit;
mod interrupt;
mod model;
mod output;
mod progress;
mod table;

use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use exit::Exit;
use output::Output;

fn main() -> ExitCode {
    let arguments = match args::parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no failure; a stream that is gone cannot be told so.
            error.print().unwrap_or_default();
            if let Some(tip) = args::tip(&error) {
                Output::new(args::Format::Text).line(&tip);
            }
            return ExitCode::from(if error.use_stderr() { Exit::Usage.code() } else { 0 });
        }
    };
    let output = Output::new(arguments.output);
    start_log(arguments.verbose, arguments.command.is_role(), &output);
    // Nothing else installs a provider, so the only failure is that it is installed already.
    rustls::crypto::ring::default_provider()
        .install_default()
        .unwrap_or_default();
    let exit = match commands::run(arguments, &output) {
        Ok(exit) => exit,
        Err(error) => {
            output.error(&error);
            error.exit()
        }
    };
    ExitCode::from(exit.code())
}

/// Logs to stderr what `-v` or RUST_LOG ask for. By default a role alone tells each change of state; elsewhere the
/// run's events tell what its worker would warn of.
fn start_log(verbose: u8, is_role: bool, output: &Output) {
    let level = match verbose {
        0 if !is_role => "warn,llamaduo_worker=error",
        0 | 1 => "warn,llamaduo=info,llamaduo_coordinator=info,llamaduo_worker=info,llamaduo_engine=info",
        _ => "info,llamaduo=debug,llamaduo_coordinator=debug,llamaduo_worker=debug,llamaduo_engine=debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let writer = output.clone();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || writer.clone());
    log.with_ansi(output.colours()).init();
}
