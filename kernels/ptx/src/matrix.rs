//! The tensor cores' product: `D [16, 8] = A [16, K] · B [K, 8] + C`.
//!
//! Invariant: fragments lie in registers as the PTX ISA draws them. Products are exact; their sum is taken in f64 and
//! rounded once with C, where hardware keeps fewer bits: bounds must allow for f32 sums.

use half::f16;

use crate::float::to_tf32;
use crate::instruction::MatrixType;
use crate::lanes::{Lanes, N_LANES};

/// Rows of A and D.
const M: usize = 16;
/// Columns of B and D.
const N: usize = 8;
/// The longest contraction.
const K_MAX: usize = 16;

/// The four registers of D.
pub(crate) fn multiply(
    ty: MatrixType,
    registers: &[Lanes],
    a: [u32; 4],
    b: [u32; 2],
    c: [u32; 4],
) -> [Lanes; 4] {
    let mut left = [[0f64; K_MAX]; M];
    let mut right = [[0f64; K_MAX]; N]; // by column
    let value = |register: u32, lane: usize| registers[register as usize][lane];
    for lane in 0..N_LANES {
        let (group, member) = (lane / 4, lane % 4);
        for (index, register) in a.iter().enumerate() {
            let row = group + 8 * (index % 2);
            unpack(ty, value(*register, lane), member, index / 2, &mut left[row]);
        }
        for (index, register) in b.iter().enumerate() {
            unpack(ty, value(*register, lane), member, index, &mut right[group]);
        }
    }
    let mut out = [[0; N_LANES]; 4];
    for lane in 0..N_LANES {
        let (group, member) = (lane / 4, lane % 4);
        for (index, out) in out.iter_mut().enumerate() {
            let (row, column) = (group + 8 * (index / 2), 2 * member + index % 2);
            let sum: f64 = left[row].iter().zip(&right[column]).map(|(x, y)| x * y).sum();
            let start = f32::from_bits(value(c[index], lane) as u32);
            out[lane] = u64::from(((sum + f64::from(start)) as f32).to_bits());
        }
    }
    out
}

/// Puts one register's values where they belong along the contraction: `half` is which half of it.
fn unpack(ty: MatrixType, raw: u64, member: usize, half: usize, row: &mut [f64; K_MAX]) {
    let low = raw as u16;
    let high = (raw >> 16) as u16;
    match ty {
        MatrixType::Bf16 => {
            let of = |bits: u16| f64::from(f32::from_bits(u32::from(bits) << 16));
            row[8 * half + 2 * member] = of(low);
            row[8 * half + 2 * member + 1] = of(high);
        }
        MatrixType::F16 => {
            row[8 * half + 2 * member] = f16::from_bits(low).to_f64();
            row[8 * half + 2 * member + 1] = f16::from_bits(high).to_f64();
        }
        // The hardware looks at the upper bits only.
        MatrixType::Tf32 => {
            let bits = to_tf32(f32::from_bits(raw as u32 & 0xffff_e000));
            row[4 * half + member] = f64::from(f32::from_bits(bits));
        }
    }
}
