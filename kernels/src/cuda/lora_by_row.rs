//! LoRA pairs that differ from row to row. The kernels are those of one pair for all rows: a block of `h` makes that of one
//! of the pairs, and the end of a product takes the pairs that its rows have in turn.
//!
//! Invariant: which row has which pair lies on the device, as do the pairs' places: a step that is replayed launches the
//! same whatever they are.
#![expect(unsafe_code, reason = "launching a kernel")]

use super::linear::PairEnd;
use super::lora::{check_slot, mask, rank_blocks, ranks_of_block};
use super::product::{PRODUCT_THREADS, dims, rows};
use super::{Cuda, CudaAct, CudaIndices, Kernel, check};
use crate::backend::{LoraByRow, LoraSlot, NO_PAIR};
use crate::error::{Error, Result};

const OP: &str = "linears";

/// Words of an entry: the offsets of A and B, two words each, the scale and the rank; `PairAt` of the kernels.
pub(super) const PAIR_WORDS: usize = 6;

/// Where several adapters' pairs beside a linear are.
#[derive(Debug)]
pub struct CudaPairs {
    slots: Vec<Option<LoraSlot>>,
    /// `[pairs, PAIR_WORDS]`; a rank of 0 where there is no pair.
    on_device: CudaIndices,
}

impl CudaPairs {
    /// The largest rank; 0 where there is no pair at all.
    fn rank_max(&self) -> usize {
        let ranks = self.slots.iter().flatten().map(|slot| slot.rank);
        ranks.max().unwrap_or(0)
    }
}

/// An entry as the kernels read it.
fn entry(slot: Option<LoraSlot>) -> Result<[u32; PAIR_WORDS]> {
    let Some(slot) = slot else {
        return Ok([0; PAIR_WORDS]);
    };
    let rank = check::int("upload_pairs", "the rank", slot.rank)?;
    let halves = |offset: usize| [offset as u32, (offset as u64 >> 32) as u32];
    let ([a_low, a_high], [b_low, b_high]) = (halves(slot.a_offset), halves(slot.b_offset));
    Ok([a_low, a_high, b_low, b_high, slot.scale.to_bits(), rank as u32])
}

/// Fails unless each row's pair is there and fits a linear of these M, N, K.
pub(super) fn check_by_row(lora: &LoraByRow<'_, Cuda>, [m, n, k]: [usize; 3]) -> Result<()> {
    for slot in lora.pairs.slots.iter().flatten() {
        check_slot(OP, lora.params, *slot, [m, n, k])?;
    }
    check::holds(OP, "h", lora.h, &[m, lora.pairs.rank_max()])?;
    let n_pairs = lora.pairs.slots.len();
    let of_row = lora.of_row.first(OP, "of_row", m)?;
    let is_there = |pair: &u32| *pair == NO_PAIR || (*pair as usize) < n_pairs;
    match of_row.iter().position(|pair| !is_there(pair)) {
        None => Ok(()),
        Some(index) => Err(Error::OutOfRange {
            op: OP,
            what: "of_row",
            index,
            value: of_row[index] as usize,
            limit: n_pairs,
        }),
    }
}

impl Cuda {
    /// See [`Backend::upload_pairs`](crate::Backend::upload_pairs).
    pub fn upload_pairs(&self, pairs: &[Option<LoraSlot>]) -> Result<CudaPairs> {
        for slot in pairs.iter().flatten() {
            check::setting("upload_pairs", "rank", "at least 1", slot.rank > 0)?;
        }
        let entries: Vec<[u32; PAIR_WORDS]> = pairs.iter().copied().map(entry).collect::<Result<_>>()?;
        Ok(CudaPairs {
            slots: pairs.to_vec(),
            on_device: self.upload_indices(entries.as_flattened())?,
        })
    }

    /// `h = x · Aᵀ` of each row's pair; what is then to be added to the linear's product, nothing where there is no pair.
    /// Pairs and x were checked.
    pub(super) fn lora_h_by_row<'a>(
        &self,
        lora: &'a mut LoraByRow<'_, Self>,
        x: &CudaAct,
        [m, k]: [usize; 2],
    ) -> Result<Option<PairEnd<'a>>> {
        let rank = lora.pairs.rank_max();
        if rank == 0 {
            return Ok(None);
        }
        let [m_int, rank_int, k_int] = dims(OP, [m, rank, k])?;
        let (kernel, blocks_y) = rows(OP, [Kernel::LoraHRows16, Kernel::LoraHRows32], m)?;
        let blocks = rank_blocks(OP, rank, ranks_of_block(kernel))? as usize;
        let blocks = check::size(OP, "pairs", &[blocks, lora.pairs.slots.len()])?;
        let grid = (check::blocks(OP, "pairs", blocks)?, blocks_y);
        let (several, of_row) = (&lora.pairs.on_device, lora.of_row.on_device());
        let launch = self.launch_grid(OP, kernel, grid, PRODUCT_THREADS);
        let launch = launch.with(&mut *lora.h).with(x).with(lora.params);
        let mask = mask(OP, None)?;
        let launch = launch.with(&mask).with(&m_int).with(&rank_int).with(&k_int);
        let launch = launch.with(several).with(of_row);
        // SAFETY: `h` holds m rows of the largest rank, `x` m rows of k; `params` holds the factors of all pairs, and
        // `of_row` m numbers of pairs, or of none.
        unsafe { launch.run() }?;
        Ok(Some(PairEnd {
            h: lora.h,
            b: lora.params.slice(..),
            scale: 0.0,
            rank: rank_int,
            by_row: Some([several, of_row]),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_laid_out_as_the_kernels_read_it() {
        let slot = LoraSlot {
            a_offset: 0x1_0000_0002,
            b_offset: 0x3_0000_0004,
            rank: 5,
            n_in: 1,
            n_out: 1,
            scale: 0.5,
        };
        assert_eq!(entry(Some(slot)).unwrap(), [2, 1, 4, 3, 0x3f00_0000, 5]);
        assert_eq!(entry(None).unwrap(), [0; PAIR_WORDS]);
    }
}
