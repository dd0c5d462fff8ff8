//! Exit codes, and which end of a run has which.
//!
//! Invariant: scripts may rely on these numbers; they never change.

use llamaduo_proto::run::RunStatus;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Ok,
    /// Anything that has no code of its own.
    Failed,
    /// The command line or the config is wrong.
    Usage,
    /// All cycles were used and the gate was not passed.
    GateNotReached,
    /// The budget allows no further call.
    BudgetSpent,
    /// A service LLM refused for good.
    ServiceFailed,
    /// Ctrl-C.
    Interrupted,
}

impl Exit {
    /// The process's exit code.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::GateNotReached => 3,
            Self::BudgetSpent => 4,
            Self::ServiceFailed => 5,
            // 128 + SIGINT, as shells report it.
            Self::Interrupted => 130,
        }
    }

    /// For a run that stands so. A run that still works has not failed.
    pub(crate) fn of_run(status: RunStatus) -> Self {
        match status {
            RunStatus::Running | RunStatus::Passed => Self::Ok,
            RunStatus::GateNotReached => Self::GateNotReached,
            RunStatus::BudgetSpent => Self::BudgetSpent,
            RunStatus::ServiceFailed => Self::ServiceFailed,
            RunStatus::Cancelled | RunStatus::Failed => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_promised() {
        let codes = [
            (RunStatus::Running, 0),
            (RunStatus::Passed, 0),
            (RunStatus::GateNotReached, 3),
            (RunStatus::BudgetSpent, 4),
            (RunStatus::ServiceFailed, 5),
            (RunStatus::Cancelled, 1),
            (RunStatus::Failed, 1),
        ];
        for (status, code) in codes {
            assert_eq!(Exit::of_run(status).code(), code, "{status:?}");
        }
        assert_eq!(Exit::Usage.code(), 2);
        assert_eq!(Exit::Interrupted.code(), 130);
    }
}
