//! One instruction on one warp.
//!
//! Invariant: an instruction changes nothing of the lanes its guard leaves out.

use crate::instruction::{Instruction, Operation, Shuffle, Vote};
use crate::lanes::{N_LANES, lanes_of};
use crate::matrix;
use crate::memory::Memory;
use crate::module::Kernel;
use crate::report::{Fault, Problem};
use crate::shared::Shared;
use crate::warp::{Part, Place, Warp};

/// What a warp's part does next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Next,
    /// `lanes` go to `target`, the others on.
    Jump {
        target: usize,
        lanes: u32,
    },
    /// `lanes` are done.
    Leave {
        lanes: u32,
    },
    /// At the block's barrier.
    Wait,
}

/// The block that runs.
#[derive(Debug)]
pub(crate) struct Block<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) parameters: &'a [u8],
    pub(crate) place: Place,
    pub(crate) memory: &'a mut Memory,
    pub(crate) shared: &'a mut Shared,
    /// Counts barriers of the whole block.
    pub(crate) epoch: u32,
}

/// What one lane did wrong.
pub(crate) type LaneResult<T> = Result<T, (usize, Problem)>;

impl<'a> Block<'a> {
    pub(crate) fn new(
        kernel: &'a Kernel,
        parameters: &'a [u8],
        place: Place,
        memory: &'a mut Memory,
        shared: &'a mut Shared,
    ) -> Self {
        Self {
            kernel,
            parameters,
            place,
            memory,
            shared,
            epoch: 1,
        }
    }

    pub(crate) fn fault(&self, at: usize, thread: u32, problem: Problem) -> Fault {
        Fault {
            kernel: self.kernel.name.clone(),
            line: self.kernel.code.get(at).map_or(0, |instruction| instruction.line),
            block: self.place.index,
            thread,
            problem,
        }
    }

    /// Runs the instruction `part` stands at. The end of the code is an exit.
    pub(crate) fn step(&mut self, warp: &mut Warp, part: Part) -> Result<Step, Fault> {
        let Some(instruction) = self.kernel.code.get(part.at) else {
            return Ok(Step::Leave { lanes: part.lanes });
        };
        let active = instruction
            .guard
            .map_or(part.lanes, |guard| part.lanes & warp.holds(guard));
        let done = match instruction.operation {
            Operation::Branch { target } => {
                return Ok(Step::Jump {
                    target,
                    lanes: active,
                });
            }
            _ if active == 0 => return Ok(Step::Next),
            Operation::Exit => return Ok(Step::Leave { lanes: active }),
            Operation::Barrier => match together(active, warp.live) {
                Ok(()) => return Ok(Step::Wait),
                Err(wrong) => Err(wrong),
            },
            _ => self.run(warp, instruction, active, part.at),
        };
        done.map(|()| Step::Next)
            .map_err(|(lane, problem)| self.fault(part.at, warp.thread(lane), problem))
    }

    fn run(&mut self, warp: &mut Warp, instruction: &Instruction, active: u32, at: usize) -> LaneResult<()> {
        if !instruction.touches.is_empty() {
            let lane = active.trailing_zeros() as usize;
            let touched = warp.products.touch(&instruction.touches);
            touched.map_err(|problem| (lane, problem))?;
        }
        match &instruction.operation {
            Operation::Compute { function, to, inputs } => {
                let mut out = [0; N_LANES];
                function(inputs.map(|input| &warp.registers[input as usize]), &mut out);
                warp.write(*to, &out, active);
                Ok(())
            }
            Operation::Compare { .. } | Operation::Combine { .. } | Operation::Select { .. } => {
                decide(warp, &instruction.operation, active);
                Ok(())
            }
            Operation::Pack { .. } | Operation::Unpack { .. } => {
                repack(warp, &instruction.operation, active);
                Ok(())
            }
            Operation::Shuffle { members, .. } | Operation::Vote { members, .. } => {
                let members = warp.registers[*members as usize][active.trailing_zeros() as usize] as u32;
                // Lanes that have left cannot come.
                together(active, members & warp.live)?;
                exchange(warp, &instruction.operation, active);
                Ok(())
            }
            Operation::WarpBarrier { members } => {
                let members = warp.registers[*members as usize][active.trailing_zeros() as usize] as u32;
                together(active, members & warp.live)?;
                warp.epoch += 1;
                Ok(())
            }
            Operation::Multiply { ty, to, a, b, c } => {
                together(active, u32::MAX)?;
                let product = matrix::multiply(*ty, &warp.registers, *a, *b, *c);
                for (register, values) in to.iter().zip(&product) {
                    warp.write(*register, values, active);
                }
                Ok(())
            }
            Operation::LoadMatrix { .. } => {
                together(active, u32::MAX)?;
                self.access(warp, &instruction.operation, active)
            }
            Operation::ProductFence
            | Operation::ProductBegin { .. }
            | Operation::ProductCommit
            | Operation::ProductWait { .. } => {
                together(active, u32::MAX)?;
                self.product(warp, &instruction.operation, at)
            }
            Operation::ProxyFence => {
                self.proxy_fence(warp, active);
                Ok(())
            }
            Operation::Fence => Ok(()),
            // `step` has dealt with these.
            Operation::Branch { .. } | Operation::Exit | Operation::Barrier => Ok(()),
            _ => self.access(warp, &instruction.operation, active),
        }
    }
}

/// Fails unless all `needed` lanes are here.
fn together(active: u32, needed: u32) -> LaneResult<()> {
    if active & needed == needed {
        Ok(())
    } else {
        let lane = active.trailing_zeros() as usize % N_LANES;
        Err((lane, Problem::Diverged { active, needed }))
    }
}

fn decide(warp: &mut Warp, operation: &Operation, active: u32) {
    match operation {
        Operation::Compare {
            comparison,
            to,
            opposite,
            inputs,
            with,
        } => {
            let [a, b] = inputs.map(|input| &warp.registers[input as usize]);
            let holds = comparison(a, b);
            let combined = |value: u32| match with {
                None => value,
                Some((logic, predicate)) => logic.of(value, warp.holds(*predicate)),
            };
            let (value, other) = (combined(holds), combined(!holds));
            warp.write_predicate(*to, value, active);
            if let Some(opposite) = opposite {
                warp.write_predicate(*opposite, other, active);
            }
        }
        Operation::Combine { logic, to, a, b } => {
            let value = logic.of(warp.holds(*a), warp.holds(*b));
            warp.write_predicate(*to, value, active);
        }
        Operation::Select { to, a, b, by } => {
            let by = warp.holds(*by);
            let [a, b] = [a, b].map(|input| &warp.registers[*input as usize]);
            let out = std::array::from_fn(|lane| if by >> lane & 1 == 1 { a[lane] } else { b[lane] });
            warp.write(*to, &out, active);
        }
        _ => {}
    }
}

/// Vectors of narrow registers and wide ones.
fn repack(warp: &mut Warp, operation: &Operation, active: u32) {
    match operation {
        Operation::Pack { to, from, bits } => {
            let mut out = [0; N_LANES];
            for (index, register) in from.iter().enumerate() {
                let part = &warp.registers[*register as usize];
                for lane in 0..N_LANES {
                    out[lane] |= (part[lane] & low_bits(*bits)) << (index as u32 * bits);
                }
            }
            warp.write(*to, &out, active);
        }
        Operation::Unpack { to, from, bits } => {
            let from = warp.registers[*from as usize];
            for (index, register) in to.iter().enumerate() {
                if let Some(register) = register {
                    let out = from.map(|value| value >> (index as u32 * bits) & low_bits(*bits));
                    warp.write(*register, &out, active);
                }
            }
        }
        _ => {}
    }
}

fn low_bits(n_bits: u32) -> u64 {
    u64::MAX >> (64 - n_bits.clamp(1, 64))
}

/// Values that go from lane to lane.
fn exchange(warp: &mut Warp, operation: &Operation, active: u32) {
    match operation {
        Operation::Shuffle {
            kind,
            to,
            valid,
            value,
            lane,
            clamp,
            ..
        } => {
            let [values, offsets, clamps] = [value, lane, clamp].map(|input| warp.registers[*input as usize]);
            let mut out = values;
            let mut in_range = 0u32;
            for here in lanes_of(active) {
                let (from, inside) = source_lane(*kind, here as i64, offsets[here], clamps[here]);
                out[here] = values[from];
                in_range |= u32::from(inside) << here;
            }
            warp.write(*to, &out, active);
            if let Some(valid) = valid {
                warp.write_predicate(*valid, in_range, active);
            }
        }
        Operation::Vote { kind, to, by, .. } => {
            let votes = warp.holds(*by) & active;
            let spread = |holds: bool| if holds { u32::MAX } else { 0 };
            match kind {
                Vote::Ballot => warp.write(*to, &[u64::from(votes); N_LANES], active),
                Vote::All => warp.write_predicate(*to, spread(votes == active), active),
                Vote::Any => warp.write_predicate(*to, spread(votes != 0), active),
            }
        }
        _ => {}
    }
}

/// PTX ISA, `shfl.sync`: the lane that is read, and whether it is within the segment; if not, a lane reads itself.
fn source_lane(kind: Shuffle, lane: i64, offset: u64, clamp: u64) -> (usize, bool) {
    let offset = (offset & 31) as i64;
    let (bound, segment) = ((clamp & 31) as i64, (clamp >> 8 & 31) as i64);
    let last = lane & segment | bound & !segment;
    let first = lane & segment;
    let (from, inside) = match kind {
        Shuffle::Up => (lane - offset, lane - offset >= last),
        Shuffle::Down => (lane + offset, lane + offset <= last),
        Shuffle::Butterfly => (lane ^ offset, (lane ^ offset) <= last),
        Shuffle::Index => {
            let from = first | offset & !segment;
            (from, from <= last)
        }
    };
    if inside {
        (from as usize, true)
    } else {
        (lane as usize, false)
    }
}
