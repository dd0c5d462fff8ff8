//! Products with a frozen weight `[N, K]`, with and without LoRA beside it, and the logits.
//!
//! Invariant: an element is one chain through the weight's inputs and then through its row's pair's ranks, as if the
//! pair's scaled `h` were R more features of the input.

mod by_row;

use super::gemm::{Block, Chains, Left, Link, Product, Right, Start, View};
use super::scratch::Scratch;
use super::{Cpu, CpuWeight, check, lora};
use crate::backend::{Dropout, LinearForward, Lora, LoraSlot};
use crate::error::Result;

const OP: &str = "linears";

/// A linear whose shapes were checked.
struct Linear<'a> {
    y: &'a mut [f32],
    weight: &'a CpuWeight,
    /// Of all rows.
    pair: Option<Pair<'a>>,
    /// Of rows that have pairs of their own.
    runs: Vec<by_row::Run<'a>>,
}

/// `A [R, K]` and `B [N, R]` beside a weight.
struct Pair<'a> {
    h: &'a mut [f32],
    a: &'a [f32],
    b: &'a [f32],
    rank: usize,
    scale: f32,
    dropout: Option<Dropout>,
}

/// See [`Backend::linears`](crate::backend::Backend::linears).
pub(super) fn forward(cpu: &Cpu, x: &[f32], linears: &mut [LinearForward<'_, Cpu>], m: usize) -> Result<()> {
    let Some(first) = linears.first() else {
        return Ok(());
    };
    let (_, k) = first.weight.shape();
    let x = check::part(OP, "x", x, &[m, k])?;
    let mut linears: Vec<Linear<'_>> = linears
        .iter_mut()
        .map(|linear| checked(linear, k, m))
        .collect::<Result<_>>()?;
    let packed = cpu.pack(View::rows(x, k), m, k);
    let pairs = linears.iter_mut().filter_map(|linear| linear.pair.as_mut());
    down(cpu, x, &packed, pairs.collect(), m);
    up(cpu, &packed, &mut linears, m);
    by_row::add(cpu, x, linears);
    Ok(())
}

fn checked<'a>(linear: &'a mut LinearForward<'_, Cpu>, k: usize, m: usize) -> Result<Linear<'a>> {
    let (n, n_in) = linear.weight.shape();
    check::same(OP, "K of the weights", n_in, k)?;
    let (mut pair, mut runs) = (None, Vec::new());
    match &mut linear.lora {
        Some(Lora::One(lora)) => {
            lora::check_rate(OP, lora.dropout)?;
            let h = check::part_mut(OP, "h", lora.h, &[m, lora.slot.rank])?;
            let of_all = Pair::new(h, lora.params, lora.slot, [n, k])?;
            pair = Some(Pair {
                dropout: lora.dropout,
                ..of_all
            });
        }
        Some(Lora::ByRow(lora)) => runs = by_row::runs(lora, [m, n, k])?,
        None => {}
    }
    Ok(Linear {
        y: check::part_mut(OP, "y", linear.y, &[m, n])?,
        weight: linear.weight,
        pair,
        runs,
    })
}

impl<'a> Pair<'a> {
    /// The pair at `slot`, without dropout. Fails when it does not fit a linear of these N and K.
    fn new(h: &'a mut [f32], params: &'a [f32], slot: LoraSlot, [n, k]: [usize; 2]) -> Result<Self> {
        check::same(OP, "n_in of the pair", slot.n_in, k)?;
        check::same(OP, "n_out of the pair", slot.n_out, n)?;
        let (a, b) = lora::factors(OP, params, slot)?;
        Ok(Self {
            h,
            a,
            b,
            rank: slot.rank,
            scale: slot.scale,
            dropout: None,
        })
    }

    /// `A` as the right operand of a product of rows of K.
    fn down(&self, k: usize) -> Right<'a> {
        Right::Floats(View::rows(self.a, k).transposed())
    }

    /// `B` as the right operand of a product of rows of R.
    fn up(&self) -> Right<'a> {
        Right::Floats(View::rows(self.b, self.rank).transposed())
    }

    /// `scale * h` of `m` rows.
    fn scaled<'h>(&'h self, cpu: &'h Cpu, m: usize) -> Left<'h> {
        cpu.pack_scaled(View::rows(self.h, self.rank), m, self.rank, self.scale)
    }
}

/// `h = drop(x) · Aᵀ` of every pair.
fn down(cpu: &Cpu, x: &[f32], packed: &Left<'_>, mut pairs: Vec<&mut Pair<'_>>, m: usize) {
    let k = x.len().checked_div(m).unwrap_or(0);
    let kept: Vec<Option<Scratch<'_>>> = pairs
        .iter()
        .map(|pair| lora::dropped(cpu, x, pair.dropout))
        .collect();
    let dropped: Vec<Option<Left<'_>>> = kept
        .iter()
        .map(|kept| {
            let kept = kept.as_ref()?;
            Some(cpu.pack(View::rows(kept, k), m, k))
        })
        .collect();
    let links: Vec<[Link<'_>; 1]> = pairs
        .iter()
        .zip(&dropped)
        .map(|(pair, dropped)| {
            [Link {
                left: dropped.as_ref().unwrap_or(packed),
                right: pair.down(k),
            }]
        })
        .collect();
    let results = pairs.iter_mut().zip(&links).map(|(pair, links)| Chains {
        c: Block::dense(pair.h, m, pair.rank),
        links,
        start: Start::Zero,
    });
    cpu.multiply_all(results.collect());
}

/// `y = x · Wᵀ + scale * h · Bᵀ` of every linear, with the pairs of all rows.
fn up(cpu: &Cpu, packed: &Left<'_>, linears: &mut [Linear<'_>], m: usize) {
    let (ys, beside): (Vec<_>, Vec<_>) = linears
        .iter_mut()
        .map(|linear| (&mut *linear.y, (linear.weight, linear.pair.as_ref())))
        .unzip();
    let scaled: Vec<Option<Left<'_>>> = beside
        .iter()
        .map(|(_, pair)| Some(pair.as_ref()?.scaled(cpu, m)))
        .collect();
    let links: Vec<Vec<Link<'_>>> = beside
        .iter()
        .zip(&scaled)
        .map(|((weight, pair), scaled)| {
            let weight = Link {
                left: packed,
                right: Right::Transposed(weight),
            };
            let pair = pair.as_ref().zip(scaled.as_ref()).map(|(pair, left)| Link {
                left,
                right: pair.up(),
            });
            [weight].into_iter().chain(pair).collect()
        })
        .collect();
    let results = ys
        .into_iter()
        .zip(beside.iter().zip(&links))
        .map(|(c, ((weight, _), links))| Chains {
            c: Block::dense(c, m, weight.shape().0),
            links,
            start: Start::Zero,
        });
    cpu.multiply_all(results.collect());
}

/// `logits [M, V] = x [M, C] · headᵀ`.
pub(super) fn logits(cpu: &Cpu, logits: &mut [f32], x: &[f32], head: &CpuWeight, m: usize) -> Result<()> {
    let (n, k) = head.shape();
    let product = Product {
        m,
        n,
        k,
        a: View::rows(check::part("logits", "x", x, &[m, k])?, k),
        b: Right::Transposed(head),
    };
    let logits = check::part_mut("logits", "logits", logits, &[m, n])?;
    cpu.multiply(logits, product, Start::Zero);
    Ok(())
}

/// `dx [M, K] += dy [M, N] · W`.
pub(super) fn backward(cpu: &Cpu, dx: &mut [f32], dy: &[f32], weight: &CpuWeight, m: usize) -> Result<()> {
    let (n, k) = weight.shape();
    let dx = check::part_mut("matmul_backward", "dx", dx, &[m, k])?;
    let dy = check::part("matmul_backward", "dy", dy, &[m, n])?;
    let product = Product {
        m,
        n: k,
        k: n,
        a: View::rows(dy, n),
        b: Right::Straight(weight),
    };
    cpu.multiply(dx, product, Start::Current);
    Ok(())
}
