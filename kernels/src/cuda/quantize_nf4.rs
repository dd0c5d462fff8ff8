//! Quantizing a weight to NF4 on the device. The kernels are `kernels/cuda/quantize_nf4.cu`.
//!
//! Invariant: what is packed is what packing the CPU's [`Nf4Matrix`](crate::Nf4Matrix) gives, bit for bit. The scales
//! of double quantization go through the host, whose mean and map they need: a 64th of the values.
#![expect(unsafe_code, reason = "launching a kernel")]

use cudarc::driver::CudaSlice;
use rayon::prelude::*;

use super::matmul_nf4::{CudaNf4, DeviceScales, TILE_K, TILE_N, TILE_UNITS, UNIT_WORDS};
use super::product::GRID_Y_MAX;
use super::{Cuda, CudaF32, CudaIndices, CudaWeight, Kernel, check};
use crate::error::Result;
use crate::nf4::{DoubleQuant, quantize_scales};
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
        let mut units = self.alloc_indices(n_words)?;
        let mut scales = self.alloc_f32(check::size(OP, "scales", &[n_tiles, n_padded])?)?;
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
            self.quantize_rows(kernel, [n, k], (&mut units, &mut scales), &staged, rows)?;
        }
        let scales = match double_quant {
            DoubleQuant::Yes => self.quantize_scales([n, k], &scales)?,
            DoubleQuant::No => DeviceScales::Plain(scales),
        };
        Ok(CudaNf4 { n, k, units, scales })
    }

    /// Quantizes the rows whose values are staged; the first begins a row of tiles.
    fn quantize_rows(
        &self,
        kernel: Kernel,
        [n, k]: [usize; 2],
        (units, scales): (&mut CudaIndices, &mut CudaF32),
        staged: &CudaSlice<u8>,
        rows: std::ops::Range<usize>,
    ) -> Result<()> {
        let grid = (
            check::blocks(OP, "columns", k / TILE_K)?,
            rows.len().div_ceil(TILE_N) as u32, // at most `GRID_Y_MAX`
        );
        let [n_int, k_int] = [check::int(OP, "N", n)?, check::int(OP, "K", k)?];
        let first_tile = check::int(OP, "N", rows.start / TILE_N)?;
        check::int(OP, "N", n.next_multiple_of(TILE_N))?;
        let launch = self.launch_grid(OP, kernel, grid, TILE_UNITS as u32);
        let launch = launch.with(units).with(scales).with(staged);
        let launch = launch.with(&first_tile).with(&n_int).with(&k_int);
        // SAFETY: `staged` holds the values of the rows in the kernel's type; the packed buffers were made for n and k.
        unsafe { launch.run() }
    }

    /// Quantizes the scales in their turn.
    fn quantize_scales(&self, [n, k]: [usize; 2], plain: &CudaF32) -> Result<DeviceScales> {
        let n_tiles = k / TILE_K;
        let n_padded = n.next_multiple_of(TILE_N);
        let mut scales = vec![0f32; n_tiles * n_padded];
        self.read_f32(plain, 0, &mut scales)?;
        // in the order of the flattened matrix: row after row
        let mut flat = vec![0f32; n * n_tiles];
        for (row, of_row) in flat.chunks_mut(n_tiles.max(1)).enumerate() {
            for (tile, scale) in of_row.iter_mut().enumerate() {
                *scale = scales[tile * n_padded + row];
            }
        }
        self.load_scales([n, k], &quantize_scales(&flat))
    }

    /// What a packed weight holds, in the order of the device: its words of codes, behind them those of quantized scales,
    /// and its floats. Waits.
    pub fn read_nf4(&self, packed: &CudaNf4) -> Result<(Vec<u32>, Vec<f32>)> {
        let words = |held: &CudaIndices| {
            let mut words = vec![0; held.len()];
            self.read("read_nf4", held, 0..words.len(), &mut words)?;
            Ok(words)
        };
        let floats = |held: &CudaF32| {
            let mut floats = vec![0.0; held.len()];
            self.read_f32(held, 0, &mut floats)?;
            Ok(floats)
        };
        let units = words(&packed.units)?;
        match &packed.scales {
            DeviceScales::Plain(scales) => Ok((units, floats(scales)?)),
            DeviceScales::Nested {
                codes,
                values,
                offset,
            } => {
                let mut values = floats(values)?;
                values.push(*offset);
                Ok(([units, words(codes)?].concat(), values))
            }
        }
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
