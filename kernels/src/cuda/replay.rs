//! Steps that are given to the device as one CUDA graph.
//!
//! Invariant: a graph is launched only in the place of the very launches it holds: each step's own are made out first,
//! down to every parameter, with all their checks, and compared. So the buffers of a graph that runs are those that the
//! step holds just now, and what a step does differently, if only in the size of a grid, is another graph.
//!
//! What changes from step to step lies in buffers that are overwritten before. Within a step nothing is allocated, copied
//! or waited for; one that does any of that runs launch by launch, each time after a try to record it, so that its host's part
//! is done twice. This crate logs nothing, so that shows only in [`CudaRecordings::is_empty`] and in its time.
#![expect(unsafe_code, reason = "launching, and graphs that another thread may hold")]

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaGraph, sys};

use super::launch::Call;
use super::{Cuda, DeviceError};
use crate::error::{Error, Result};

const OP: &str = "replay";

/// Graphs that are kept: a step for each number of rows up to the largest batches, for a few lengths of context.
const GRAPHS_MAX: usize = 128;

/// What a step would launch.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    state: Mutex<Recorded>,
}

#[derive(Debug, Default)]
struct Recorded {
    calls: Vec<Call>,
    /// Something was asked for that a graph does not hold.
    is_broken: bool,
}

/// The steps that were run, the last one first, each with its graph.
#[derive(Debug, Default)]
pub struct CudaRecordings {
    steps: Vec<(Vec<Call>, Graph)>,
}

impl CudaRecordings {
    /// How many different steps there were.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there was none.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

struct Graph(CudaGraph);

// SAFETY: the driver's graphs belong to no thread; they must only not be used by two at once, and whoever launches or
// drops this one has it by `&mut` or by value.
unsafe impl Send for Graph {}
// SAFETY: as above: nothing can be done with `&Graph` but print its name.
unsafe impl Sync for Graph {}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Graph")
    }
}

impl Recorder {
    pub(super) fn push(&self, call: Call) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.calls.push(call);
    }

    /// Notes what no graph holds.
    pub(super) fn refuse(&self, op: &'static str) -> Error {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_broken = true;
        Error::Setting {
            op,
            what: "a step that is replayed",
            expected: "free of allocations, copies and waits",
        }
    }

    fn take(&self) -> Recorded {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *state)
    }
}

fn failed(doing: &'static str, error: cudarc::driver::DriverError) -> Error {
    let source = DeviceError::driver(doing, error);
    Error::Device { op: OP, source }
}

impl Cuda {
    /// See [`Backend::replay`](crate::Backend::replay).
    pub fn replay_step<E: From<Error>>(
        &self,
        recordings: &mut CudaRecordings,
        mut run: impl FnMut(&Self) -> Result<(), E>,
    ) -> Result<(), E> {
        let recorder = Arc::new(Recorder::default());
        let mut recorded_on = self.share();
        recorded_on.recorder = Some(Arc::clone(&recorder));
        let outcome = run(&recorded_on);
        let recorded = recorder.take();
        if recorded.is_broken {
            return run(self);
        }
        outcome?;
        if recorded.calls.is_empty() {
            return Ok(());
        }
        Ok(self.launch_all(recordings, recorded.calls)?)
    }

    /// Launches `calls` as a graph; one by one where there is no room for the graph.
    fn launch_all(&self, recordings: &mut CudaRecordings, calls: Vec<Call>) -> Result<()> {
        match self.launch_graph(recordings, &calls) {
            Err(error) if matches!(error.device(), Some(DeviceError::OutOfMemory { .. })) => {
                // Nothing was launched. Later steps are recorded again, with the room that this gives.
                recordings.steps.clear();
                self.kept.clear();
                self.submit_all(&calls)
            }
            done => done,
        }
    }

    /// Launches the graph of `calls`, which is made if there is none.
    fn launch_graph(&self, recordings: &mut CudaRecordings, calls: &[Call]) -> Result<()> {
        let steps = &mut recordings.steps;
        match steps.iter().position(|(of, _)| of == calls) {
            Some(known) => steps[..=known].rotate_right(1),
            None => {
                let graph = self.capture(calls)?;
                steps.truncate(GRAPHS_MAX - 1);
                steps.insert(0, (calls.to_vec(), graph));
            }
        }
        match steps.first_mut() {
            Some((_, graph)) => graph
                .0
                .launch()
                .map_err(|error| failed("launching a step's graph", error)),
            None => Ok(()),
        }
    }

    /// Gives all launches of the calling step to the driver.
    fn submit_all(&self, calls: &[Call]) -> Result<()> {
        // SAFETY: each was made with its parameters for this step, which still borrows their buffers.
        calls.iter().try_for_each(|call| unsafe { self.submit(OP, call) })
    }

    fn capture(&self, calls: &[Call]) -> Result<Graph> {
        let stream = self.stream(OP)?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream
            .begin_capture(mode)
            .map_err(|error| failed("capturing a step", error))?;
        let given = self.submit_all(calls);
        // A capture that has begun is ended whatever came of it: the stream is of no use before.
        let captured = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        given?;
        let graph = captured.map_err(|error| failed("making a step's graph", error))?;
        let nothing = DeviceError::Driver {
            doing: "making a step's graph",
            reason: "the driver captured nothing".to_owned(),
        };
        graph.map(Graph).ok_or(Error::Device {
            op: OP,
            source: nothing,
        })
    }
}
