//! Attention.
//!
//! Invariant: see the table.

use llamaduo_kernels::{AttentionSpec, Backend, Documents, HeadDims};

use crate::case::{Bound, Case, Output, activations};

/// Weights and values of at most 2 are rounded to bf16 before they are multiplied, and the result once more.
const WEIGHTED: Bound = Bound {
    absolute: 2.0 / 256.0,
    relative: 1.5 / 256.0,
};

/// Scores are exact products summed in f32; exponentials are approximate.
const LOG_SUM: Bound = Bound {
    absolute: 2e-5,
    relative: 4e-6,
};

/// Lengths of documents: one row, tiles that end in the middle, more than one tile of rows.
const DOCUMENTS: [&[usize]; 4] = [&[1], &[31, 33, 1], &[64, 65], &[130, 5]];

pub(crate) fn add_to(cases: &mut Vec<Case>) {
    for head_dim in [64, 96, 128, 256] {
        for lengths in DOCUMENTS {
            forward(cases, head_dim, [1, 1], lengths, None);
        }
        forward(cases, head_dim, [4, 2], &[40, 3], None);
        forward(cases, head_dim, [3, 1], &[130, 20], Some(7));
        forward(cases, head_dim, [2, 2], &[70], Some(33));
    }
    forward(cases, 64, [1, 1], &[257], None);
}

fn forward(
    cases: &mut Vec<Case>,
    head_dim: usize,
    [n_heads, n_kv_heads]: [usize; 2],
    lengths: &'static [usize],
    window: Option<usize>,
) {
    let name = format!(
        "attention: D {head_dim}, H {n_heads}, KV {n_kv_heads}, documents {lengths:?}, window {window:?}"
    );
    cases.push(Case::new(name, move |cpu, cuda| {
        let documents = Documents::of_lengths(lengths.iter().copied());
        let m = documents.n_tokens();
        let spec = AttentionSpec {
            heads: HeadDims {
                n_heads,
                n_kv_heads,
                head_dim,
            },
            scale: 1.0 / (head_dim as f32).sqrt(),
            window,
        };
        let (n_q, n_kv) = (m * n_heads * head_dim, m * n_kv_heads * head_dim);
        // scores that differ enough for the softmax to choose
        let q: Vec<f32> = activations(40, n_q).iter().map(|value| value * 4.0).collect();
        let [k, v] = [41, 42].map(|seed| activations(seed, n_kv));
        let (mut expected, mut expected_lse) = (vec![0.0; n_q], vec![0.0; m * n_heads]);
        cpu.attention(&mut expected, &mut expected_lse, &q, &k, &v, &documents, spec)?;
        let (mut out, mut lse) = (cuda.alloc_act(n_q)?, cuda.alloc_f32(m * n_heads)?);
        let [q, k, v] = [cuda.upload_act(&q)?, cuda.upload_act(&k)?, cuda.upload_act(&v)?];
        cuda.attention(&mut out, &mut lse, &q, &k, &v, &documents, spec)?;
        let (mut got, mut got_lse) = (vec![0.0; n_q], vec![0.0; m * n_heads]);
        cuda.read_act(&out, 0, &mut got)?;
        cuda.read_f32(&lse, 0, &mut got_lse)?;
        Ok(vec![
            Output {
                what: "out",
                expected,
                got,
                bound: WEIGHTED,
            },
            Output {
                what: "lse",
                expected: expected_lse,
                got: got_lse,
                bound: LOG_SUM,
            },
        ])
    }));
}
