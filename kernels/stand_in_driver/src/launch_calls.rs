//! Modules, functions, launches and graphs.
//!
//! Invariant: a launch is checked as the driver would before it runs.

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::call::{Code, INVALID_HANDLE, INVALID_VALUE, code, fail, put, text};
use crate::calls::{Handle, as_handle, as_number};
use crate::driver::{driver, note_launch};
use crate::faults::{Call, check};
use crate::work::Work;

/// Parses PTX text.
///
/// # Safety
///
/// `image` is PTX that ends with a zero byte.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuModuleLoadData(module: *mut Handle, image: *const c_void) -> Code {
    // SAFETY: the caller vouches for the text.
    let source = unsafe { text(image.cast()) };
    match check(Call::Load)
        .and(source)
        .and_then(|source| driver().load(&source))
    {
        // SAFETY: the caller vouches for the pointer.
        Ok(handle) => unsafe { put(module, as_handle(handle)) },
        Err(code) => code,
    }
}

/// Forgets a module and its functions; graphs keep what they need.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuModuleUnload(module: Handle) -> Code {
    code(driver().unload(as_number(module)))
}

/// A kernel by its name.
///
/// # Safety
///
/// `name` ends with a zero byte.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuModuleGetFunction(
    function: *mut Handle,
    module: Handle,
    name: *const c_char,
) -> Code {
    // SAFETY: the caller vouches for the text.
    let name = unsafe { text(name) };
    match name.and_then(|name| driver().function(as_number(module), name)) {
        // SAFETY: the caller vouches for the pointer.
        Ok(handle) => unsafe { put(function, as_handle(handle)) },
        Err(code) => code,
    }
}

/// Launches.
///
/// # Safety
///
/// `parameters` points at as many pointers as the kernel has parameters, each at a value of its size.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared_bytes: c_uint,
    stream: Handle,
    parameters: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> Code {
    if let Err(code) = check(Call::Launch) {
        return code;
    }
    let mut driver = driver();
    let function = match driver.function_mut(as_number(function)) {
        Ok(function) => function.clone(),
        Err(code) => return code,
    };
    if shared_bytes as usize > function.shared_bytes_max {
        return fail(
            INVALID_VALUE,
            "more dynamic shared memory than the function was set to take",
        );
    }
    let Some(kernel) = function.module.kernel(&function.kernel) else {
        return INVALID_HANDLE;
    };
    let mut values = Vec::with_capacity(kernel.parameters().len());
    for (index, parameter) in kernel.parameters().iter().enumerate() {
        // SAFETY: the caller vouches for a pointer for each parameter.
        let at = unsafe { parameters.add(index) };
        // SAFETY: as above.
        let value = unsafe { at.read() };
        if value.is_null() {
            return INVALID_VALUE;
        }
        // SAFETY: the caller vouches for a value of the parameter's size.
        values.push(unsafe { std::slice::from_raw_parts(value.cast::<u8>(), parameter.n_bytes) }.to_vec());
    }
    let work = Work::Launch {
        module: function.module,
        kernel: function.kernel,
        grid: [grid_x, grid_y, grid_z],
        block: [block_x, block_y, block_z],
        shared_bytes: shared_bytes as usize,
        parameters: values,
    };
    code(driver.submit(as_number(stream), work))
}

/// From now on the stream's work is kept.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuStreamBeginCapture_v2(stream: Handle, _mode: c_int) -> Code {
    driver().captured.insert(as_number(stream), Vec::new());
    0
}

/// What was kept becomes a graph.
///
/// # Safety
///
/// As the driver's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuStreamEndCapture(stream: Handle, graph: *mut Handle) -> Code {
    let mut driver = driver();
    let Some(work) = driver.captured.remove(&as_number(stream)) else {
        return fail(INVALID_VALUE, "the stream is not captured");
    };
    let handle = driver.handle();
    driver.graphs.insert(handle, work);
    // SAFETY: the caller vouches for the pointer.
    unsafe { put(graph, as_handle(handle)) }
}

/// A graph that can run.
///
/// # Safety
///
/// As the driver's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuGraphInstantiateWithFlags(
    runnable: *mut Handle,
    graph: Handle,
    _flags: u64,
) -> Code {
    if let Err(code) = check(Call::Instantiate) {
        return code;
    }
    let mut driver = driver();
    let Some(work) = driver.graphs.get(&as_number(graph)).cloned() else {
        return INVALID_HANDLE;
    };
    let handle = driver.handle();
    driver.graphs.insert(handle, work);
    // SAFETY: the caller vouches for the pointer.
    unsafe { put(runnable, as_handle(handle)) }
}

/// What a launched graph is noted as, with the number of its works in the place of instructions.
const GRAPH: &str = "graph";

/// Does the work of a graph once more.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuGraphLaunch(runnable: Handle, stream: Handle) -> Code {
    if let Err(code) = check(Call::Launch) {
        return code;
    }
    let mut driver = driver();
    let Some(work) = driver.graphs.get(&as_number(runnable)).cloned() else {
        return INVALID_HANDLE;
    };
    note_launch(GRAPH, work.len() as u64);
    code(
        work.into_iter()
            .try_for_each(|work| driver.submit(as_number(stream), work)),
    )
}

/// Forgets a graph.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuGraphDestroy(graph: Handle) -> Code {
    driver().graphs.remove(&as_number(graph));
    0
}

/// Forgets a graph.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuGraphExecDestroy(runnable: Handle) -> Code {
    cuGraphDestroy(runnable)
}
