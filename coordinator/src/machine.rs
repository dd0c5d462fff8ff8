//! The heart: what a run is, what each event makes of it, and which worker gets which task.
//!
//! Invariant: nothing here awaits, reads a clock, allocates an id or does I/O. [`step`] and [`place`] are functions;
//! the actors commit what they return, and only then perform the actions.

mod advance;
mod amend;
mod event;
mod failure;
mod hash;
mod place;
mod run;
mod spec;
mod step;

#[cfg(test)]
pub(crate) mod tests;

pub use amend::is_same_run;
pub use event::{Action, Aggregate, Aggregated, Amendment, Event, Refusal};
pub use place::{Assignment, ReadyTask, WorkerView, place};
pub use run::{
    Claim, Curation, CycleRecord, EndedAttempt, Ending, Head, Lease, Now, Rules, Run, Scored, Task, TaskKind,
    TaskRecord, Work,
};
pub use spec::{InvalidWork, check_work};
pub use step::step;
