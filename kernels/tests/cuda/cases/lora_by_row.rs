//! Linears whose rows have pairs of different adapters beside them.
//!
//! Invariant: beside the CPU's result, the very bits that the device gives a row with its pair alone, by the kernels for
//! every card.

use llamaduo_kernels::{
    Backend, Cpu, Cuda, Error, HostWeight, LinearForward, Lora, LoraByRow, LoraForward, LoraSlot, NO_PAIR,
};

use super::products::{SAME_WEIGHTS, product, weight};
use crate::case::{Case, EXACT, Output, activations, numbers};

/// Ranks of the adapters: of no whole fragment, of several blocks of few ranks, of more than one block of 32, of more
/// steps than a block has warps; 0 of one that has no pair here.
const RANKS: [usize; 5] = [5, 0, 16, 33, 80];

/// A linear of M rows.
#[derive(Clone, Copy, Debug)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    is_nf4: bool,
}

/// What is asked for the linears.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Linears,
    LinearsOfDocuments,
}

impl Asked {
    fn run<B: Backend>(
        self,
        backend: &B,
        x: &B::Act,
        linear: LinearForward<'_, B>,
        m: usize,
    ) -> Result<(), Error> {
        match self {
            Self::Linears => backend.linears(x, &mut [linear], m),
            Self::LinearsOfDocuments => backend.linears_of_documents(x, &mut [linear], m),
        }
    }
}

/// How rows have their pairs.
#[derive(Clone, Copy, Debug)]
enum Mix {
    /// Each another than its neighbours.
    Alternating,
    /// One after another, as generation has them.
    Sorted,
    /// All but the last none.
    Last,
}

impl Mix {
    fn of_row(self, m: usize) -> Vec<u32> {
        const NUMBERS: [u32; 6] = [3, 0, NO_PAIR, 4, 1, 2];
        let of_row = (0..m).map(|row| match self {
            Self::Alternating => NUMBERS[(row * 7 + row / 6) % 6],
            Self::Sorted => NUMBERS[row * 6 / m],
            Self::Last if row + 1 == m => 2,
            Self::Last => NO_PAIR,
        });
        of_row.collect()
    }
}

fn slots(n: usize, k: usize) -> Vec<Option<LoraSlot>> {
    let mut offset = 1;
    let mut slots = Vec::new();
    for (rank, scale) in RANKS.into_iter().zip([0.5, 0.0, 0.25, 0.5, 0.125]) {
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
    slots
}

/// Those of documents, which Hopper leaves to the kernels for every card.
pub(crate) fn add_documents_to(cases: &mut Vec<Case>) {
    let (m, n, k, is_nf4) = (70, 40, 192, true);
    for mix in [Mix::Alternating, Mix::Last] {
        by_row(cases, Shape { m, n, k, is_nf4 }, mix, Asked::LinearsOfDocuments);
    }
}

pub(crate) fn add_to(cases: &mut Vec<Case>) {
    for (n, k) in [(33, 64), (40, 192)] {
        for m in [1, 2, 8, 9, 16, 17, 33, 65, 131] {
            for mix in [Mix::Alternating, Mix::Sorted, Mix::Last] {
                let is_nf4 = true;
                by_row(cases, Shape { m, n, k, is_nf4 }, mix, Asked::Linears);
            }
        }
    }
    // the only pair of a block is that of the row with which the second half of a warp's rows begins
    let (m, n, k, is_nf4) = (97, 33, 64, true);
    by_row(cases, Shape { m, n, k, is_nf4 }, Mix::Last, Asked::Linears);
    for (n, k) in [(1, 1), (31, 33), (40, 264)] {
        for m in [1, 2, 16, 17, 33] {
            for mix in [Mix::Alternating, Mix::Sorted, Mix::Last] {
                let is_nf4 = false;
                by_row(cases, Shape { m, n, k, is_nf4 }, mix, Asked::Linears);
            }
        }
    }
}

fn by_row(cases: &mut Vec<Case>, shape: Shape, mix: Mix, asked: Asked) {
    let Shape { m, n, k, is_nf4 } = shape;
    let form = if is_nf4 { "NF4" } else { "bf16" };
    let op = match asked {
        Asked::Linears => "linears",
        Asked::LinearsOfDocuments => "linears_of_documents",
    };
    cases.push(Case::new(
        format!("{op} with LoRA by row: {form}, M {m}, N {n}, K {k}, {mix:?}"),
        move |cpu, cuda| {
            let host = match is_nf4 {
                true => HostWeight::Nf4(weight(n, k)?),
                false => HostWeight::from_f32(n, k, &activations(50, n * k))?,
            };
            let (x, of_row, slots) = (activations(51, m * k), mix.of_row(m), slots(n, k));
            let n_params = RANKS.iter().map(|rank| rank * (n + k)).sum::<usize>() + 1;
            let params: Vec<f32> = numbers(52, n_params).iter().map(|value| value / 4.0).collect();
            let operands = Operands {
                x,
                of_row,
                slots,
                params,
            };
            let expected = operands.on_cpu(cpu, &host, shape, asked)?;
            let got = operands.on_device(cuda, &host, shape, asked)?;
            let alone = operands.alone(cuda, &host, shape)?;
            Ok(vec![
                Output {
                    what: "y",
                    expected,
                    got: got.clone(),
                    bound: if is_nf4 { product(k) } else { SAME_WEIGHTS },
                },
                Output {
                    what: "y beside others",
                    expected: alone,
                    got,
                    bound: EXACT,
                },
            ])
        },
    ));
}

struct Operands {
    x: Vec<f32>,
    of_row: Vec<u32>,
    slots: Vec<Option<LoraSlot>>,
    params: Vec<f32>,
}

impl Operands {
    fn on_cpu(
        &self,
        cpu: &Cpu,
        weight: &HostWeight,
        Shape { m, n, .. }: Shape,
        asked: Asked,
    ) -> Result<Vec<f32>, Error> {
        let (mut y, mut h) = (vec![0.0; m * n], vec![0.0; m * 80]);
        let linear = LinearForward {
            y: &mut y,
            weight: &cpu.load_weight(weight.clone())?,
            lora: Some(Lora::ByRow(LoraByRow {
                h: &mut h,
                params: &self.params,
                pairs: &cpu.upload_pairs(&self.slots)?,
                of_row: &self.of_row,
            })),
        };
        asked.run(cpu, &self.x, linear, m)?;
        Ok(y)
    }

    fn on_device(
        &self,
        cuda: &Cuda,
        weight: &HostWeight,
        Shape { m, n, .. }: Shape,
        asked: Asked,
    ) -> Result<Vec<f32>, Error> {
        let (mut y, mut h) = (cuda.alloc_act(m * n)?, cuda.alloc_f32(m * 80)?);
        let linear = LinearForward {
            y: &mut y,
            weight: &cuda.load_weight(weight.clone())?,
            lora: Some(Lora::ByRow(LoraByRow {
                h: &mut h,
                params: &cuda.upload_f32(&self.params)?,
                pairs: &cuda.upload_pairs(&self.slots)?,
                of_row: &cuda.upload_u32(&self.of_row)?,
            })),
        };
        asked.run(cuda, &cuda.upload_act(&self.x)?, linear, m)?;
        let mut got = vec![0.0; m * n];
        cuda.read_act(&y, 0, &mut got)?;
        Ok(got)
    }

    /// Each row from a product in which all rows have its pair.
    fn alone(&self, cuda: &Cuda, weight: &HostWeight, Shape { m, n, .. }: Shape) -> Result<Vec<f32>, Error> {
        let weight = cuda.load_weight(weight.clone())?;
        let (x, params) = (cuda.upload_act(&self.x)?, cuda.upload_f32(&self.params)?);
        let mut alone = vec![0.0; m * n];
        let mut numbers = self.of_row.clone();
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            let (mut y, mut h) = (cuda.alloc_act(m * n)?, cuda.alloc_f32(m * 80)?);
            let slot = self.slots.get(number as usize).copied().flatten();
            let pair = slot.map(|slot| {
                Lora::One(LoraForward {
                    h: &mut h,
                    params: &params,
                    slot,
                    dropout: None,
                })
            });
            let linear = LinearForward {
                y: &mut y,
                weight: &weight,
                lora: pair,
            };
            cuda.linears(&x, &mut [linear], m)?;
            let mut of_all = vec![0.0; m * n];
            cuda.read_act(&y, 0, &mut of_all)?;
            let rows = alone.chunks_exact_mut(n).zip(of_all.chunks_exact(n));
            for ((alone, of_all), _) in rows.zip(&self.of_row).filter(|(_, of_row)| **of_row == number) {
                alone.copy_from_slice(of_all);
            }
        }
        Ok(alone)
    }
}
