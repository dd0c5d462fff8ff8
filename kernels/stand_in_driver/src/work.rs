//! What a stream is given to do.
//!
//! Invariant: it holds all it needs but the card's memory, so that a graph may run it again.

use std::sync::Arc;

use llamaduo_ptx::{Launch, Memory, Module};

use crate::call::{Code, INVALID_VALUE, LAUNCH_FAILED, fail};
use crate::driver::note_launch;

/// Instructions of one launch: some minutes.
const STEPS_MAX: u64 = 1 << 33;

#[derive(Clone, Debug)]
pub(crate) enum Work {
    Launch {
        module: Arc<Module>,
        kernel: String,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: usize,
        parameters: Vec<Vec<u8>>,
    },
    Fill {
        to: u64,
        value: u8,
        len: usize,
    },
    Copy {
        to: u64,
        from: u64,
        len: usize,
    },
}

impl Work {
    pub(crate) fn run(&self, memory: &mut Memory) -> Result<(), Code> {
        match self {
            Self::Launch {
                module,
                kernel,
                grid,
                block,
                shared_bytes,
                parameters,
            } => {
                let parameters: Vec<&[u8]> = parameters.iter().map(Vec::as_slice).collect();
                let launch = Launch {
                    kernel,
                    grid: *grid,
                    block: *block,
                    shared_bytes: *shared_bytes,
                    parameters: &parameters,
                    steps_max: STEPS_MAX,
                };
                let stats = module
                    .launch(memory, &launch)
                    .map_err(|fault| fail(LAUNCH_FAILED, &fault.to_string()))?;
                note_launch(kernel, stats.warp_instructions);
                Ok(())
            }
            Self::Fill { to, value, len } => memory
                .write(*to, &vec![*value; *len])
                .map_err(|problem| fail(INVALID_VALUE, &problem.to_string())),
            Self::Copy { to, from, len } => {
                let mut bytes = vec![0; *len];
                memory
                    .read(*from, &mut bytes)
                    .and_then(|()| memory.write(*to, &bytes))
                    .map_err(|problem| fail(INVALID_VALUE, &problem.to_string()))
            }
        }
    }
}
