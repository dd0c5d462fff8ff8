use super::support::*;
use crate::{AttentionSpec, Backend, Cpu, Documents, HeadDims};

pub(super) fn spec(
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
) -> AttentionSpec {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionSpec {
        heads: HeadDims {
            n_heads,
            n_kv_heads,
            head_dim,
        },
        scale,
        window,
    }
}

pub(super) struct Case {
    pub documents: Documents,
    pub spec: AttentionSpec,
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

pub(super) fn case(lengths: &[usize], spec: AttentionSpec) -> Case {
    let documents = Documents::of_lengths(lengths.iter().copied());
    let (m, heads) = (documents.n_tokens(), spec.heads);
    let kv_len = m * heads.n_kv_heads * heads.head_dim;
    Case {
        documents,
        spec,
        // larger than 1, so that the softmax is far from even
        q: values(1, m * heads.n_heads * heads.head_dim)
            .iter()
            .map(|q| q * 3.0)
            .collect(),
        k: values(2, kv_len),
        v: values(3, kv_len),
    }
}

pub(super) fn forward(cpu: &Cpu, case: &Case) -> (Vec<f32>, Vec<f32>) {
    let m = case.documents.n_tokens();
    let (mut out, mut lse) = (vec![0.0; case.q.len()], vec![0.0; m * case.spec.heads.n_heads]);
    cpu.attention(
        &mut out,
        &mut lse,
        &case.q,
        &case.k,
        &case.v,
        &case.documents,
        case.spec,
    )
    .unwrap();
    (out, lse)
}

fn reference(case: &Case) -> (Vec<f64>, Vec<f64>) {
    let HeadDims {
        n_heads,
        n_kv_heads,
        head_dim: d,
    } = case.spec.heads;
    let (mut out, mut lse) = (vec![0.0; case.q.len()], Vec::new());
    for rows in case.documents.ranges() {
        for t in rows.clone() {
            let first = case.spec.window.map_or(rows.start, |window| {
                rows.start.max((t + 1).saturating_sub(window))
            });
            for head in 0..n_heads {
                let kv_head = head / (n_heads / n_kv_heads);
                let q = &case.q[(t * n_heads + head) * d..][..d];
                let at = |s: usize| (s * n_kv_heads + kv_head) * d;
                let weights: Vec<f64> = (first..=t)
                    .map(|s| (f64::from(case.spec.scale) * weighted_sum(q, &case.k[at(s)..][..d])).exp())
                    .collect();
                let sum: f64 = weights.iter().sum();
                for (s, weight) in (first..=t).zip(&weights) {
                    for i in 0..d {
                        out[(t * n_heads + head) * d + i] += weight / sum * f64::from(case.v[at(s) + i]);
                    }
                }
                lse.push(sum.ln());
            }
        }
    }
    (out, lse)
}

fn cases() -> Vec<Case> {
    vec![
        case(&[1], spec(1, 1, 1, None)),
        case(&[31, 1, 33], spec(6, 2, 31, None)),
        case(&[130, 7], spec(4, 1, 64, None)),
        case(&[100, 40], spec(2, 2, 33, Some(16))),
        case(&[70], spec(3, 3, 40, Some(1))),
        case(&[257], spec(2, 1, 16, Some(100))),
    ]
}

#[test]
fn attention_is_a_softmax_over_visible_keys() {
    for case in cases() {
        let both = same_everywhere(|cpu| {
            let (out, lse) = forward(cpu, &case);
            [out, lse].concat()
        });
        let (out, lse) = reference(&case);
        assert_close(&both[..out.len()], &out, 2e-6);
        assert_close(&both[out.len()..], &lse, 2e-6);
    }
}

fn backward(cpu: &Cpu, case: &Case, dout: &[f32]) -> [Vec<f32>; 3] {
    let (out, lse) = forward(cpu, case);
    // gradients are overwritten, so what was there must not show
    let mut grads = [
        vec![7.0; case.q.len()],
        vec![7.0; case.k.len()],
        vec![7.0; case.v.len()],
    ];
    let [dq, dk, dv] = &mut grads;
    let (q, k, v) = (&case.q, &case.k, &case.v);
    cpu.attention_backward(
        dq,
        dk,
        dv,
        &dout.to_vec(),
        &out,
        &lse,
        q,
        k,
        v,
        &case.documents,
        case.spec,
    )
    .unwrap();
    grads
}

#[test]
fn attention_gradients_are_finite_differences() {
    let cpu = cpu();
    for case in cases() {
        let dout = values(4, case.q.len());
        let [dq, dk, dv] = backward(&cpu, &case, &dout);
        let loss = |case: &Case| weighted_sum(&forward(&cpu, case).0, &dout);
        let (q, k, v) = (case.q.clone(), case.k.clone(), case.v.clone());
        let with = |q: &[f32], k: &[f32], v: &[f32]| {
            loss(&Case {
                q: q.to_vec(),
                k: k.to_vec(),
                v: v.to_vec(),
                documents: case.documents.clone(),
                ..case
            })
        };
        assert_gradient(&q, &dq, |q| with(q, &k, &v));
        assert_gradient(&k, &dk, |k| with(&q, k, &v));
        assert_gradient(&v, &dv, |v| with(&q, &k, v));
    }
}

#[test]
fn attention_gradients_are_the_same_everywhere() {
    for case in cases() {
        let dout = values(4, case.q.len());
        same_everywhere(|cpu| backward(cpu, &case, &dout).concat());
    }
}

#[test]
fn a_document_does_not_depend_on_its_neighbours() {
    let together = case(&[40, 65, 12], spec(4, 2, 32, None));
    let (out, lse) = forward(&cpu(), &together);
    for rows in together.documents.ranges() {
        let alone = Case {
            documents: Documents::of_lengths([rows.len()]),
            q: together.q[rows.start * 128..rows.end * 128].to_vec(),
            k: together.k[rows.start * 64..rows.end * 64].to_vec(),
            v: together.v[rows.start * 64..rows.end * 64].to_vec(),
            ..together
        };
        let (out_alone, lse_alone) = forward(&cpu(), &alone);
        crate::golden::assert_same_bits(&out_alone, &out[rows.start * 128..rows.end * 128]);
        crate::golden::assert_same_bits(&lse_alone, &lse[rows.start * 4..rows.end * 4]);
    }
}

#[test]
fn settings_without_meaning_are_refused() {
    let good = case(&[3], spec(2, 1, 4, None));
    let cpu = cpu();
    let run = |spec| {
        let (mut out, mut lse) = (vec![0.0; good.q.len()], vec![0.0; 6]);
        cpu.attention(
            &mut out,
            &mut lse,
            &good.q,
            &good.k,
            &good.v,
            &good.documents,
            spec,
        )
    };
    assert!(run(good.spec).is_ok());
    assert!(run(spec(2, 1, 4, Some(0))).is_err());
    assert!(run(spec(3, 2, 4, None)).is_err());
    assert!(run(spec(0, 0, 4, None)).is_err());
    assert!(run(spec(2, 1, 0, None)).is_err());
    assert!(run(spec(2, 1, 8, None)).is_err());
    assert!(
        run(AttentionSpec {
            scale: f32::NAN,
            ..good.spec
        })
        .is_err()
    );
    assert!(run(spec(usize::MAX, 1, 4, None)).is_err());
}
