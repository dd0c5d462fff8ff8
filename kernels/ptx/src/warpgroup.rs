//! The products of warpgroups: four warps, whose first is a multiple of four, and asynchronous.
//!
//! Invariant: a warp makes its own rows of a product when it issues it, in f64 rounded once as `matrix` does; that its three
//! neighbours issue the same is found at the next barrier, or when they leave.

use crate::descriptor::Descriptor;
use crate::execute::{Block, LaneResult};
use crate::instruction::Operation;
use crate::lanes::{Lanes, N_LANES, lanes_of};
use crate::products::Product;
use crate::report::{Fault, Problem};
use crate::warp::Warp;

/// Warps of a warpgroup.
const N_WARPS: usize = 4;
/// The contraction of one product.
const K: usize = 16;
/// Rows of the left operand that a warp has.
const ROWS: usize = 16;

impl Block<'_> {
    /// An instruction of products, for all lanes of a warp; `at` is its place.
    pub(crate) fn product(&mut self, warp: &mut Warp, operation: &Operation, at: usize) -> LaneResult<()> {
        let on_lane_0 = |problem: Problem| (0, problem);
        let mut descriptor = 0;
        match operation {
            Operation::ProductFence => warp.products.fence(),
            Operation::ProductBegin { sum, left, right } => {
                let descriptors = &warp.registers[*right as usize];
                descriptor = descriptors[0];
                if let Some(lane) = (0..N_LANES).find(|&lane| descriptors[lane] != descriptor) {
                    return Err((lane, Problem::PartedWarpgroup));
                }
                self.begin_product(warp, sum, *left, descriptor)
                    .map_err(on_lane_0)?;
            }
            Operation::ProductCommit => warp.products.commit(),
            Operation::ProductWait { n_left } => self.end_products(warp, *n_left).map_err(on_lane_0)?,
            _ => {}
        }
        warp.products.issued.push((at, descriptor));
        Ok(())
    }

    fn begin_product(
        &mut self,
        warp: &mut Warp,
        sum: &[u32],
        left: [u32; 4],
        descriptor: u64,
    ) -> Result<(), Problem> {
        let right = Descriptor::decode(descriptor)?;
        let n = sum.len() * 2;
        warp.products.begin(Product {
            right,
            n,
            registers: [sum, &left].concat(),
        })?;
        let mut columns = vec![[0f64; K]; n];
        for (row, column) in columns.iter_mut().enumerate() {
            for (piece, values) in column.chunks_exact_mut(K / 2).enumerate() {
                let visitor = warp.visitor(0, self.epoch);
                let bytes = self.shared.begin_product(right.address(row, piece), visitor)?;
                for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                    *value = of_bf16(u16::from_le_bytes([bytes[0], bytes[1]]));
                }
            }
        }
        let rows = rows_of(&left.map(|register| warp.registers[register as usize]));
        for (index, &register) in sum.iter().enumerate() {
            let sums = &mut warp.registers[register as usize];
            for (lane, value) in sums.iter_mut().enumerate() {
                let row = lane / 4 + 8 * (index % 4 / 2);
                let column = index / 4 * 8 + lane % 4 * 2 + index % 2;
                let product: f64 = rows[row].iter().zip(&columns[column]).map(|(a, b)| a * b).sum();
                let start = f64::from(f32::from_bits(*value as u32));
                *value = u64::from(((product + start) as f32).to_bits());
            }
        }
        Ok(())
    }

    fn end_products(&mut self, warp: &mut Warp, n_left: usize) -> Result<(), Problem> {
        for product in warp.products.wait(n_left) {
            for (row, piece) in (0..product.n).flat_map(|row| [(row, 0), (row, 1)]) {
                let visitor = warp.visitor(0, self.epoch);
                self.shared
                    .end_product(product.right.address(row, piece), visitor)?;
            }
        }
        Ok(())
    }

    /// Fails where a warp has not issued what its warpgroup has since the last barrier; a new account begins.
    pub(crate) fn compare_warpgroups(&self, warps: &mut [Warp]) -> Result<(), Fault> {
        for group in warps.chunks_mut(N_WARPS) {
            let (first, others) = group.split_at_mut(1);
            let expected = std::mem::take(&mut first[0].products.issued);
            let is_whole = others.len() == N_WARPS - 1 || expected.is_empty();
            for warp in others.iter_mut() {
                let issued = std::mem::take(&mut warp.products.issued);
                let parted = (0..issued.len().max(expected.len()))
                    .find(|&index| issued.get(index) != expected.get(index));
                if let Some(index) = parted {
                    let (at, _) = issued
                        .get(index)
                        .or(expected.get(index))
                        .copied()
                        .unwrap_or_default();
                    return Err(self.fault(at, warp.thread(0), Problem::PartedWarpgroup));
                }
            }
            if !is_whole {
                return Err(self.fault(expected[0].0, first[0].thread(0), Problem::PartedWarpgroup));
            }
        }
        Ok(())
    }

    /// `fence.proxy.async` of these lanes.
    pub(crate) fn proxy_fence(&mut self, warp: &Warp, active: u32) {
        for lane in lanes_of(active) {
            self.shared.fence(warp.visitor(lane, self.epoch));
        }
    }
}

fn of_bf16(bits: u16) -> f64 {
    f64::from(f32::from_bits(u32::from(bits) << 16))
}

/// A warp's rows of the left operand: register 0 has row `lane / 4` and columns `2 (lane % 4)` and the next, register 1 the
/// row 8 below, registers 2 and 3 the same 8 columns on.
fn rows_of(left: &[Lanes; 4]) -> [[f64; K]; ROWS] {
    let mut rows = [[0.0; K]; ROWS];
    for (index, lanes) in left.iter().enumerate() {
        for (lane, &value) in lanes.iter().enumerate() {
            let row = lane / 4 + 8 * (index % 2);
            let column = lane % 4 * 2 + 8 * (index / 2);
            rows[row][column] = of_bf16(value as u16);
            rows[row][column + 1] = of_bf16((value >> 16) as u16);
        }
    }
    rows
}
