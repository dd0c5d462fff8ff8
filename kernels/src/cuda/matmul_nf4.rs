//! NF4 weights on the device, and their products. The kernels, and the packed form, are `kernels/cuda/matmul_nf4.cu`.
//!
//! Invariant: a packed weight holds the codes and scales of its [`Nf4Matrix`], bit for bit, in another order; doubly
//! quantized scales are expanded to f32 when it is packed.
#![expect(unsafe_code, reason = "launching a kernel")]

use super::linear::PairEnd;
use super::product::{GRID_Y_MAX, dims};
use super::{Cuda, CudaAct, CudaF32, CudaIndices, Kernel, check};
use crate::error::Result;
use crate::nf4::{BLOCK_LEN, Nf4Matrix, code_at};

/// Rows of W in a tile.
pub(super) const TILE_N: usize = 32;
/// Columns of W in a tile: a scale's block.
pub(super) const TILE_K: usize = BLOCK_LEN;
/// Units of a tile.
pub(super) const TILE_UNITS: usize = 64;
/// 32-bit words of a unit: its rows, 8 codes each.
pub(super) const UNIT_WORDS: usize = 4;

/// An NF4 weight `[N, K]` on the device.
#[derive(Debug)]
pub struct CudaNf4 {
    pub(super) n: usize,
    pub(super) k: usize,
    /// Tiles of `TILE_UNITS` units of `UNIT_WORDS` words.
    pub(super) units: CudaIndices,
    /// `[K / TILE_K, N rounded up to TILE_N]`.
    pub(super) scales: CudaF32,
}

impl CudaNf4 {
    /// `(N, K)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }
}

/// The packed codes and scales of `matrix`. Rows beyond N have scale 0.
fn pack(matrix: &Nf4Matrix) -> Result<(Vec<u32>, Vec<f32>)> {
    let (n, k) = matrix.shape();
    let (codes, block_scales) = (matrix.codes(), matrix.block_scales());
    let (n_padded, n_tiles) = (n.next_multiple_of(TILE_N), k / TILE_K);
    let n_words = check::size(
        "load_weight",
        "units",
        &[n_padded / TILE_N, n_tiles, TILE_UNITS, UNIT_WORDS],
    )?;
    let mut units = vec![0u32; n_words];
    let mut scales = vec![0f32; n_tiles * n_padded];
    for row in 0..n {
        for tile in 0..n_tiles {
            scales[tile * n_padded + row] = block_scales[row * n_tiles + tile];
            let first_unit = ((row / TILE_N) * n_tiles + tile) * TILE_UNITS + row / 4 % 8 * 8;
            for unit in 0..8 {
                let begin = row * k + tile * TILE_K + unit * 8;
                let word = (0..8).fold(0, |word, c| {
                    word | u32::from(code_at(codes, begin + c)) << (4 * c)
                });
                units[(first_unit + unit) * UNIT_WORDS + row % 4] = word;
            }
        }
    }
    Ok((units, scales))
}

impl Cuda {
    /// Packs a matrix onto the device. Fails when its rows are not whole blocks of 64: the CPU takes those.
    pub(super) fn load_nf4(&self, matrix: &Nf4Matrix) -> Result<CudaNf4> {
        let (n, k) = matrix.shape();
        let expected = "a multiple of 64 on CUDA; run this model on the CPU";
        check::setting(
            "load_weight",
            "the number of input features",
            expected,
            k.is_multiple_of(TILE_K),
        )?;
        let (units, scales) = pack(matrix)?;
        Ok(CudaNf4 {
            n,
            k,
            units: self.upload_indices(&units)?,
            scales: self.upload_f32(&scales)?,
        })
    }

    /// `y [M, N] = x [M, K] · Wᵀ`, and what a pair adds.
    pub(super) fn forward_nf4(
        &self,
        y: &mut CudaAct,
        x: &CudaAct,
        weight: &CudaNf4,
        pair: Option<&PairEnd<'_>>,
        m: usize,
    ) -> Result<()> {
        const OP: &str = "matmul_nf4";
        let (n, k) = weight.shape();
        check::holds(OP, "y", y, &[m, n])?;
        check::holds(OP, "x", x, &[m, k])?;
        let kernels = [Kernel::MatmulNf4Rows16, Kernel::MatmulNf4Rows32];
        let [m_int, n_int, k_int] = dims(OP, [m, n, k])?;
        let launch = self.product(OP, kernels, m, n.div_ceil(TILE_N))?;
        let launch = launch.with(y).with(x).with(&weight.units).with(&weight.scales);
        let launch = launch.with(&m_int).with(&n_int).with(&k_int).with_pair(pair);
        // SAFETY: `y` holds m rows of n, `x` m rows of k; the weight was packed for n and k; the pair was checked.
        unsafe { launch.run() }
    }

    /// `logits [M, N] = x [M, K] · Wᵀ` in f32.
    pub(super) fn logits_nf4(
        &self,
        logits: &mut CudaF32,
        x: &CudaAct,
        head: &CudaNf4,
        m: usize,
    ) -> Result<()> {
        const OP: &str = "logits";
        let (n, k) = head.shape();
        check::holds(OP, "logits", logits, &[m, n])?;
        check::holds(OP, "x", x, &[m, k])?;
        let kernels = [Kernel::LogitsNf4Rows16, Kernel::LogitsNf4Rows32];
        let [m_int, n_int, k_int] = dims(OP, [m, n, k])?;
        let launch = self.product(OP, kernels, m, n.div_ceil(TILE_N))?;
        let launch = launch.with(logits).with(x).with(&head.units).with(&head.scales);
        let launch = launch.with(&m_int).with(&n_int).with(&k_int);
        // SAFETY: `logits` holds m rows of n, `x` m rows of k; the head was packed for n and k.
        unsafe { launch.run() }
    }

    /// `dx [M, K] += dy [M, N] · W`.
    pub(super) fn matmul_nf4_backward(
        &self,
        dx: &mut CudaAct,
        dy: &CudaAct,
        weight: &CudaNf4,
        m: usize,
    ) -> Result<()> {
        const OP: &str = "matmul_nf4_backward";
        let (n, k) = weight.shape();
        check::holds(OP, "dx", dx, &[m, k])?;
        check::holds(OP, "dy", dy, &[m, n])?;
        let kernels = [Kernel::MatmulNf4BackwardRows16, Kernel::MatmulNf4BackwardRows32];
        let [m_int, n_int, k_int] = dims(OP, [m, n, k])?;
        let launch = self.product(OP, kernels, m, k / TILE_K)?;
        let launch = launch.with(dx).with(dy).with(&weight.units).with(&weight.scales);
        let launch = launch.with(&m_int).with(&n_int).with(&k_int);
        // SAFETY: `dx` holds m rows of k, `dy` m rows of n; the weight was packed for n and k.
        unsafe { launch.run() }
    }

    /// `w [N, K] = W`, each value rounded to bf16.
    pub fn dequantize_nf4(&self, w: &mut CudaAct, weight: &CudaNf4) -> Result<()> {
        const OP: &str = "dequantize_nf4";
        let (n, k) = weight.shape();
        check::holds(OP, "w", w, &[n, k])?;
        let blocks_y = n.div_ceil(TILE_N);
        check::setting(
            OP,
            "the number of rows",
            "at most 2,097,120",
            blocks_y <= GRID_Y_MAX,
        )?;
        let grid = (check::blocks(OP, "columns", k / TILE_K)?, blocks_y as u32);
        let [n_int, k_int] = [check::int(OP, "N", n)?, check::int(OP, "K", k)?];
        let launch = self.launch_grid(OP, Kernel::DequantizeNf4, grid, TILE_UNITS as u32);
        let launch = launch.with(w).with(&weight.units).with(&weight.scales);
        let launch = launch.with(&n_int).with(&k_int);
        // SAFETY: `w` holds n rows of k; the weight was packed for n and k.
        unsafe { launch.run() }
    }
}
