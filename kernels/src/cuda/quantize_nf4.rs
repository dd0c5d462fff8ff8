//! Quantizing a weight to NF4 on the device. The kernels are `kernels/cuda/quantize_nf4.cu`.
//!
//! Invariant: what is packed is what packing the CPU's [`Nf4Matrix`](crate::Nf4Matrix) gives, bit for bit. The scales
//! of double quantization go through the host, whose mean and map they need: a 64th of the values.
#![expect(unsafe_code, reason = "launching a kernel")]

use cudarc::driver::CudaSlice;
use rayon::prelude::*;

use super::matmul_nf4::{CudaNf4, TILE_K, TILE_N, TILE_UNITS, UNIT_WORDS};
use super::product::GRID_Y_MAX;
use super::{Cuda, CudaWeight, Kernel, check};
use crate::error::Result;
use crate::nf4::{DoubleQuant, twice_quantized};
use crate::weight::{BlockMatrix, Format, HostWeight};

const OP: &str = "load_weight_nf4";

/// Bytes of values that are on the device at a time: enough to keep the transfer busy, little beside any model.
const STAGED_BYTES: usize = 64 << 20;

impl Cuda {
    /// See [`Backend::load_weight_nf4`](crate::Backend::load_weight_nf4).
    pub fn load_weight_nf4(&self, weight: HostWeight, double_quant: DoubleQuant) -> Result<CudaWeight> {
        self.load_weight_nf4_by(weight, double_quant, STAGED_BYTES)
    }

    /// The same with at most so many bytes of values on the device at a time, but always a whole row of tiles.
    pub fn load_weight_nf4_by(
        &self,
        weight: HostWeight,
        double_quant: DoubleQuant,
        staged_bytes: usize,
    ) -> Result<CudaWeight> {
        let blocks = match weight {
            HostWeight::Nf4(_) => return self.load_weight(weight),
            HostWeight::Blocks(blocks) => blocks,
        };
        let loaded = self.quantize_nf4(&blocks, double_quant, staged_bytes)?;
        blocks.release();
        Ok(CudaWeight::Nf4(loaded))
    }

    fn quantize_nf4(
        &self,
        blocks: &BlockMatrix,
        double_quant: DoubleQuant,
        staged_bytes: usize,
    ) -> Result<CudaNf4> {
        let (n, k) = blocks.shape();
        check::setting(
            OP,
            "the number of input features",
            "a multiple of 64 on CUDA; run this model on the CPU",
            k.is_multiple_of(TILE_K),
        )?;
        let (n_padded, n_tiles) = (n.next_multiple_of(TILE_N), k / TILE_K);
        let n_words = check::size(OP, "units", &[n_padded / TILE_N, n_tiles, TILE_UNITS, UNIT_WORDS])?;
        let mut packed = CudaNf4 {
            n,
            k,
            units: self.alloc_indices(n_words)?,
            scales: self.alloc_f32(check::size(OP, "scales", &[n_tiles, n_padded])?)?,
        };
        let (format, kernel) = match blocks.format() {
            Format::Bf16 => (Format::Bf16, Kernel::QuantizeNf4Bf16),
            _ => (Format::F32, Kernel::QuantizeNf4F32),
        };
        let row_bytes = k * format.block_bytes();
        let tile_rows = staged_bytes / (TILE_N * row_bytes).max(1);
        let tile_rows = tile_rows.clamp(1, GRID_Y_MAX);
        let n_rows = (tile_rows * TILE_N).min(n);
        let mut staged: CudaSlice<u8> = self.alloc_bytes(n_rows * row_bytes)?;
        let mut decoded = Vec::new();
        for first in (0..n).step_by(tile_rows * TILE_N) {
            let rows = first..(first + tile_rows * TILE_N).min(n);
            let bytes = match blocks.format() == format {
                true => &blocks.data()[rows.start * row_bytes..rows.end * row_bytes],
                false => {
                    decode(blocks, rows.clone(), &mut decoded);
                    bytemuck::cast_slice(&decoded)
                }
            };
            self.write_bytes(OP, &mut staged, bytes)?;
            self.quantize_rows(kernel, &mut packed, &staged, rows)?;
        }
        if double_quant == DoubleQuant::Yes {
            self.quantize_scales(&mut packed)?;
        }
        Ok(packed)
    }

    /// Quantizes the rows whose values are staged; the first begins a row of tiles.
    fn quantize_rows(
        &self,
        kernel: Kernel,
        packed: &mut CudaNf4,
        staged: &CudaSlice<u8>,
        rows: std::ops::Range<usize>,
    ) -> Result<()> {
        let (n, k) = packed.shape();
        let grid = (
            check::blocks(OP, "columns", k / TILE_K)?,
            rows.len().div_ceil(TILE_N) as u32, // at most `GRID_Y_MAX`
        );
        let [n_int, k_int] = [check::int(OP, "N", n)?, check::int(OP, "K", k)?];
        let first_tile = check::int(OP, "N", rows.start / TILE_N)?;
        check::int(OP, "N", n.next_multiple_of(TILE_N))?;
        let launch = self.launch_grid(OP, kernel, grid, TILE_UNITS as u32);
        let launch = launch
            .with(&mut packed.units)
            .with(&mut packed.scales)
            .with(staged);
        let launch = launch.with(&first_tile).with(&n_int).with(&k_int);
        // SAFETY: `staged` holds the values of the rows in the kernel's type; the packed buffers were made for n and k.
        unsafe { launch.run() }
    }

    /// Quantizes the scales too: what is kept are the values that they stand for then.
    fn quantize_scales(&self, packed: &mut CudaNf4) -> Result<()> {
        let (n, n_tiles) = (packed.n, packed.k / TILE_K);
        let n_padded = n.next_multiple_of(TILE_N);
        let mut scales = vec![0f32; n_tiles * n_padded];
        self.read_f32(&packed.scales, 0, &mut scales)?;
        // in the order of the flattened matrix: row after row
        let mut flat = vec![0f32; n * n_tiles];
        for (row, of_row) in flat.chunks_mut(n_tiles.max(1)).enumerate() {
            for (tile, scale) in of_row.iter_mut().enumerate() {
                *scale = scales[tile * n_padded + row];
            }
        }
        let flat = twice_quantized(&flat);
        for (row, of_row) in flat.chunks(n_tiles.max(1)).enumerate() {
            for (tile, scale) in of_row.iter().enumerate() {
                scales[tile * n_padded + row] = *scale;
            }
        }
        self.write_f32(&mut packed.scales, 0, &scales)
    }

    /// What a packed weight holds: its words of codes and its scales, in the order of the device. Waits.
    pub fn read_nf4(&self, packed: &CudaNf4) -> Result<(Vec<u32>, Vec<f32>)> {
        let (mut units, mut scales) = (vec![0; packed.units.len()], vec![0.0; packed.scales.len()]);
        let all = 0..units.len();
        self.read("read_nf4", &packed.units, all, &mut units)?;
        self.read_f32(&packed.scales, 0, &mut scales)?;
        Ok((units, scales))
    }
}

/// The values of the rows, on all threads.
fn decode(blocks: &BlockMatrix, rows: std::ops::Range<usize>, out: &mut Vec<f32>) {
    let (_, k) = blocks.shape();
    out.resize(rows.len() * k, 0.0);
    // a run of tile rows is some microseconds of work
    out.par_chunks_mut((TILE_N * k).max(1))
        .enumerate()
        .for_each(|(index, out)| blocks.decode_rows(rows.start + index * TILE_N, out));
}
