//! The next tokens of a step's rows. The kernels are `kernels/cuda/choose.cu`.
//!
//! Invariant: a token is the one that the CPU chooses from the same logits; only tokens go to the host.
#![expect(unsafe_code, reason = "launching a kernel")]

use cudarc::driver::{CudaSlice, DeviceRepr, ValidAsZeroBits};

use super::{Cuda, CudaF32, CudaIndices, Kernel, check};
use crate::error::{Error, Result};
use crate::sampling::{self, NEGLIGIBLE, SampleRow};

const OP: &str = "choose";

/// What the kernel leaves where the largest logit is not finite.
const NO_TOKEN: u32 = u32::MAX;

/// A row's settings as the kernels take them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    temperature: f64,
    top_p: f64,
    random: u64,
    min_weight: u64,
    top_k: u64,
    reach: f32,
    penalty: f32,
    first_seen: u32,
    n_seen: u32,
}

// SAFETY: five numbers of 64 bits and four of 32, in the order of the kernels' structure, without a gap.
unsafe impl DeviceRepr for Row {}
// SAFETY: all its fields are numbers, which may be 0.
unsafe impl ValidAsZeroBits for Row {}

/// Tokens that there is room for where penalties fall on `n_seen`: a response sees one token more with each step.
pub(super) fn seen_room(n_seen: usize) -> usize {
    n_seen.next_power_of_two().max(1024)
}

/// What the rows of a step are chosen by, and their tokens, on the device.
#[derive(Debug)]
pub struct CudaChoices {
    n_vocab: usize,
    n_rows: usize,
    rows: CudaSlice<Row>,
    /// Tokens that a penalty falls on: all rows', one after another.
    seen: CudaIndices,
    n_seen: usize,
    /// Their logits while others stand in their place.
    kept: CudaF32,
    /// Only where a temperature is not 0: the keys of all tokens of all rows.
    keys: CudaSlice<u64>,
    ids: CudaIndices,
}

impl Cuda {
    /// See [`Backend::alloc_choices`](crate::Backend::alloc_choices).
    pub fn alloc_choices(&self, n_rows_max: usize) -> Result<CudaChoices> {
        Ok(CudaChoices {
            n_vocab: 0,
            n_rows: 0,
            rows: self.zeros(n_rows_max)?,
            seen: self.zeros(0)?,
            n_seen: 0,
            kept: self.zeros(0)?,
            keys: self.zeros(0)?,
            ids: self.zeros(n_rows_max)?,
        })
    }

    /// See [`Backend::write_choices`](crate::Backend::write_choices).
    pub fn write_choices(
        &self,
        choices: &mut CudaChoices,
        rows: &[SampleRow<'_>],
        n_vocab: usize,
    ) -> Result<()> {
        sampling::check(rows, n_vocab)?;
        let fits = rows.len() <= choices.rows.len();
        check::setting(OP, "rows", "no more than were allocated", fits)?;
        let mut seen = Vec::new();
        let mut on_device = Vec::with_capacity(rows.len());
        for row in rows {
            let penalized = row.penalized(n_vocab);
            let first_seen = check::blocks(OP, "seen tokens", seen.len())?;
            seen.extend_from_slice(&penalized);
            on_device.push(Row {
                temperature: row.spec.temperature.into(),
                top_p: row.spec.top_p.into(),
                random: row.random,
                min_weight: row.spec.min_weight(),
                top_k: row.spec.top_k as u64,
                reach: NEGLIGIBLE * row.spec.temperature,
                penalty: row.spec.repetition_penalty,
                first_seen,
                n_seen: penalized.len() as u32,
            });
        }
        // no rows: what is left if writing them fails
        (choices.n_rows, choices.n_seen) = (0, 0);
        if seen.len() > choices.seen.len() {
            let room = seen_room(seen.len());
            self.renew(&mut choices.seen, room)?;
            self.renew(&mut choices.kept, room)?;
        }
        if rows.iter().any(|row| row.spec.temperature > 0.0) {
            let room = check::size(OP, "keys", &[choices.rows.len(), n_vocab])?;
            if room > choices.keys.len() {
                self.renew(&mut choices.keys, room)?;
            }
        }
        self.write(OP, &mut choices.rows, &on_device)?;
        self.write(OP, &mut choices.seen, &seen)?;
        (choices.n_vocab, choices.n_rows, choices.n_seen) = (n_vocab, rows.len(), seen.len());
        Ok(())
    }

    /// See [`Backend::choose`](crate::Backend::choose).
    pub fn choose(&self, choices: &mut CudaChoices, logits: &mut CudaF32) -> Result<()> {
        let CudaChoices {
            n_vocab,
            n_rows,
            rows,
            seen,
            n_seen,
            kept,
            keys,
            ids,
        } = choices;
        check::holds(OP, "logits", logits, &[*n_rows, *n_vocab])?;
        let n_vocab = check::int(OP, "vocabulary", *n_vocab)?;
        let n_rows = check::blocks(OP, "rows", *n_rows)?;
        if *n_seen > 0 {
            let launch = self.launch(OP, Kernel::Penalize, (n_rows, 256));
            let launch = launch.with(&mut *logits).with(&mut *kept).with(&*seen);
            let launch = launch.with(&*rows).with(&n_vocab);
            // SAFETY: `logits` holds the rows, which have their tokens in `seen`, each below n_vocab, and as much of `kept`.
            unsafe { launch.run() }?;
        }
        let launch = self.launch(OP, Kernel::Choose, (n_rows, 1024));
        let launch = launch.with(ids).with(keys).with(&*logits);
        let launch = launch.with(&*rows).with(&n_vocab);
        // SAFETY: `logits`, `rows` and `ids` hold the rows; so does `keys` where a row's temperature is not 0, and no other
        // row's block touches it.
        unsafe { launch.run() }?;
        if *n_seen > 0 {
            let launch = self.launch(OP, Kernel::Restore, (n_rows, 256));
            let launch = launch.with(logits).with(&*kept).with(&*seen);
            let launch = launch.with(&*rows).with(&n_vocab);
            // SAFETY: as of the first.
            unsafe { launch.run() }?;
        }
        Ok(())
    }

    /// See [`Backend::read_choices`](crate::Backend::read_choices).
    pub fn read_choices(&self, choices: &CudaChoices, ids: &mut [u32]) -> Result<()> {
        if ids.len() > choices.n_rows {
            return Err(Error::TooShort {
                op: OP,
                what: "choices",
                expected: ids.len(),
                got: choices.n_rows,
            });
        }
        self.read(OP, &choices.ids, 0..ids.len(), ids)?;
        match ids.iter().position(|&id| id == NO_TOKEN) {
            Some(row) => Err(Error::NotFinite { op: OP, row }),
            None => Ok(()),
        }
    }
}
