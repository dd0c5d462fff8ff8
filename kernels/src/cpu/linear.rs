//! Products with a frozen weight `[N, K]`, with and without a LoRA pair beside it, and the logits.
//!
//! Invariant: an element is one chain through the weight's inputs and then through the pair's ranks, as if the pair's
//! scaled `h` were R more features of the input.

use super::gemm::{Chains, Left, Link, Product, Right, Start, View};
use super::scratch::Scratch;
use super::{Cpu, CpuWeight, check, lora};
use crate::backend::{Dropout, LinearForward};
use crate::error::Result;

const OP: &str = "linears";

/// A linear whose shapes were checked.
struct Linear<'a> {
    y: &'a mut [f32],
    weight: &'a CpuWeight,
    pair: Option<Pair<'a>>,
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
    up(cpu, &packed, linears, m);
    Ok(())
}

fn checked<'a>(linear: &'a mut LinearForward<'_, Cpu>, k: usize, m: usize) -> Result<Linear<'a>> {
    let (n, n_in) = linear.weight.shape();
    check::same(OP, "K of the weights", n_in, k)?;
    let pair = match &mut linear.lora {
        Some(lora) => {
            check::same(OP, "n_in of the pair", lora.slot.n_in, k)?;
            check::same(OP, "n_out of the pair", lora.slot.n_out, n)?;
            lora::check_rate(OP, lora.dropout)?;
            let (a, b) = lora::factors(OP, lora.params, lora.slot)?;
            let rank = lora.slot.rank;
            Some(Pair {
                h: check::part_mut(OP, "h", lora.h, &[m, rank])?,
                a,
                b,
                rank,
                scale: lora.slot.scale,
                dropout: lora.dropout,
            })
        }
        None => None,
    };
    Ok(Linear {
        y: check::part_mut(OP, "y", linear.y, &[m, n])?,
        weight: linear.weight,
        pair,
    })
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
                right: Right::Floats(View::rows(pair.a, k).transposed()),
            }]
        })
        .collect();
    let results = pairs.iter_mut().zip(&links).map(|(pair, links)| Chains {
        c: &mut *pair.h,
        n: pair.rank,
        links,
        start: Start::Zero,
    });
    cpu.multiply_all(m, results.collect());
}

/// `y = x · Wᵀ + scale * h · Bᵀ` of every linear.
fn up(cpu: &Cpu, packed: &Left<'_>, linears: Vec<Linear<'_>>, m: usize) {
    let (ys, beside): (Vec<_>, Vec<_>) = linears
        .into_iter()
        .map(|linear| (linear.y, (linear.weight, linear.pair)))
        .unzip();
    let scaled: Vec<Option<Left<'_>>> = beside
        .iter()
        .map(|(_, pair)| {
            let Pair { h, rank, scale, .. } = pair.as_ref()?;
            Some(cpu.pack_scaled(View::rows(h, *rank), m, *rank, *scale))
        })
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
                right: Right::Floats(View::rows(pair.b, pair.rank).transposed()),
            });
            [weight].into_iter().chain(pair).collect()
        })
        .collect();
    let results = ys
        .into_iter()
        .zip(beside.iter().zip(&links))
        .map(|(c, ((weight, _), links))| Chains {
            n: weight.shape().0,
            c,
            links,
            start: Start::Zero,
        });
    cpu.multiply_all(m, results.collect());
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
