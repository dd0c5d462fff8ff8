//! NF4 weights on the device, and their products. The kernels are `kernels/cuda/matmul_nf4.cu`, for many rows
//! `matmul_nf4_tiles.cu`, and for training on Hopper `matmul_nf4_hopper.cu` and `matmul_nf4_hopper_backward.cu`; the packed
//! form is in `nf4.cuh`.
//!
//! Invariant: a packed weight holds the codes and scales of its [`Nf4Matrix`], bit for bit, in another order: scales that
//! are quantized stay so. Which of the first two kernels makes a forward product follows from the number of rows, and changes
//! no bit of a row's result. Hopper's own add in another order: what they are called for, they are for any number of rows.
#![expect(unsafe_code, reason = "launching a kernel")]

use super::launch::Launch;
use super::linear::PairEnd;
use super::product::{BACKWARD_TILE, FORWARD_TILE, GRID_Y_MAX, HOPPER_TILE, dims};
use super::{Cuda, CudaAct, CudaF32, CudaIndices, Kernel, check};
use crate::error::Result;
use crate::nf4::{BLOCK_LEN, Nf4Matrix, Nf4Scales, SCALE_BLOCK_LEN, code_at, scale_values};

/// Rows of W in a tile.
pub(super) const TILE_N: usize = 32;
/// Columns of W in a tile: a scale's block.
pub(super) const TILE_K: usize = BLOCK_LEN;
/// Units of a tile.
pub(super) const TILE_UNITS: usize = 64;
/// 32-bit words of a unit: its rows, 8 codes each.
pub(super) const UNIT_WORDS: usize = 4;

/// Most rows that are left to the kernels for few. From about half a block of the other kernel on its tiles are worth
/// their multiplications; where the best place is, a card has yet to show.
const FEW_ROWS_MAX: usize = 64;

/// An NF4 weight `[N, K]` on the device.
#[derive(Debug)]
pub struct CudaNf4 {
    pub(super) n: usize,
    pub(super) k: usize,
    /// Tiles of `TILE_UNITS` units of `UNIT_WORDS` words.
    pub(super) units: CudaIndices,
    pub(super) scales: DeviceScales,
}

/// The scales, `[K / TILE_K, N rounded up to TILE_N]`.
#[derive(Debug)]
pub(super) enum DeviceScales {
    Plain(CudaF32),
    /// `map * factor + offset`, which the kernels compute with the CPU's two roundings.
    Nested {
        /// A byte each, four in a word.
        codes: CudaIndices,
        /// The map's values, then one factor for each [`SCALE_BLOCK_LEN`] scales in the order of the matrix.
        values: CudaF32,
        offset: f32,
    },
}

impl CudaNf4 {
    /// `(N, K)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }
}

impl<'a> Launch<'a> {
    /// The weight as a kernel's four parameters.
    fn with_nf4(self, weight: &'a CudaNf4) -> Self {
        let launch = self.with(&weight.units);
        match &weight.scales {
            DeviceScales::Plain(scales) => launch.with(scales).with(&0u64).with(&0f32),
            DeviceScales::Nested {
                codes,
                values,
                offset,
            } => launch.with(values).with(codes).with(offset),
        }
    }
}

/// The packed codes of `matrix`.
fn pack_units(matrix: &Nf4Matrix) -> Result<Vec<u32>> {
    let (n, k) = matrix.shape();
    let (codes, n_tiles) = (matrix.codes(), k / TILE_K);
    let dims = [n.div_ceil(TILE_N), n_tiles, TILE_UNITS, UNIT_WORDS];
    let mut units = vec![0u32; check::size("load_weight", "units", &dims)?];
    for row in 0..n {
        for tile in 0..n_tiles {
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
    Ok(units)
}

/// `[N, K / TILE_K]` as `[K / TILE_K, N rounded up to TILE_N]`, with zeros of no row.
fn by_tile<T: Copy + Default>(values: &[T], n: usize) -> Vec<T> {
    let n_tiles = values.len() / n.max(1);
    let n_padded = n.next_multiple_of(TILE_N);
    let mut turned = vec![T::default(); n_tiles * n_padded];
    for (row, values) in values.chunks_exact(n_tiles.max(1)).enumerate() {
        for (tile, &value) in values.iter().enumerate() {
            turned[tile * n_padded + row] = value;
        }
    }
    turned
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
        Ok(CudaNf4 {
            n,
            k,
            units: self.upload_indices(&pack_units(matrix)?)?,
            scales: self.load_scales([n, k], matrix.scales())?,
        })
    }

    /// Scales of a matrix `[N, K]`, in the order of its rows, as the kernels read them.
    pub(super) fn load_scales(&self, [n, k]: [usize; 2], scales: &Nf4Scales) -> Result<DeviceScales> {
        match scales {
            Nf4Scales::Plain(scales) => Ok(DeviceScales::Plain(self.upload_f32(&by_tile(scales, n))?)),
            Nf4Scales::Nested {
                codes,
                absmax,
                offset,
            } => {
                let words: Vec<u32> = by_tile(codes, n)
                    .as_chunks()
                    .0
                    .iter()
                    .map(|&four| u32::from_le_bytes(four))
                    .collect();
                // The kernels look up factors for rows up to the end of a tile.
                let n_factors = (n.next_multiple_of(TILE_N) * (k / TILE_K)).div_ceil(SCALE_BLOCK_LEN);
                let mut values = scale_values().to_vec();
                values.extend(absmax.iter());
                values.resize(scale_values().len() + n_factors, 0.0);
                Ok(DeviceScales::Nested {
                    codes: self.upload_indices(&words)?,
                    values: self.upload_f32(&values)?,
                    offset: *offset,
                })
            }
        }
    }

    /// A forward product of `m` rows by one of the kernels whose blocks make 8, 16, 32 and 128 rows.
    fn product_nf4(
        &self,
        op: &'static str,
        [rows_8, rows_16, rows_32, rows_128]: [Kernel; 4],
        m: usize,
        n: usize,
    ) -> Result<Launch<'_>> {
        if m > FEW_ROWS_MAX {
            return self.tiles(op, rows_128, [m, n], FORWARD_TILE);
        }
        let (kernel, rows, n_threads) = match m {
            0..=8 => (rows_8, 8, 256),
            9..=16 => (rows_16, 16, 256),
            _ => (rows_32, 32, 128),
        };
        let n_column_blocks = n.div_ceil(TILE_N);
        let expected = "no more than CUDA's grids hold; run this model on the CPU";
        check::setting(
            op,
            "the number of features",
            expected,
            n_column_blocks <= GRID_Y_MAX,
        )?;
        let grid = (m.div_ceil(rows) as u32, n_column_blocks as u32);
        Ok(self.launch_grid(op, kernel, grid, n_threads))
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
        let kernels = [
            Kernel::MatmulNf4Rows8,
            Kernel::MatmulNf4Rows16,
            Kernel::MatmulNf4Rows32,
            Kernel::MatmulNf4Rows128,
        ];
        let [m_int, n_int, k_int] = dims(OP, [m, n, k])?;
        let launch = self.product_nf4(OP, kernels, m, n)?;
        let launch = launch.with(y).with(x).with_nf4(weight);
        let launch = launch.with(&m_int).with(&n_int).with(&k_int).with_pair(pair);
        // SAFETY: `y` holds m rows of n, `x` m rows of k; the weight was packed for n and k; the pair was checked.
        unsafe { launch.run() }
    }

    /// A product `[M, COLUMNS]` by one of Hopper's own kernels, whose right operand has rows of `width`.
    fn hopper(
        &self,
        op: &'static str,
        kernel: Kernel,
        [m, n_columns]: [usize; 2],
        width: usize,
    ) -> Result<Launch<'_>> {
        // a thread counts the elements of its block's rows in 32 bits
        let expected = "at most 8,388,608 on Hopper; run this model on the CPU";
        check::setting(op, "the number of features", expected, width <= 1 << 23)?;
        self.tiles(op, kernel, [m, n_columns], HOPPER_TILE)
    }

    /// The same by Hopper's own kernel, for any number of rows. It knows one pair for all of them: others are left to the
    /// kernels for every card. Fails on another card.
    pub(super) fn forward_nf4_hopper(
        &self,
        y: &mut CudaAct,
        x: &CudaAct,
        weight: &CudaNf4,
        pair: Option<&PairEnd<'_>>,
        m: usize,
    ) -> Result<()> {
        const OP: &str = "matmul_nf4_hopper";
        if pair.is_some_and(|pair| pair.by_row.is_some()) {
            return self.forward_nf4(y, x, weight, pair, m);
        }
        let (n, k) = weight.shape();
        check::holds(OP, "y", y, &[m, n])?;
        check::holds(OP, "x", x, &[m, k])?;
        let [m_int, n_int, k_int] = dims(OP, [m, n, k])?;
        let launch = self.hopper(OP, Kernel::MatmulNf4Hopper, [m, n], k)?;
        let launch = launch.with(y).with(x).with_nf4(weight);
        let launch = launch.with(&m_int).with(&n_int).with(&k_int);
        let launch = launch.with_one_pair(pair);
        // SAFETY: `y` holds m rows of n, `x` m rows of k; the weight was packed for n and k; the pair was checked, and is
        // one for all rows, as the kernel's last four parameters have it.
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
        let kernels = [
            Kernel::LogitsNf4Rows8,
            Kernel::LogitsNf4Rows16,
            Kernel::LogitsNf4Rows32,
            Kernel::LogitsNf4Rows128,
        ];
        let [m_int, n_int, k_int] = dims(OP, [m, n, k])?;
        let launch = self.product_nf4(OP, kernels, m, n)?;
        let launch = launch.with(logits).with(x).with_nf4(head);
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
        let [m_int, n_int, k_int] = dims(OP, [m, n, k])?;
        let launch = match self.refusal(Kernel::MatmulNf4HopperBackward) {
            None => self.hopper(OP, Kernel::MatmulNf4HopperBackward, [m, k], n)?,
            Some(_) => self.tiles(OP, Kernel::MatmulNf4Backward, [m, k], BACKWARD_TILE)?,
        };
        let launch = launch.with(dx).with(dy).with_nf4(weight);
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
        let launch = launch.with(w).with_nf4(weight);
        let launch = launch.with(&n_int).with(&k_int);
        // SAFETY: `w` holds n rows of k; the weight was packed for n and k.
        unsafe { launch.run() }
    }
}
