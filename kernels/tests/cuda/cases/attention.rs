//! Attention.
//!
//! Invariant: see the table.

use llamaduo_kernels::{AttentionSpec, Backend, Documents, HeadDims, SequenceSpan};

use crate::case::{Bound, Case, Output, activations, rounded};

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

/// Weights and their gradients are rounded to bf16 before they are multiplied: 2^-9 of a term, and few terms are large, of
/// which the largest reach 12. The sum is rounded once more.
const GRADIENT: Bound = Bound {
    absolute: 12.0 / 512.0,
    relative: 1.5 / 256.0,
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
        forward(cases, head_dim, [1, 1], &[257], None);
        for lengths in DOCUMENTS {
            backward(cases, head_dim, [1, 1], lengths, None);
        }
        backward(cases, head_dim, [4, 2], &[40, 3], None);
        backward(cases, head_dim, [3, 1], &[130, 20], Some(7));
        backward(cases, head_dim, [2, 2], &[70], Some(33));
        backward(cases, head_dim, [1, 1], &[257], None);
        paged(cases, head_dim, [1, 1], &[(1, 1), (3, 3), (1, 31)], None);
        paged(cases, head_dim, [6, 2], &[(33, 33), (1, 257), (7, 40)], None);
        paged(cases, head_dim, [8, 1], &[(5, 150)], Some(33));
        paged(cases, head_dim, [16, 1], &[(1, 70), (2, 9)], Some(7));
        // several parts of a context; rows that see nothing of the last, and of the first
        paged(cases, head_dim, [4, 2], &[(2, 740), (12, 260), (1, 40)], None);
        paged(cases, head_dim, [2, 1], &[(9, 262), (1, 520)], Some(250));
        paged(cases, head_dim, [2, 2], &[(1, 1800)], None);
    }
    // lists that are filled up
    paged(cases, 64, [1, 1], &[(1, 257); 17], None);
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

/// Both backends get the CPU's output and log-sum-exp, the output rounded to bf16.
fn backward(
    cases: &mut Vec<Case>,
    head_dim: usize,
    [n_heads, n_kv_heads]: [usize; 2],
    lengths: &'static [usize],
    window: Option<usize>,
) {
    let name = format!(
        "attention_backward: D {head_dim}, H {n_heads}, KV {n_kv_heads}, documents {lengths:?}, window {window:?}"
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
        let q: Vec<f32> = activations(46, n_q).iter().map(|value| value * 4.0).collect();
        let [k, v] = [47, 48].map(|seed| activations(seed, n_kv));
        let dout = activations(49, n_q);
        let (mut out, mut lse) = (vec![0.0; n_q], vec![0.0; m * n_heads]);
        cpu.attention(&mut out, &mut lse, &q, &k, &v, &documents, spec)?;
        let out = rounded(&out);
        let mut expected = [vec![0.0; n_q], vec![0.0; n_kv], vec![0.0; n_kv]];
        let [dq, dk, dv] = &mut expected;
        cpu.attention_backward(dq, dk, dv, &dout, &out, &lse, &q, &k, &v, &documents, spec)?;
        let [mut dq, mut dk, mut dv] = [cuda.alloc_act(n_q)?, cuda.alloc_act(n_kv)?, cuda.alloc_act(n_kv)?];
        let [q, k, v] = [cuda.upload_act(&q)?, cuda.upload_act(&k)?, cuda.upload_act(&v)?];
        let [dout, out] = [cuda.upload_act(&dout)?, cuda.upload_act(&out)?];
        let lse = cuda.upload_f32(&lse)?;
        cuda.attention_backward(
            &mut dq, &mut dk, &mut dv, &dout, &out, &lse, &q, &k, &v, &documents, spec,
        )?;
        ["dq", "dk", "dv"]
            .into_iter()
            .zip(expected)
            .zip([&dq, &dk, &dv])
            .map(|((what, expected), held)| {
                let mut got = vec![0.0; expected.len()];
                cuda.read_act(held, 0, &mut got)?;
                Ok(Output {
                    what,
                    expected,
                    got,
                    bound: GRADIENT,
                })
            })
            .collect()
    }));
}

/// `sequences` are rows of the step and tokens of the context. All tokens are written first, then the last rows attend.
fn paged(
    cases: &mut Vec<Case>,
    head_dim: usize,
    [n_heads, n_kv_heads]: [usize; 2],
    sequences: &'static [(usize, usize)],
    window: Option<usize>,
) {
    let name = format!(
        "attention_paged: D {head_dim}, H {n_heads}, KV {n_kv_heads}, rows and context {sequences:?}, window {window:?}"
    );
    cases.push(Case::new(name, move |cpu, cuda| {
        let heads = HeadDims {
            n_heads,
            n_kv_heads,
            head_dim,
        };
        let spec = AttentionSpec {
            heads,
            scale: 1.0 / (head_dim as f32).sqrt(),
            window,
        };
        let page_len = 5; // so that pages end in the middle of everything
        let (filled, spans, n_pages) = spans(sequences, page_len);
        let n_filled: usize = filled.iter().map(|span| span.n_rows).sum();
        let m: usize = spans.iter().map(|span| span.n_rows).sum();
        let width = n_kv_heads * head_dim;
        let [k, v] = [43, 44].map(|seed| activations(seed, n_filled * width));
        let q: Vec<f32> = activations(45, m * n_heads * head_dim)
            .iter()
            .map(|value| value * 4.0)
            .collect();
        let mut expected = vec![0.0; q.len()];
        let mut on_cpu = cpu.alloc_kv_cache(heads, n_pages, page_len)?;
        cpu.write_kv(&mut on_cpu, &k, &v, &filled)?;
        cpu.attention_paged(&mut expected, &q, &on_cpu, &spans, spec)?;
        let mut cache = cuda.alloc_kv_cache(heads, n_pages, page_len)?;
        let mut sequences = cuda.alloc_sequences(n_pages, page_len, &[spec])?;
        cuda.write_sequences(&mut sequences, &filled)?;
        cuda.write_kv(
            &mut cache,
            &cuda.upload_act(&k)?,
            &cuda.upload_act(&v)?,
            &sequences,
        )?;
        let mut out = cuda.alloc_act(q.len())?;
        cuda.write_sequences(&mut sequences, &spans)?;
        cuda.attention_paged(&mut out, &cuda.upload_act(&q)?, &cache, &sequences, spec)?;
        let mut got = vec![0.0; q.len()];
        cuda.read_act(&out, 0, &mut got)?;
        Ok(vec![Output {
            what: "out",
            expected,
            got,
            bound: WEIGHTED,
        }])
    }));
}

/// Spans of the whole contexts, and of the last rows of each; and the number of pages. Pages are given out backwards, and
/// one at each end belongs to nobody.
fn spans(sequences: &[(usize, usize)], page_len: usize) -> (Vec<SequenceSpan>, Vec<SequenceSpan>, usize) {
    let n_pages = 2 + sequences
        .iter()
        .map(|(_, n_context)| n_context.div_ceil(page_len))
        .sum::<usize>();
    let (mut filled, mut spans, mut next) = (Vec::new(), Vec::new(), n_pages as u32 - 1);
    let (mut first_filled, mut first_row) = (0, 0);
    for &(n_rows, n_context) in sequences {
        let pages: Vec<u32> = (0..n_context.div_ceil(page_len) as u32)
            .map(|i| next - 1 - i)
            .collect();
        next -= pages.len() as u32;
        filled.push(SequenceSpan {
            first_row: first_filled,
            n_rows: n_context,
            n_context,
            pages: pages.clone(),
        });
        spans.push(SequenceSpan {
            first_row,
            n_rows,
            n_context,
            pages,
        });
        first_filled += n_context;
        first_row += n_rows;
    }
    (filled, spans, n_pages)
}
