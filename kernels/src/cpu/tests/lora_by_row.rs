//! LoRA pairs that differ from row to row: a row has the bits that it has with its pair alone.

use super::support::*;
use crate::golden::assert_same_bits;
use crate::{
    Backend, Compute, Cpu, DoubleQuant, HostWeight, LinearForward, Lora, LoraByRow, LoraForward, LoraSlot,
    NO_PAIR, Nf4Matrix,
};

/// Pairs of three adapters in one buffer, of different ranks, and one adapter without a pair here.
struct Pairs {
    n: usize,
    k: usize,
    params: Vec<f32>,
    slots: Vec<Option<LoraSlot>>,
}

impl Pairs {
    fn new(n: usize, k: usize) -> Self {
        let mut offset = 3;
        let mut slots = Vec::new();
        for (rank, scale) in [(8, 2.0), (0, 0.0), (5, 0.5), (33, 1.0)] {
            let slot = LoraSlot {
                a_offset: offset,
                b_offset: offset + rank * k,
                rank,
                n_in: k,
                n_out: n,
                scale,
            };
            offset = slot.b_offset + rank * n;
            slots.push((rank > 0).then_some(slot));
        }
        Self {
            n,
            k,
            params: values(2, offset),
            slots,
        }
    }

    /// `y` of each row as it is where all rows have this pair.
    fn alone(&self, cpu: &Cpu, weight: &HostWeight, x: &[f32], pair: u32) -> Vec<f32> {
        let m = x.len() / self.k;
        let (mut y, mut h) = (vec![1.0; m * self.n], vec![0.0; m * 33]);
        let slot = self.slots.get(pair as usize).copied().flatten();
        let linear = LinearForward {
            y: &mut y,
            weight: &cpu.load_weight(weight.clone()).unwrap(),
            lora: slot.map(|slot| {
                Lora::One(LoraForward {
                    h: &mut h,
                    params: &self.params,
                    slot,
                    dropout: None,
                })
            }),
        };
        cpu.linears(&x.to_vec(), &mut [linear], m).unwrap();
        y
    }

    /// `y` of rows that have these pairs, beside a linear that has none.
    fn by_row(&self, cpu: &Cpu, weight: &HostWeight, x: &[f32], of_row: &[u32]) -> crate::Result<Vec<f32>> {
        let m = of_row.len();
        let mut ys = [vec![1.0; m * self.n], vec![1.0; m * self.n]];
        let mut h = vec![0.0; m * 33];
        let weight = cpu.load_weight(weight.clone())?;
        let [with, without] = &mut ys;
        let with = LinearForward {
            y: with,
            weight: &weight,
            lora: Some(Lora::ByRow(LoraByRow {
                h: &mut h,
                params: &self.params,
                pairs: &cpu.upload_pairs(&self.slots)?,
                of_row: &of_row.to_vec(),
            })),
        };
        let without = LinearForward {
            y: without,
            weight: &weight,
            lora: None,
        };
        cpu.linears(&x.to_vec(), &mut [without, with], m)?;
        let [with, _] = ys;
        Ok(with)
    }
}

fn check(cpu: &Cpu, weight: &HostWeight, of_row: &[u32]) {
    let (n, k) = weight.shape();
    let pairs = Pairs::new(n, k);
    let x = values(1, of_row.len() * k);
    let got = pairs.by_row(cpu, weight, &x, of_row).unwrap();
    for pair in [0, 1, 2, 3, NO_PAIR] {
        let alone = pairs.alone(cpu, weight, &x, pair);
        let rows = alone.chunks_exact(n).zip(got.chunks_exact(n)).zip(of_row);
        for ((alone, got), _) in rows.filter(|(_, of_row)| **of_row == pair) {
            assert_same_bits(got, alone);
        }
    }
}

/// Some rows in an order that no run begins at a multiple of anything; of each pair, of none, and of one that is not here.
const MIXED: [u32; 29] = [
    2, 2, 2, NO_PAIR, 0, 0, 3, 2, 1, 1, 0, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, NO_PAIR, 0,
];

#[test]
fn a_row_is_what_it_is_with_its_pair_alone() {
    let nf4 = |n: usize, k: usize| {
        HostWeight::Nf4(Nf4Matrix::quantize(n, k, &values(3, n * k), DoubleQuant::Yes).unwrap())
    };
    let mixes: [&[u32]; 5] = [&[3], &[NO_PAIR; 4], &[0, 3], &[2; 30], &MIXED];
    for compute in [Compute::F32, Compute::Bf16, Compute::Int16] {
        for cpu in backends() {
            let cpu = cpu.with_compute(compute);
            for mix in mixes {
                check(&cpu, &nf4(40, 128), mix);
                check(&cpu, &nf4(33, 65), mix);
                check(
                    &cpu,
                    &HostWeight::from_f32(7, 31, &values(4, 7 * 31)).unwrap(),
                    mix,
                );
            }
        }
    }
}

#[test]
fn a_negative_zero_of_a_row_without_a_pair_stays_one() {
    let zero = HostWeight::from_f32(2, 3, &[-0.0; 6]).unwrap();
    let pairs = Pairs::new(2, 3);
    let x = [1.0; 9];
    let got = pairs.by_row(&cpu(), &zero, &x, &[0, NO_PAIR, 0]).unwrap();
    let base = pairs.alone(&cpu(), &zero, &x, NO_PAIR);
    assert_same_bits(&got[2..4], &base[2..4]);
}

#[test]
fn numbers_that_are_no_pairs_are_refused() {
    let weight = HostWeight::from_f32(2, 3, &[1.0; 6]).unwrap();
    let pairs = Pairs::new(2, 3);
    let said = pairs
        .by_row(&cpu(), &weight, &[1.0; 6], &[0, 4])
        .unwrap_err()
        .to_string();
    assert!(said.contains("of_row"), "{said}");
    let mut other = Pairs::new(2, 3);
    other.slots[2] = other.slots[2].map(|slot| LoraSlot { n_in: 4, ..slot });
    let said = other
        .by_row(&cpu(), &weight, &[1.0; 6], &[2, 2])
        .unwrap_err()
        .to_string();
    assert!(said.contains("n_in of the pair"), "{said}");
}
