//! How fast the CPU's operations are: `cargo bench -p llamaduo-kernels`, with words that a name must hold (`-- matmul nf4`)
//! and how products are computed (`-- compute=int16`).
//!
//! Prints GFLOP/s or GB/s for each operation and shape, beside the rate of a plain loop of fused multiply-adds on the
//! same threads: what the machine gives at most.
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::hint::black_box;
use std::time::Instant;

use llamaduo_kernels::{
    AttentionSpec, Backend, Compute, Cpu, CpuWeight, Documents, DoubleQuant, Dropout, GateActivation,
    HeadDims, HostWeight, LinearForward, Lora, LoraForward, LoraSlot, Nf4Matrix, Nf4Scales, Result,
    RmsNormSpec, SequenceSpan, random,
};

/// SmolLM2-135M: hidden, feed-forward, query heads, key heads, head dimension, vocabulary, layers.
const C: usize = 576;
const F: usize = 1536;
const H: usize = 9;
const KV: usize = 3;
const D: usize = 64;
const V: usize = 49_152;
const LAYERS: usize = 30;

fn main() -> Result<()> {
    let words = std::env::args().skip(1).filter(|word| !word.starts_with('-'));
    let (computes, words): (Vec<_>, Vec<_>) = words.partition(|word| word.starts_with("compute="));
    let compute = match computes.last().and_then(|word| word.strip_prefix("compute=")) {
        Some(name) => name.parse()?,
        None => Compute::F32,
    };
    let bench = Bench {
        cpu: Cpu::new(None)?.with_compute(compute),
        words,
    };
    println!(
        "{} threads, {:?}, {compute}",
        bench.cpu.n_threads(),
        llamaduo_kernels::Isa::detect()
    );
    peak(&bench)?;
    matmul(&bench)?;
    decode(&bench)?;
    attention(&bench)?;
    attention_paged(&bench)?;
    loss(&bench)?;
    rows(&bench)?;
    lora(&bench)
}

struct Bench {
    cpu: Cpu,
    words: Vec<String>,
}

impl Bench {
    /// Runs an operation for a second, if its name holds all words, and prints its fastest time: what the machine can
    /// do without what disturbed it. `amount` is floating-point operations or bytes.
    fn time(
        &self,
        name: &str,
        amount: f64,
        unit: &str,
        mut run: impl FnMut(&Cpu) -> Result<()>,
    ) -> Result<()> {
        if !self.words.iter().all(|word| name.contains(word.as_str())) {
            return Ok(());
        }
        run(&self.cpu)?;
        let (mut best, mut n_runs, begin, busy) = (f64::INFINITY, 0u32, Instant::now(), busy_seconds());
        while begin.elapsed().as_secs_f64() < 1.0 {
            let start = Instant::now();
            run(&self.cpu)?;
            best = best.min(start.elapsed().as_secs_f64());
            n_runs += 1;
        }
        let busy = (busy_seconds() - busy) / f64::from(n_runs) / self.cpu.n_threads() as f64;
        let rate = amount / best / 1e9;
        println!(
            "{name:<52} {:>9.3} ms {:>9.3} ms {rate:>7.1} G{unit}/s",
            best * 1e3,
            busy * 1e3
        );
        Ok(())
    }
}

/// Seconds that this process's threads have run, where the system tells (Linux), else 0: the second column is their
/// mean for each thread and run, which shows how much of the first was waiting.
fn busy_seconds() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let nanoseconds = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e9
}

fn values(len: usize) -> Vec<f32> {
    (0..len as u64)
        .map(|i| 2.0 * random::uniform(len as u64, i) - 1.0)
        .collect()
}

fn nf4(n: usize, k: usize) -> Result<HostWeight> {
    Ok(HostWeight::Nf4(Nf4Matrix::quantize(
        n,
        k,
        &values(n * k),
        DoubleQuant::Yes,
    )?))
}

/// Q8_0 with every scale 2^-8.
fn q8_0(n: usize, k: usize) -> Result<HostWeight> {
    let block: Vec<u8> = [0x00, 0x1c]
        .into_iter()
        .chain((0..32).map(|i| (i * 7 + 3) as u8))
        .collect();
    HostWeight::blocks(
        n,
        k,
        llamaduo_kernels::Format::Q8_0,
        std::sync::Arc::new(block.repeat(n * k / 32)),
        0,
    )
}

fn peak(bench: &Bench) -> Result<()> {
    let n_steps = 1 << 20;
    bench.time(
        "peak: plain multiply-adds",
        bench.cpu.multiply_add_flops(n_steps),
        "FLOP",
        |cpu| {
            black_box(cpu.multiply_add_loop(black_box(n_steps)));
            Ok(())
        },
    )
}

fn matmul(bench: &Bench) -> Result<()> {
    for (n, k) in [(F, C), (C, F), (C, C)] {
        let forms = [
            ("nf4", nf4(n, k)?),
            ("f32", HostWeight::from_f32(n, k, &values(n * k))?),
            ("q8_0", q8_0(n, k)?),
        ];
        for (form, weight) in forms {
            let weight = bench.cpu.load_weight(weight)?;
            for m in [1, 32, 128, 512] {
                let (x, mut y, mut dx) = (values(m * k), values(m * n), vec![0.0; m * k]);
                let flops = 2.0 * (m * n * k) as f64;
                let shape = format!("f32 x {form} M={m} N={n} K={k}");
                bench.time(&format!("matmul {shape}"), flops, "FLOP", |cpu| {
                    linear(cpu, &mut y, &x, &weight, m)
                })?;
                bench.time(&format!("matmul_backward {shape}"), flops, "FLOP", |cpu| {
                    cpu.matmul_backward(&mut dx, &y, &weight, m)
                })?;
            }
        }
    }
    Ok(())
}

fn linear(cpu: &Cpu, y: &mut Vec<f32>, x: &Vec<f32>, weight: &CpuWeight, m: usize) -> Result<()> {
    let linear = LinearForward {
        y,
        weight,
        lora: None,
    };
    cpu.linears(x, &mut [linear], m)
}

/// All linears of a generation step, and the head.
fn decode(bench: &Bench) -> Result<()> {
    let shapes = [(C, C), (KV * D, C), (KV * D, C), (C, C), (F, C), (F, C), (C, F)];
    let layer: Vec<HostWeight> = shapes.iter().map(|&(n, k)| nf4(n, k)).collect::<Result<_>>()?;
    // each layer has codes of its own, so that they come from memory as they would
    let copy = |weight: &HostWeight| match weight {
        HostWeight::Nf4(matrix) => {
            let scales = Nf4Scales::Plain(matrix.block_scales().to_vec().into());
            let (n, k) = matrix.shape();
            Nf4Matrix::from_parts(n, k, matrix.codes().to_vec(), scales).map(HostWeight::Nf4)
        }
        other => Ok(other.clone()),
    };
    let mut weights = Vec::new();
    for _ in 0..LAYERS {
        for weight in &layer {
            weights.push(bench.cpu.load_weight(copy(weight)?)?);
        }
    }
    let head = bench.cpu.load_weight(q8_0(V, C)?)?;
    let n_weights: usize = weights
        .iter()
        .map(|weight| weight.shape().0 * weight.shape().1)
        .sum();
    for m in [1, 8, 32] {
        let (x, mut y) = (values(m * F), values(m * F));
        let flops = 2.0 * (m * n_weights) as f64;
        bench.time(
            &format!("decode: linears of a step, M={m}"),
            flops,
            "FLOP",
            |cpu| {
                cpu.step(|| {
                    weights
                        .iter()
                        .try_for_each(|weight| linear(cpu, &mut y, &x, weight, m))
                })
            },
        )?;
        let mut logits = vec![0.0; m * V];
        let flops = 2.0 * (m * V * C) as f64;
        bench.time(&format!("decode: logits q8_0, M={m}"), flops, "FLOP", |cpu| {
            cpu.logits(&mut logits, &x, &head, m)
        })?;
    }
    Ok(())
}

const SPEC: AttentionSpec = AttentionSpec {
    heads: HeadDims {
        n_heads: H,
        n_kv_heads: KV,
        head_dim: D,
    },
    scale: 0.125,
    window: None,
};

fn attention(bench: &Bench) -> Result<()> {
    for t in [128, 512, 2048] {
        let m = t.max(512);
        let documents = Documents::of_lengths(std::iter::repeat_n(t, m / t));
        let (q, k, v) = (values(m * H * D), values(m * KV * D), values(m * KV * D));
        let (mut out, mut lse) = (vec![0.0; m * H * D], vec![0.0; m * H]);
        // two products over the lower triangle
        let flops = 2.0 * (m * t * H * D) as f64;
        bench.time(&format!("attention {}x{t}", m / t), flops, "FLOP", |cpu| {
            cpu.attention(&mut out, &mut lse, &q, &k, &v, &documents, SPEC)
        })?;
        let dout = values(m * H * D);
        let (mut dq, mut dk, mut dv) = (out.clone(), k.clone(), v.clone());
        bench.time(
            &format!("attention_backward {}x{t}", m / t),
            2.5 * flops,
            "FLOP",
            |cpu| {
                cpu.attention_backward(
                    &mut dq, &mut dk, &mut dv, &dout, &out, &lse, &q, &k, &v, &documents, SPEC,
                )
            },
        )?;
    }
    Ok(())
}

fn attention_paged(bench: &Bench) -> Result<()> {
    let (n_sequences, n_context, page_len) = (32, 320, 32);
    let n_pages = n_context / page_len;
    let mut cache = bench
        .cpu
        .alloc_kv_cache(SPEC.heads, n_sequences * n_pages, page_len)?;
    let sequences: Vec<SequenceSpan> = (0..n_sequences)
        .map(|i| SequenceSpan {
            first_row: i,
            n_rows: 1,
            n_context,
            pages: (i * n_pages..(i + 1) * n_pages).map(|page| page as u32).collect(),
        })
        .collect();
    let (q, k) = (values(n_sequences * H * D), values(n_sequences * KV * D));
    bench.cpu.write_kv(&mut cache, &k, &k, &sequences)?;
    let mut out = vec![0.0; n_sequences * H * D];
    let bytes = (n_sequences * n_context * KV * D * 2 * 4) as f64;
    bench.time("attention_paged 32 sequences of 320", bytes, "B", |cpu| {
        cpu.attention_paged(&mut out, &q, &cache, &sequences, SPEC)
    })
}

fn loss(bench: &Bench) -> Result<()> {
    let head = bench.cpu.load_weight(q8_0(V, C)?)?;
    let m = 512;
    let (x, labels) = (values(m * C), (0..m as u32).collect());
    let (mut losses, mut dx) = (vec![0.0; m], vec![0.0; m * C]);
    bench.time(
        "cross_entropy with gradient, M=512 V=49152",
        4.0 * (m * V * C) as f64,
        "FLOP",
        |cpu| cpu.cross_entropy(&mut losses, Some(&mut dx), &x, &head, &labels, 1.0, m),
    )
}

const M: usize = 512;

fn rows(bench: &Bench) -> Result<()> {
    let bytes = |n_floats: usize| 4.0 * n_floats as f64;
    let (x, weight) = (values(M * C), values(C));
    let (mut out, mut rstd) = (vec![0.0; M * C], vec![0.0; M]);
    let spec = RmsNormSpec {
        width: C,
        epsilon: 1e-5,
        weight_offset: 0.0,
    };
    bench.time("rms_norm M=512 C=576", bytes(2 * M * C), "B", |cpu| {
        cpu.rms_norm(&mut out, &mut rstd, &x, &weight, spec, M)
    })?;
    let mut dx = vec![0.0; M * C];
    bench.time("rms_norm_backward M=512 C=576", bytes(4 * M * C), "B", |cpu| {
        cpu.rms_norm_backward(&mut dx, &out, &x, &rstd, &weight, spec, M)
    })?;
    let (positions, frequencies) = ((0..M as u32).collect(), vec![0.1; D / 2]);
    bench.time("rope M=512 H=9 D=64", bytes(2 * M * C), "B", |cpu| {
        cpu.rope(&mut out, &positions, &frequencies, H, D, M)
    })?;
    let len = M * F;
    let (gate, up, dout) = (values(len), values(len), values(len));
    let (mut out, mut dup) = (vec![0.0; len], vec![0.0; len]);
    let silu = GateActivation::Silu;
    bench.time("gated M=512 F=1536", bytes(3 * len), "B", |cpu| {
        cpu.gated(&mut out, &gate, &up, silu, len)
    })?;
    // in the place of its operands, which would shrink to nothing from run to run
    bench.time(
        "gated_backward and two copies M=512 F=1536",
        bytes(9 * len),
        "B",
        |cpu| {
            out.copy_from_slice(&gate);
            dup.copy_from_slice(&up);
            cpu.gated_backward(&mut out, &mut dup, &dout, silu, len)
        },
    )
}

fn lora(bench: &Bench) -> Result<()> {
    let slot = LoraSlot {
        a_offset: 0,
        b_offset: 8 * C,
        rank: 8,
        n_in: C,
        n_out: F,
        scale: 2.0,
    };
    let params = values(8 * (C + F));
    let weight = bench.cpu.load_weight(nf4(F, C)?)?;
    let (x, dy) = (values(M * C), values(M * F));
    let (mut y, mut h, mut dx) = (vec![0.0; M * F], vec![0.0; M * 8], vec![0.0; M * C]);
    let mut grads = vec![0.0; params.len()];
    let flops = 2.0 * (M * 8 * (C + F)) as f64;
    for dropout in [None, Some(Dropout { rate: 0.05, key: 1 })] {
        let shape = if dropout.is_some() {
            "M=512 K=576 N=1536 R=8, dropout"
        } else {
            "M=512 K=576 N=1536 R=8"
        };
        bench.time(
            &format!("linear with lora {shape}"),
            flops + 2.0 * (M * C * F) as f64,
            "FLOP",
            |cpu| {
                let pair = LoraForward {
                    h: &mut h,
                    params: &params,
                    slot,
                    dropout,
                };
                let linear = LinearForward {
                    y: &mut y,
                    weight: &weight,
                    lora: Some(Lora::One(pair)),
                };
                cpu.linears(&x, &mut [linear], M)
            },
        )?;
        bench.time(&format!("lora_backward {shape}"), 2.0 * flops, "FLOP", |cpu| {
            cpu.lora_backward(Some(&mut dx), &mut grads, &dy, &x, &h, &params, slot, dropout, M)
        })?;
    }
    Ok(())
}
