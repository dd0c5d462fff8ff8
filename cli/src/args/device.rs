//! The general option `--device`, given to the commands that use it.
//!
//! Invariant: a command whose work a device changes gets it and has it in its help; `export`, which compares files, runs its
//! model on the CPU whatever is named.

use llamaduo_kernels::Device;

use super::{Bench, Command};

/// The commands whose work no device changes: those for which [`Command::set_device`] does nothing, and stages that only call
/// a service LLM.
pub(super) const WITHOUT_DEVICE: [&str; 12] = [
    "init",
    "coordinator",
    "submit",
    "status",
    "watch",
    "cancel",
    "judge",
    "synth",
    "export",
    "report",
    "doctor",
    "stand-in-service",
];

/// Leaves `--device` out of the help of commands whose work it does not change. They take it all the same, since it is a
/// general option.
pub(super) fn hidden_where_useless(mut definition: clap::Command) -> clap::Command {
    let device = definition
        .get_arguments()
        .find(|arg| arg.get_id() == "device")
        .cloned();
    if let Some(device) = device {
        for name in WITHOUT_DEVICE {
            let hidden = device.clone().hide(true);
            definition = definition.mut_subcommand(name, |command| command.arg(hidden));
        }
    }
    definition
}

impl Command {
    /// Sets what its local models run on.
    pub(crate) fn set_device(&mut self, device: Device) {
        let place = match self {
            Self::Demo(arguments) => &mut arguments.device,
            Self::Run(arguments) => &mut arguments.device,
            Self::Worker(arguments) => &mut arguments.device,
            Self::Train(arguments) => &mut arguments.stage.device,
            Self::Infer(arguments) => &mut arguments.stage.device,
            Self::Judge(arguments) => &mut arguments.stage.device,
            Self::Synth(arguments) => &mut arguments.stage.device,
            Self::Eval(arguments) => &mut arguments.model.device,
            Self::Generate(arguments) => &mut arguments.model.device,
            Self::Bench(Bench::Generate(arguments)) => &mut arguments.model.model.device,
            Self::Bench(Bench::Train(arguments)) => &mut arguments.model.model.device,
            Self::Bench(Bench::Kernels(arguments)) => &mut arguments.device,
            Self::Plan(arguments) => &mut arguments.device,
            Self::Doctor
            | Self::Init(_)
            | Self::Coordinator(_)
            | Self::Submit(_)
            | Self::Status(_)
            | Self::Watch(_)
            | Self::Cancel(_)
            | Self::Export(_)
            | Self::Report(_)
            | Self::StandInService(_) => return,
        };
        *place = device;
    }
}
