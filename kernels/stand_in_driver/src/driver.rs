//! The driver's state.
//!
//! Invariant: a handle is a number that was never given out before; one that is not known is an error.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use llamaduo_ptx::{Memory, Module};

use crate::call::{Code, INVALID_HANDLE, INVALID_PTX, NO_BINARY_FOR_GPU, NOT_FOUND, fail};
use crate::device::{Device, SHARED_BYTES_PLAIN};
use crate::event_calls::Events;
use crate::work::Work;

#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) memory: Memory,
    modules: HashMap<u64, Arc<Module>>,
    /// Modules by their text: a program that loads one again need not wait for it.
    parsed: HashMap<String, Arc<Module>>,
    functions: HashMap<u64, Function>,
    pub(crate) graphs: HashMap<u64, Vec<Work>>,
    /// Streams that are being captured, and what was given to them.
    pub(crate) captured: HashMap<u64, Vec<Work>>,
    pub(crate) events: Events,
    last_handle: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Function {
    module_handle: u64,
    pub(crate) module: Arc<Module>,
    pub(crate) kernel: String,
    /// Most dynamic shared memory a launch may ask for.
    pub(crate) shared_bytes_max: usize,
}

/// The state. A test that failed while it held the lock does not fail the others.
pub(crate) fn driver() -> MutexGuard<'static, Driver> {
    static DRIVER: OnceLock<Mutex<Driver>> = OnceLock::new();
    let driver = DRIVER.get_or_init(|| {
        Mutex::new(Driver {
            memory: Memory::new(Device::get().memory_bytes),
            modules: HashMap::new(),
            parsed: HashMap::new(),
            functions: HashMap::new(),
            graphs: HashMap::new(),
            captured: HashMap::new(),
            events: Events::default(),
            last_handle: 0x100,
        })
    });
    driver.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    /// A module's text, and the text that this thread loads instead of it.
    static REPLACED: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// From now on a module of the text `original` that this thread loads is `replacement`; no pair ends that.
pub(crate) fn replace_module(pair: Option<(String, String)>) {
    REPLACED.with(|replaced| *replaced.borrow_mut() = pair);
}

thread_local! {
    /// Kernels that this thread has launched, and how many instructions of warps each launch took.
    static LAUNCHED: RefCell<String> = const { RefCell::new(String::new()) };
}

pub(crate) fn note_launch(kernel: &str, warp_instructions: u64) {
    LAUNCHED.with(|launched| *launched.borrow_mut() += &format!("{kernel} {warp_instructions}\n"));
}

/// What [`note_launch`] was told since the last time.
pub(crate) fn take_launched() -> String {
    LAUNCHED.with(|launched| std::mem::take(&mut *launched.borrow_mut()))
}

impl Driver {
    pub(crate) fn handle(&mut self) -> u64 {
        self.last_handle += 16;
        self.last_handle
    }

    pub(crate) fn load(&mut self, source: &str) -> Result<u64, Code> {
        let replacement = REPLACED.with(|replaced| match &*replaced.borrow() {
            Some((original, replacement)) if original == source => Some(replacement.clone()),
            _ => None,
        });
        let module = match (replacement, self.parsed.get(source)) {
            // Text that is wrong on purpose comes once.
            (Some(replacement), _) => self.parse(&replacement)?,
            (None, Some(module)) => Arc::clone(module),
            (None, None) => {
                let module = self.parse(source)?;
                self.parsed.insert(source.to_owned(), Arc::clone(&module));
                module
            }
        };
        let device = Device::get();
        if !device.runs(module.target()) {
            let report = format!(
                "PTX for {} on a card of capability {}.{}",
                module.target(),
                device.major,
                device.minor
            );
            return Err(fail(NO_BINARY_FOR_GPU, &report));
        }
        let handle = self.handle();
        self.modules.insert(handle, module);
        Ok(handle)
    }

    fn parse(&mut self, source: &str) -> Result<Arc<Module>, Code> {
        let module = Module::parse(source, &mut self.memory);
        module
            .map(Arc::new)
            .map_err(|error| fail(INVALID_PTX, &error.to_string()))
    }

    pub(crate) fn unload(&mut self, module: u64) -> Result<(), Code> {
        let known = self.modules.remove(&module).is_some();
        self.functions
            .retain(|_, function| function.module_handle != module);
        known
            .then_some(())
            .ok_or_else(|| fail(INVALID_HANDLE, "no such module"))
    }

    pub(crate) fn function(&mut self, module: u64, kernel: String) -> Result<u64, Code> {
        let module_handle = module;
        let module = self
            .modules
            .get(&module)
            .ok_or_else(|| fail(INVALID_HANDLE, "no such module"))?;
        if module.kernel(&kernel).is_none() {
            return Err(fail(NOT_FOUND, &format!("the module has no kernel {kernel}")));
        }
        let function = Function {
            module_handle,
            module: Arc::clone(module),
            kernel,
            shared_bytes_max: SHARED_BYTES_PLAIN,
        };
        let handle = self.handle();
        self.functions.insert(handle, function);
        Ok(handle)
    }

    pub(crate) fn function_mut(&mut self, handle: u64) -> Result<&mut Function, Code> {
        self.functions
            .get_mut(&handle)
            .ok_or_else(|| fail(INVALID_HANDLE, "no such function"))
    }

    /// Does `work` now, or keeps it where its stream is being captured.
    pub(crate) fn submit(&mut self, stream: u64, work: Work) -> Result<(), Code> {
        match self.captured.get_mut(&stream) {
            Some(kept) => {
                kept.push(work);
                Ok(())
            }
            None => work.run(&mut self.memory),
        }
    }
}
