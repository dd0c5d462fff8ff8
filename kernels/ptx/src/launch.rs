//! A launch: blocks one after another, warps in turn, barriers between them.
//!
//! Invariant: the order is fixed, so a launch gives the same bytes and the same first report every time; it ends, by
//! itself or at [`Launch::steps_max`].

use crate::execute::{Block, Step};
use crate::memory::Memory;
use crate::module::{Kernel, Module};
use crate::report::{Fault, Problem};
use crate::shared::Shared;
use crate::warp::{Part, Place, Warp};

/// Shared memory that a block may have: what an L4 gives, or Hopper where the kernel is for that alone.
fn shared_bytes_max(target: &str) -> usize {
    if target == "sm_90a" { 227 << 10 } else { 99 << 10 }
}

/// What is launched.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// The entry function.
    pub kernel: &'a str,
    /// Blocks along each axis.
    pub grid: [u32; 3],
    /// Threads of a block along each axis.
    pub block: [u32; 3],
    /// Dynamic shared memory.
    pub shared_bytes: usize,
    /// Each parameter's bytes, in order.
    pub parameters: &'a [&'a [u8]],
    /// Instructions that all warps together may run.
    pub steps_max: u64,
}

/// What a launch has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Instructions that warps have run.
    pub warp_instructions: u64,
    /// Times a whole block has met at a barrier.
    pub barriers: u64,
}

impl Module {
    /// Runs a launch to its end or to the first thing that no kernel may do.
    pub fn launch(&self, memory: &mut Memory, launch: &Launch<'_>) -> Result<Stats, Fault> {
        let kernel = self.kernel(launch.kernel);
        let kernel =
            kernel.ok_or_else(|| shape(launch.kernel, "the module has no such kernel".to_owned()))?;
        let parameters = kernel.check(launch, shared_bytes_max(self.target()))?;
        let mut shared = Shared::new(kernel.shared_bytes + launch.shared_bytes);
        let mut stats = Stats::default();
        memory.begin_launch();
        for z in 0..launch.grid[2] {
            for y in 0..launch.grid[1] {
                for x in 0..launch.grid[0] {
                    memory.begin_block();
                    shared.clear();
                    let place = Place {
                        grid: launch.grid,
                        block: launch.block,
                        index: [x, y, z],
                    };
                    let block = Block::new(kernel, &parameters, place, memory, &mut shared);
                    run_block(block, &mut stats, launch.steps_max)?;
                }
            }
        }
        Ok(stats)
    }
}

fn shape(kernel: &str, what: String) -> Fault {
    Fault {
        kernel: kernel.to_owned(),
        line: 0,
        block: [0; 3],
        thread: 0,
        problem: Problem::Shape { what },
    }
}

impl Kernel {
    /// The parameters as one block of bytes. Fails when the launch does not fit the kernel or any card.
    fn check(&self, launch: &Launch<'_>, shared_bytes_max: usize) -> Result<Vec<u8>, Fault> {
        let fail = |what: String| Err(shape(&self.name, what));
        let n_threads = launch
            .block
            .iter()
            .try_fold(1u32, |product, &len| product.checked_mul(len));
        match n_threads {
            Some(n) if (1..=self.max_threads).contains(&n) => {}
            _ => {
                return fail(format!(
                    "{:?} threads, 1 to {} are allowed",
                    launch.block, self.max_threads
                ));
            }
        }
        if launch.grid.contains(&0) || launch.grid[1].max(launch.grid[2]) > 0xffff {
            return fail(format!("a grid of {:?} blocks", launch.grid));
        }
        if self.shared_bytes + launch.shared_bytes > shared_bytes_max {
            return fail(format!(
                "{} bytes of shared memory",
                self.shared_bytes + launch.shared_bytes
            ));
        }
        if self.parameters.len() != launch.parameters.len() {
            return fail(format!(
                "{} parameters, it has {}",
                launch.parameters.len(),
                self.parameters.len()
            ));
        }
        let len = self
            .parameters
            .last()
            .map_or(0, |last| last.offset + last.n_bytes);
        let mut bytes = vec![0; len];
        for (index, (place, given)) in self.parameters.iter().zip(launch.parameters).enumerate() {
            if place.n_bytes != given.len() {
                return fail(format!(
                    "parameter {index} of {} bytes, it has {}",
                    given.len(),
                    place.n_bytes
                ));
            }
            bytes[place.offset..place.offset + place.n_bytes].copy_from_slice(given);
        }
        Ok(bytes)
    }
}

fn run_block(mut block: Block<'_>, stats: &mut Stats, steps_max: u64) -> Result<(), Fault> {
    let n_warps = block.place.n_threads().div_ceil(32);
    let mut warps: Vec<Warp> = (0..n_warps)
        .map(|index| Warp::new(block.kernel, index, &block.place))
        .collect();
    loop {
        for warp in &mut warps {
            while let Some(part) = warp.take_lowest() {
                run_part(&mut block, warp, part, stats, steps_max)?;
            }
        }
        block.compare_warpgroups(&mut warps)?;
        if warps.iter().all(|warp| warp.live == 0) {
            return Ok(());
        }
        // Every warp has left or waits, whole: a warp that left is no longer waited for.
        for warp in &mut warps {
            warp.parts.extend(warp.waiting.take());
            warp.epoch += 1;
        }
        block.epoch += 1;
        stats.barriers += 1;
    }
}

/// Runs one part until it waits, leaves, or another part is no further than it.
fn run_part(
    block: &mut Block<'_>,
    warp: &mut Warp,
    mut part: Part,
    stats: &mut Stats,
    steps_max: u64,
) -> Result<(), Fault> {
    let other = warp.parts.iter().map(|part| part.at).min().unwrap_or(usize::MAX);
    loop {
        stats.warp_instructions += 1;
        if stats.warp_instructions > steps_max {
            let problem = Problem::Endless { steps: steps_max };
            return Err(block.fault(part.at, warp.thread(0), problem));
        }
        match block.step(warp, part)? {
            Step::Next => part.at += 1,
            Step::Jump { target, lanes } => {
                let rest = part.lanes & !lanes;
                if rest != 0 {
                    warp.parts.push(Part {
                        at: part.at + 1,
                        lanes: rest,
                    });
                    if lanes != 0 {
                        warp.parts.push(Part { at: target, lanes });
                    }
                    return Ok(());
                }
                part.at = target;
            }
            Step::Leave { lanes } => {
                warp.live &= !lanes;
                part.lanes &= !lanes;
                if part.lanes == 0 {
                    return Ok(());
                }
                part.at += 1;
            }
            Step::Wait => {
                warp.waiting = Some(Part {
                    at: part.at + 1,
                    lanes: part.lanes,
                });
                return Ok(());
            }
        }
        if part.at >= other {
            warp.parts.push(part);
            return Ok(());
        }
    }
}
