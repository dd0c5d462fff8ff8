//! LoRA beside a linear, and its gradients. The kernels are `kernels/cuda/lora.cu` and `lora_gradients.cu`.
//!
//! Invariant: what a call needs beside its buffers is allocated before its first launch: one that fails has written
//! nothing.
#![expect(unsafe_code, reason = "launching a kernel")]

use std::ops::Range;

use cudarc::driver::CudaView;

use super::launch::{DropoutMask, covering};
use super::linear::PairEnd;
use super::product::{PRODUCT_THREADS, dims, rows};
use super::{Cuda, CudaAct, CudaF32, Kernel, check};
use crate::backend::{Dropout, LoraForward, LoraSlot};
use crate::error::Result;

const OP_BACKWARD: &str = "lora_backward";
/// Rows whose gradients are added in one go, as in the kernels.
pub(super) const PART_ROWS: usize = 512;
/// Columns of a gradient's block, and of a block of dx.
const COLUMNS: usize = 64;
/// Ranks of a gradient's block, and of a block of h when rows are many.
const RANKS: usize = 32;
/// Ranks of a block of h when rows are few.
const FEW_RANKS: usize = 8;
/// Rows of a block of dx.
const DX_ROWS: usize = 128;

/// Where a pair is in the flat buffer.
struct Places {
    a: Range<usize>,
    b: Range<usize>,
}

fn places(op: &'static str, buffer: &CudaF32, slot: LoraSlot) -> Result<Places> {
    check::setting(op, "rank", "at least 1", slot.rank > 0)?;
    let place = |what, offset: usize, dims: [usize; 2]| {
        let end = offset.checked_add(check::size(op, what, &dims)?);
        let end = end.ok_or(crate::error::Error::Overflow { op, what })?;
        check::holds(op, what, buffer, &[end])?;
        Ok(offset..end)
    };
    Ok(Places {
        a: place("params for A", slot.a_offset, [slot.rank, slot.n_in])?,
        b: place("params for B", slot.b_offset, [slot.n_out, slot.rank])?,
    })
}

/// The mask as the kernels take it: a rate of 0 keeps all.
pub(super) fn mask(op: &'static str, dropout: Option<Dropout>) -> Result<DropoutMask> {
    let Dropout { rate, key } = dropout.unwrap_or(Dropout { rate: 0.0, key: 0 });
    check::setting(op, "dropout rate", "in [0, 1)", (0.0..1.0).contains(&rate))?;
    let factor = 1.0 / (1.0 - rate);
    Ok(DropoutMask { key, rate, factor })
}

/// Blocks of `ranks` ranks along the first axis.
pub(super) fn rank_blocks(op: &'static str, rank: usize, ranks: usize) -> Result<u32> {
    check::blocks(op, "ranks", rank.div_ceil(ranks))
}

/// Ranks that a block of one of the kernels of h makes.
pub(super) fn ranks_of_block(kernel: Kernel) -> usize {
    match kernel {
        Kernel::LoraHRows16 => FEW_RANKS,
        _ => RANKS,
    }
}

/// Fails unless the pair at `slot` fits a linear of these M, N, K.
pub(super) fn check_slot(
    op: &'static str,
    params: &CudaF32,
    slot: LoraSlot,
    [m, n, k]: [usize; 3],
) -> Result<()> {
    check::same(op, "n_in of the pair", slot.n_in, k)?;
    check::same(op, "n_out of the pair", slot.n_out, n)?;
    places(op, params, slot)?;
    dims(op, [m, slot.rank, k]).map(|_| ())
}

/// Fails unless the pair fits a linear of these M, N, K.
pub(super) fn check_pair(op: &'static str, pair: &LoraForward<'_, Cuda>, shape: [usize; 3]) -> Result<()> {
    check_slot(op, pair.params, pair.slot, shape)?;
    mask(op, pair.dropout)?;
    check::holds(op, "h", pair.h, &[shape[0], pair.slot.rank])
}

impl Cuda {
    /// `h = drop(x) · Aᵀ`; what is then to be added to the linear's product. The pair and x were checked.
    pub(super) fn lora_h<'a>(
        &self,
        pair: &'a mut LoraForward<'_, Self>,
        x: &CudaAct,
        m: usize,
    ) -> Result<PairEnd<'a>> {
        const OP: &str = "linears";
        let slot = pair.slot;
        let places = places(OP, pair.params, slot)?;
        let mask = mask(OP, pair.dropout)?;
        let [m_int, rank, k] = dims(OP, [m, slot.rank, slot.n_in])?;
        let (kernel, blocks_y) = rows(OP, [Kernel::LoraHRows16, Kernel::LoraHRows32], m)?;
        let grid = (rank_blocks(OP, slot.rank, ranks_of_block(kernel))?, blocks_y);
        let a = pair.params.slice(places.a);
        let launch = self.launch_grid(OP, kernel, grid, PRODUCT_THREADS);
        let launch = launch.with(&mut *pair.h).with(x).with(&a).with(&mask);
        let launch = launch.with(&m_int).with(&rank).with(&k);
        let launch = launch.with(&0u64).with(&0u64);
        // SAFETY: `h` holds m rows of rank, `x` m rows of n_in, `a` rank rows of n_in.
        unsafe { launch.run() }?;
        Ok(PairEnd {
            h: pair.h,
            b: pair.params.slice(places.b),
            scale: slot.scale,
            rank,
            by_row: None,
        })
    }

    /// See [`Backend::lora_backward`](crate::Backend::lora_backward).
    #[expect(clippy::too_many_arguments, reason = "one buffer per tensor of the formula")]
    pub fn lora_backward(
        &self,
        dx: Option<&mut CudaAct>,
        grads: &mut CudaF32,
        dy: &CudaAct,
        x: &CudaAct,
        h: &CudaF32,
        params: &CudaF32,
        slot: LoraSlot,
        dropout: Option<Dropout>,
        m: usize,
    ) -> Result<()> {
        const OP: &str = OP_BACKWARD;
        let LoraSlot {
            rank, n_in, n_out, ..
        } = slot;
        let places = places(OP, params, slot)?;
        self::places(OP, grads, slot)?;
        let mask = mask(OP, dropout)?;
        check::holds(OP, "dy", dy, &[m, n_out])?;
        check::holds(OP, "x", x, &[m, n_in])?;
        check::holds(OP, "h", h, &[m, rank])?;
        if let Some(dx) = dx.as_deref() {
            check::holds(OP, "dx", dx, &[m, n_in])?;
        }
        dims(OP, [m, rank, n_in.max(n_out)])?;
        rows(OP, [Kernel::LoraDh; 2], m)?;
        if m == 0 {
            return Ok(());
        }
        let part_len = check::size(OP, "A and B", &[rank, n_in.max(n_out)])?;
        let n_parts = m.div_ceil(PART_ROWS);
        let mut dh = self.scratch(check::size(OP, "dh", &[m, rank])?)?;
        let mut parts = self.scratch(check::size(OP, "parts", &[n_parts, part_len])?)?;

        self.lora_db(&mut parts, h, dy, slot, m)?;
        self.lora_add_parts(grads, places.b.clone(), &parts, slot.scale, n_parts)?;
        self.lora_dh(&mut dh, dy, &params.slice(places.b), slot, m)?;
        self.lora_da(&mut parts, &dh, x, mask, slot, m)?;
        self.lora_add_parts(grads, places.a.clone(), &parts, mask.factor, n_parts)?;
        match dx {
            Some(dx) => self.lora_dx(dx, &dh, &params.slice(places.a), mask, slot, m),
            None => Ok(()),
        }
    }

    /// `dh [M, R] = scale * dy · B`.
    fn lora_dh(
        &self,
        dh: &mut CudaF32,
        dy: &CudaAct,
        b: &CudaView<'_, f32>,
        slot: LoraSlot,
        m: usize,
    ) -> Result<()> {
        const OP: &str = OP_BACKWARD;
        let [m_int, rank, n] = dims(OP, [m, slot.rank, slot.n_out])?;
        let (kernel, blocks_y) = rows(OP, [Kernel::LoraDh; 2], m)?;
        let grid = (rank_blocks(OP, slot.rank, RANKS)?, blocks_y);
        let launch = self.launch_grid(OP, kernel, grid, PRODUCT_THREADS);
        let launch = launch.with(dh).with(dy).with(b).with(&slot.scale);
        let launch = launch.with(&m_int).with(&rank).with(&n);
        // SAFETY: `dh` holds m rows of rank, `dy` m rows of n_out, `b` n_out rows of rank.
        unsafe { launch.run() }
    }

    /// The parts of dB: `parts [P, N, R]`.
    fn lora_db(
        &self,
        parts: &mut CudaF32,
        h: &CudaF32,
        dy: &CudaAct,
        slot: LoraSlot,
        m: usize,
    ) -> Result<()> {
        const OP: &str = OP_BACKWARD;
        let [m_int, rank, n] = dims(OP, [m, slot.rank, slot.n_out])?;
        let grid = gradient_grid(slot.rank, slot.n_out, m)?;
        let launch = self.launch_grid(OP, Kernel::LoraDb, grid, PRODUCT_THREADS);
        let launch = launch.with(parts).with(h).with(dy);
        let launch = launch.with(&m_int).with(&rank).with(&n);
        // SAFETY: `parts` holds as many matrices as there are parts of m, `h` m rows of rank, `dy` m rows of n_out.
        unsafe { launch.run() }
    }

    /// The parts of dA: `parts [P, R, K]`.
    fn lora_da(
        &self,
        parts: &mut CudaF32,
        dh: &CudaF32,
        x: &CudaAct,
        mask: DropoutMask,
        slot: LoraSlot,
        m: usize,
    ) -> Result<()> {
        const OP: &str = OP_BACKWARD;
        let [m_int, rank, k] = dims(OP, [m, slot.rank, slot.n_in])?;
        let grid = gradient_grid(slot.rank, slot.n_in, m)?;
        let launch = self.launch_grid(OP, Kernel::LoraDa, grid, PRODUCT_THREADS);
        let launch = launch.with(parts).with(dh).with(x).with(&mask);
        let launch = launch.with(&m_int).with(&rank).with(&k);
        // SAFETY: `parts` holds as many matrices as there are parts of m, `dh` m rows of rank, `x` m rows of n_in.
        unsafe { launch.run() }
    }

    /// `grads[place] += factor * (the sum of the parts)`.
    fn lora_add_parts(
        &self,
        grads: &mut CudaF32,
        place: Range<usize>,
        parts: &CudaF32,
        factor: f32,
        n_parts: usize,
    ) -> Result<()> {
        const OP: &str = OP_BACKWARD;
        let len = place.len();
        let (len_int, parts_int) = (len as u64, check::int(OP, "parts", n_parts)?);
        let mut grads = grads.slice_mut(place);
        let launch = self.launch(OP, Kernel::LoraAddParts, covering(OP, len, 1)?);
        let launch = launch.with(&mut grads).with(parts).with(&factor);
        let launch = launch.with(&len_int).with(&parts_int);
        // SAFETY: the place holds `len` elements, `parts` n_parts times as many.
        unsafe { launch.run() }
    }

    /// `dx [M, K] += drop'(dh · A)`.
    fn lora_dx(
        &self,
        dx: &mut CudaAct,
        dh: &CudaF32,
        a: &CudaView<'_, f32>,
        mask: DropoutMask,
        slot: LoraSlot,
        m: usize,
    ) -> Result<()> {
        const OP: &str = OP_BACKWARD;
        let [m_int, rank, k] = dims(OP, [m, slot.rank, slot.n_in])?;
        let columns = check::blocks(OP, "columns", slot.n_in.div_ceil(COLUMNS))?;
        let grid = (columns, check::blocks(OP, "rows", m.div_ceil(DX_ROWS))?);
        let launch = self.launch_grid(OP, Kernel::LoraDx, grid, PRODUCT_THREADS);
        let launch = launch.with(dx).with(dh).with(a).with(&mask);
        let launch = launch.with(&m_int).with(&rank).with(&k);
        // SAFETY: `dx` holds m rows of n_in, `dh` m rows of rank, `a` rank rows of n_in.
        unsafe { launch.run() }
    }
}

/// Blocks of a gradient: columns and ranks along the first axis, parts along the second.
fn gradient_grid(rank: usize, width: usize, m: usize) -> Result<(u32, u32)> {
    const OP: &str = OP_BACKWARD;
    let tiles = check::size(OP, "columns", &[width.div_ceil(COLUMNS), rank.div_ceil(RANKS)])?;
    let parts = check::blocks(OP, "parts", m.div_ceil(PART_ROWS))?;
    Ok((check::blocks(OP, "columns", tiles)?, parts))
}
