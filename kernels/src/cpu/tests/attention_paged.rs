use super::attention::{Case, case, forward, spec};
use super::support::*;
use crate::golden::assert_same_bits;
use crate::{Backend, Compute, Cpu, SequenceSpan};

/// Feeds one document through a cache in steps of the given numbers of rows; all its output rows.
fn in_steps(cpu: &Cpu, case: &Case, page_len: usize, steps: &[usize]) -> Vec<f32> {
    let heads = case.spec.heads;
    let (q_width, kv_width) = (heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim);
    let n_pages = case.documents.n_tokens().div_ceil(page_len) + 2;
    let mut cache = cpu.alloc_kv_cache(heads, n_pages, page_len).unwrap();
    let pages: Vec<u32> = (0..n_pages as u32).rev().collect();
    let (mut done, mut all) = (0, Vec::new());
    for &n_rows in steps {
        let rows = done..done + n_rows;
        done += n_rows;
        let part = |values: &[f32], width: usize| values[rows.start * width..rows.end * width].to_vec();
        let sequences = vec![SequenceSpan {
            first_row: 0,
            n_rows,
            n_context: done,
            pages: pages.clone(),
        }];
        cpu.write_kv(
            &mut cache,
            &part(&case.k, kv_width),
            &part(&case.v, kv_width),
            &sequences,
        )
        .unwrap();
        let mut out = vec![0.0; n_rows * q_width];
        cpu.attention_paged(&mut out, &part(&case.q, q_width), &cache, &sequences, case.spec)
            .unwrap();
        all.extend(out);
    }
    all
}

#[test]
fn generation_gives_the_bits_of_training_however_it_is_cut() {
    for window in [None, Some(20)] {
        let case = case(&[75], spec(6, 2, 40, window));
        let (expected, _) = forward(&cpu(), &case);
        for cpu in backends() {
            for page_len in [1, 8, 16, 32, 50] {
                assert_same_bits(&in_steps(&cpu, &case, page_len, &[75]), &expected);
                assert_same_bits(&in_steps(&cpu, &case, page_len, &[1; 75]), &expected);
                assert_same_bits(&in_steps(&cpu, &case, page_len, &[40, 1, 33, 1]), &expected);
            }
        }
    }
}

#[test]
fn integers_are_near_and_the_same_however_a_document_is_cut() {
    let case = case(&[75], spec(6, 2, 40, Some(20)));
    let (expected, _) = forward(&cpu(), &case);
    let first = in_steps(&cpu().with_compute(Compute::Int16), &case, 8, &[75]);
    let off = first.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    let off = off.fold(0f32, f32::max);
    // half a unit of 32,767 in keys and values of about 1
    assert!(off > 0.0 && off < 1e-4, "{off}");
    for cpu in backends() {
        let cpu = cpu.with_compute(Compute::Int16);
        for page_len in [1, 8, 16, 50] {
            for steps in [&[75][..], &[1; 75], &[40, 1, 33, 1]] {
                assert_same_bits(&in_steps(&cpu, &case, page_len, steps), &first);
            }
        }
    }
}

#[test]
fn sequences_of_a_step_do_not_touch_each_other() {
    let cpu = cpu();
    let case = case(&[30, 50], spec(4, 2, 32, None));
    let (expected, _) = forward(&cpu, &case);
    let mut cache = cpu.alloc_kv_cache(case.spec.heads, 6, 16).unwrap();
    let sequences = vec![
        SequenceSpan {
            first_row: 30,
            n_rows: 50,
            n_context: 50,
            pages: vec![4, 1, 0, 5],
        },
        SequenceSpan {
            first_row: 0,
            n_rows: 30,
            n_context: 30,
            pages: vec![2, 3],
        },
    ];
    cpu.write_kv(&mut cache, &case.k, &case.v, &sequences).unwrap();
    let mut out = vec![0.0; case.q.len()];
    cpu.attention_paged(&mut out, &case.q, &cache, &sequences, case.spec)
        .unwrap();
    assert_same_bits(&out, &expected);
}

#[test]
fn spans_that_do_not_fit_are_refused() {
    let cpu = cpu();
    let case = case(&[4], spec(2, 1, 8, None));
    let mut cache = cpu.alloc_kv_cache(case.spec.heads, 2, 2).unwrap();
    let good = SequenceSpan {
        first_row: 0,
        n_rows: 4,
        n_context: 4,
        pages: vec![0, 1],
    };
    let bad = [
        SequenceSpan {
            pages: vec![0],
            ..good.clone()
        },
        SequenceSpan {
            pages: vec![0, 2],
            ..good.clone()
        },
        SequenceSpan {
            n_rows: 5,
            ..good.clone()
        },
        SequenceSpan {
            first_row: 1,
            ..good.clone()
        },
        SequenceSpan {
            first_row: usize::MAX,
            ..good.clone()
        },
    ];
    let mut out = vec![0.0; case.q.len()];
    for bad in bad {
        let spans = vec![bad];
        assert!(
            cpu.write_kv(&mut cache, &case.k, &case.v, &spans).is_err(),
            "{spans:?}"
        );
        assert!(
            cpu.attention_paged(&mut out, &case.q, &cache, &spans, case.spec)
                .is_err(),
            "{spans:?}"
        );
    }
    let twice = vec![good.clone(), good.clone()];
    assert!(
        cpu.attention_paged(&mut out, &case.q, &cache, &twice, case.spec)
            .is_err()
    );
    assert!(
        cpu.attention_paged(&mut out, &case.q, &cache, &vec![good], case.spec)
            .is_ok()
    );
    assert!(cpu.alloc_kv_cache(case.spec.heads, usize::MAX / 64, 2).is_err());
    assert!(cpu.alloc_kv_cache(case.spec.heads, 2, 0).is_err());
}
