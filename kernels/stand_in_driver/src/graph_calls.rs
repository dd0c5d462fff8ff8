//! What a graph holds.
//!
//! Invariant: a node's handle names its graph and its place in it, and lives as long as the graph.

use std::ffi::c_int;

use crate::call::{Code, INVALID_HANDLE, put};
use crate::calls::{Handle, as_handle, as_number};
use crate::driver::driver;
use crate::work::Work;

/// Places of a graph's nodes in a handle; graphs are numbered far below the rest.
const PLACE_BITS: u32 = 24;

/// The nodes of a graph, as many as there is room for; or how many there are, where there is no list.
///
/// # Safety
///
/// `nodes` is null or has room for `*n_nodes` handles.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuGraphGetNodes(
    graph: Handle,
    nodes: *mut Handle,
    n_nodes: *mut usize,
) -> Code {
    let driver = driver();
    let Some(work) = driver.graphs.get(&as_number(graph)) else {
        return INVALID_HANDLE;
    };
    if nodes.is_null() || n_nodes.is_null() {
        // SAFETY: the caller vouches for what is not null.
        return unsafe { put(n_nodes, work.len()) };
    }
    // SAFETY: as above.
    let n_room = unsafe { n_nodes.read() };
    for place in 0..work.len().min(n_room) {
        // SAFETY: the caller vouches for room for so many.
        let to = unsafe { nodes.add(place) };
        // SAFETY: as above.
        unsafe { put(to, as_handle(as_number(graph) << PLACE_BITS | place as u64)) };
    }
    // SAFETY: the caller vouches for what is not null.
    unsafe { put(n_nodes, work.len().min(n_room)) }
}

/// What a node does, by the numbers of `CUgraphNodeType`.
///
/// # Safety
///
/// As the driver's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuGraphNodeGetType(node: Handle, kind: *mut c_int) -> Code {
    let (graph, place) = (
        as_number(node) >> PLACE_BITS,
        as_number(node) & ((1 << PLACE_BITS) - 1),
    );
    let driver = driver();
    let work = driver
        .graphs
        .get(&graph)
        .and_then(|work| work.get(place as usize));
    let number = match work {
        Some(Work::Launch { .. }) => 0,
        Some(Work::Copy { .. }) => 1,
        Some(Work::Fill { .. }) => 2,
        None => return INVALID_HANDLE,
    };
    // SAFETY: the caller vouches for the pointer.
    unsafe { put(kind, number) }
}
