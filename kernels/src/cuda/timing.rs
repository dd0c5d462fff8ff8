//! How long work takes on the device, by the device's own clock.
//!
//! Invariant: only what was enqueued between the two events is timed, and all of it has ended when the time is told.
#![expect(unsafe_code, reason = "asking the driver what a recording holds")]

use std::fmt;
use std::marker::PhantomData;
use std::ptr;

use cudarc::driver::{CudaEvent, CudaGraph, DriverError, sys};

use super::{Cuda, DeviceError};
use crate::error::{Error, Result};

const OP: &str = "timing";

/// Launches that were recorded once and run again together, at the host's cost of one: what kernels of some
/// microseconds have to be timed by, for the host takes as long to launch one.
///
/// While it lives, so do the buffers that the launches name: it keeps the borrow of what recorded them.
pub struct Recorded<'a> {
    graph: CudaGraph,
    buffers: PhantomData<&'a mut ()>,
}

impl fmt::Debug for Recorded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorded")
    }
}

fn failed(doing: &'static str) -> impl FnOnce(DriverError) -> Error {
    move |error| Error::Device {
        op: OP,
        source: DeviceError::driver(doing, error),
    }
}

impl Cuda {
    /// Seconds that the device takes for what `run` enqueues. Waits for it.
    pub fn time(&self, run: impl FnOnce() -> Result<()>) -> Result<f64> {
        let begin = self.event()?;
        run()?;
        let end = self.event()?;
        let milliseconds = begin
            .elapsed_ms(&end)
            .map_err(failed("reading the device's clock"))?;
        Ok(f64::from(milliseconds) / 1e3)
    }

    fn event(&self) -> Result<CudaEvent> {
        self.stream(OP)?
            .record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT))
            .map_err(failed("recording an event"))
    }

    /// What `run` enqueues, which is not done now. Fails where that is anything but launches and fills: what allocates
    /// or takes data from the host cannot be run again.
    pub fn record<'a>(&self, run: &'a mut (dyn FnMut() -> Result<()> + 'a)) -> Result<Recorded<'a>> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream(OP)?
            .begin_capture(mode)
            .map_err(failed("beginning a recording"))?;
        let enqueued = run();
        // ends also when `run` failed: the stream takes no other work until then
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.stream(OP)?.end_capture(flags);
        enqueued?;
        let graph = graph.map_err(failed("ending a recording"))?;
        let holds_launches = graph.as_ref().map(only_launches).transpose();
        let holds_launches = holds_launches.map_err(failed("reading a recording"))?;
        match (graph, holds_launches) {
            (Some(graph), Some(true)) => Ok(Recorded {
                graph,
                buffers: PhantomData,
            }),
            _ => Err(Error::Setting {
                op: OP,
                what: "a recording",
                expected: "of launches and fills alone",
            }),
        }
    }

    /// Enqueues what was recorded.
    pub fn replay(&self, recorded: &Recorded<'_>) -> Result<()> {
        recorded.graph.launch().map_err(failed("running a recording"))
    }

    /// Bytes of the cache between the multiprocessors and the memory: what is larger is read from memory each time.
    pub fn cache_bytes(&self) -> Result<usize> {
        self.stream(OP)?
            .context()
            .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)
            .map(|bytes| bytes.max(0) as usize)
            .map_err(failed("asking for the size of the cache"))
    }
}

/// Whether a graph holds something, and nothing but launches and fills.
fn only_launches(graph: &CudaGraph) -> std::result::Result<bool, DriverError> {
    let mut n_nodes = 0usize;
    // SAFETY: the graph lives, and without a list the driver only counts.
    unsafe { sys::cuGraphGetNodes(graph.cu_graph(), ptr::null_mut(), &raw mut n_nodes) }.result()?;
    let mut nodes = vec![ptr::null_mut(); n_nodes];
    // SAFETY: the graph lives, and the list has room for as many as are said.
    unsafe { sys::cuGraphGetNodes(graph.cu_graph(), nodes.as_mut_ptr(), &raw mut n_nodes) }.result()?;
    for &node in &nodes {
        let mut kind = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
        // SAFETY: the node is the graph's, and the pointer is to a local value.
        unsafe { sys::cuGraphNodeGetType(node, &raw mut kind) }.result()?;
        if !matches!(
            kind,
            sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL | sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_MEMSET
        ) {
            return Ok(false);
        }
    }
    Ok(!nodes.is_empty())
}
