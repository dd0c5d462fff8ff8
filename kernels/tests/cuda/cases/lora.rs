//! Linears with LoRA and dropout beside them, and their gradients.
//!
//! Invariant: see the table.

use llamaduo_kernels::{Backend, Dropout, Error, HostWeight, LinearForward, Lora, LoraForward, LoraSlot};

use super::products::{SAME_WEIGHTS, product, weight};
use crate::case::{Bound, Case, Output, activations, numbers};

/// A linear with its pair.
#[derive(Clone, Copy, Debug)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    rank: usize,
    /// Where A begins; B follows it. A multiple of 4 lets rows be read in pieces.
    a_offset: usize,
}

impl Shape {
    fn slot(self) -> LoraSlot {
        LoraSlot {
            a_offset: self.a_offset,
            b_offset: self.a_offset + self.rank * self.k,
            rank: self.rank,
            n_in: self.k,
            n_out: self.n,
            scale: 0.5,
        }
    }

    /// The flat buffer, with elements of others around the pair.
    fn params(self, seed: u64) -> Vec<f32> {
        let len = self.a_offset + self.rank * (self.k + self.n) + 3;
        numbers(seed, len).iter().map(|value| value / 4.0).collect()
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shape { m, n, k, rank, .. } = self;
        write!(f, "M {m}, N {n}, K {k}, R {rank}")
    }
}

const DROPOUT: Dropout = Dropout {
    rate: 0.3,
    key: 0x0123_4567_89ab_cdef,
};

/// An f32 operand is split in two bf16 that hold it to 2^-18, with errors of either sign; factors of `size` together, the
/// factor of dropout among them. 6 standard deviations, and a sum of f32 in another order.
fn split_sum(n_terms: usize, size: f64) -> Bound {
    Bound {
        absolute: 6.0 * size * 2f64.powi(-18) / 3f64.sqrt() * (n_terms as f64).sqrt() + 1e-6,
        relative: 1e-5,
    }
}

pub(crate) fn add_to(cases: &mut Vec<Case>) {
    // (N, K, R, where A begins): single elements, ranks of no whole fragment, rows that begin anywhere, and sizes with
    // work for every warp of a block
    let shapes = [
        (1, 1, 1, 0),
        (31, 33, 5, 2),
        (33, 31, 8, 0),
        (40, 264, 16, 4),
        (136, 40, 33, 1),
        (257, 136, 32, 8),
        (24, 72, 80, 0),
    ];
    for (n, k, rank, a_offset) in shapes {
        for m in [1, 16, 17, 33] {
            let shape = Shape {
                m,
                n,
                k,
                rank,
                a_offset,
            };
            linear(cases, shape, false, None);
            linear(cases, shape, false, Some(DROPOUT));
            backward(cases, shape, Some(DROPOUT));
        }
    }
    for (n, k, rank, a_offset) in [(31, 64, 8, 0), (33, 128, 5, 0), (40, 320, 32, 1), (64, 64, 80, 0)] {
        for m in [1, 8, 16, 17, 33, 65] {
            let shape = Shape {
                m,
                n,
                k,
                rank,
                a_offset,
            };
            linear(cases, shape, true, Some(DROPOUT));
        }
    }
    // rows beyond one block of dx, and beyond one part of the gradients
    for (m, n, k, rank) in [(257, 33, 40, 8), (513, 40, 33, 5), (2600, 3, 8, 1)] {
        let shape = Shape {
            m,
            n,
            k,
            rank,
            a_offset: 4,
        };
        backward(cases, shape, None);
        backward(cases, shape, Some(DROPOUT));
    }
}

fn linear(cases: &mut Vec<Case>, shape: Shape, is_nf4: bool, dropout: Option<Dropout>) {
    let Shape { m, n, k, rank, .. } = shape;
    let (form, drop) = (
        if is_nf4 { "NF4" } else { "bf16" },
        if dropout.is_some() { ", dropout" } else { "" },
    );
    cases.push(Case::new(
        format!("linears with LoRA: {form}, {shape}{drop}"),
        move |cpu, cuda| {
            let host = if is_nf4 {
                HostWeight::Nf4(weight(n, k)?)
            } else {
                HostWeight::from_f32(n, k, &activations(40, n * k))?
            };
            let (x, params, slot) = (activations(41, m * k), shape.params(42), shape.slot());
            let (mut expected_y, mut expected_h) = (vec![0.0; m * n], vec![0.0; m * rank]);
            let mut linears = [LinearForward {
                y: &mut expected_y,
                weight: &cpu.load_weight(host.clone())?,
                lora: Some(Lora::One(LoraForward {
                    h: &mut expected_h,
                    params: &params,
                    slot,
                    dropout,
                })),
            }];
            cpu.linears(&x, &mut linears, m)?;
            let (mut y, mut h) = (cuda.alloc_act(m * n)?, cuda.alloc_f32(m * rank)?);
            let linear = LinearForward {
                y: &mut y,
                weight: &cuda.load_weight(host)?,
                lora: Some(Lora::One(LoraForward {
                    h: &mut h,
                    params: &cuda.upload_f32(&params)?,
                    slot,
                    dropout,
                })),
            };
            cuda.linears(&cuda.upload_act(&x)?, &mut [linear], m)?;
            let (mut got_y, mut got_h) = (vec![0.0; m * n], vec![0.0; m * rank]);
            cuda.read_act(&y, 0, &mut got_y)?;
            cuda.read_f32(&h, 0, &mut got_h)?;
            Ok(vec![
                Output {
                    what: "h",
                    expected: expected_h,
                    got: got_h,
                    bound: split_sum(k, 0.64 / 4.0 / 0.7),
                },
                Output {
                    what: "y",
                    expected: expected_y,
                    got: got_y,
                    bound: if is_nf4 { product(k) } else { SAME_WEIGHTS },
                },
            ])
        },
    ));
}

fn backward(cases: &mut Vec<Case>, shape: Shape, dropout: Option<Dropout>) {
    let Shape { m, n, k, rank, .. } = shape;
    let drop = if dropout.is_some() { ", dropout" } else { "" };
    cases.push(Case::new(
        format!("lora_backward: {shape}{drop}"),
        move |cpu, cuda| -> Result<Vec<Output>, Error> {
            let (dx, dy, x) = (
                activations(43, m * k),
                activations(44, m * n),
                activations(45, m * k),
            );
            let (h, params, grads) = (numbers(46, m * rank), shape.params(47), shape.params(48));
            let slot = shape.slot();
            let (mut expected_dx, mut expected_grads) = (dx.clone(), grads.clone());
            cpu.lora_backward(
                Some(&mut expected_dx),
                &mut expected_grads,
                &dy,
                &x,
                &h,
                &params,
                slot,
                dropout,
                m,
            )?;
            let (mut on_device, mut sums) = (cuda.upload_act(&dx)?, cuda.upload_f32(&grads)?);
            let [dy, x] = [cuda.upload_act(&dy)?, cuda.upload_act(&x)?];
            let [h, params] = [cuda.upload_f32(&h)?, cuda.upload_f32(&params)?];
            let gradient = Some(&mut on_device);
            cuda.lora_backward(gradient, &mut sums, &dy, &x, &h, &params, slot, dropout, m)?;
            let (mut got_dx, mut got_grads) = (vec![0.0; dx.len()], vec![0.0; grads.len()]);
            cuda.read_act(&on_device, 0, &mut got_dx)?;
            cuda.read_f32(&sums, 0, &mut got_grads)?;
            // without a gradient of the input, those of the pair are the same
            let mut sums = cuda.upload_f32(&grads)?;
            cuda.lora_backward(None, &mut sums, &dy, &x, &h, &params, slot, dropout, m)?;
            let mut got_alone = vec![0.0; grads.len()];
            cuda.read_f32(&sums, 0, &mut got_alone)?;
            // dh is a sum over N itself
            let dh = 0.5 * 0.64 / 4.0 * (n as f64).sqrt() * 0.8 / 0.7;
            let bound = split_sum(m, 2.0 * dh.max(0.64));
            Ok(vec![
                Output {
                    what: "dx",
                    expected: expected_dx,
                    got: got_dx,
                    bound: SAME_WEIGHTS,
                },
                Output {
                    what: "grads",
                    expected: expected_grads,
                    got: got_grads.clone(),
                    bound,
                },
                Output {
                    what: "grads without dx",
                    expected: got_grads,
                    got: got_alone,
                    bound: crate::case::EXACT,
                },
            ])
        },
    ));
}
