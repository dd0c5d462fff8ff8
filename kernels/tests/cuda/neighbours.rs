//! Attention and losses, row by row: neither what is computed beside a row nor how the work is divided shows in it.
//!
//! Invariant: compared are bits.

use llamaduo_kernels::cuda::LossInputs;
use llamaduo_kernels::{AttentionSpec, Documents, Error, HeadDims, HostWeight, NO_LABEL, SequenceSpan};

use crate::driver;

#[test]
fn a_rows_attention_does_not_depend_on_how_its_prompt_came() {
    let cuda = driver::open().unwrap();
    let (heads, n_context) = (
        HeadDims {
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 64,
        },
        300, // a part of 256 and a little
    );
    let values = |salt: usize, len: usize| -> Vec<f32> {
        (0..len)
            .map(|i| ((i * 37 + salt * 11) % 101) as f32 / 40.0 - 1.2)
            .collect()
    };
    let (k, v) = (values(1, n_context * 128), values(2, n_context * 128));
    let mut cache = cuda.alloc_kv_cache(heads, 19, 16).unwrap();
    let span = |first_row, n_rows, n_context| SequenceSpan {
        first_row,
        n_rows,
        n_context,
        pages: (0..19).map(|page| page * 7 % 19).collect(),
    };
    let (k, v) = (cuda.upload_act(&k).unwrap(), cuda.upload_act(&v).unwrap());
    let windows = [Some(40), None];
    let spec = |window| AttentionSpec {
        heads,
        scale: 0.125,
        window,
    };
    let mut all = cuda.alloc_sequences(19, 16, &windows.map(spec)).unwrap();
    cuda.write_sequences(&mut all, &[span(0, n_context, n_context)])
        .unwrap();
    cuda.write_kv(&mut cache, &k, &v, &all).unwrap();
    let q = values(3, n_context * 256);
    let attend = |begin: usize, end: usize, window: Option<usize>| {
        let mut out = cuda.alloc_act((end - begin) * 256).unwrap();
        let q = cuda.upload_act(&q[begin * 256..end * 256]).unwrap();
        let mut sequences = cuda.alloc_sequences(19, 16, &windows.map(spec)).unwrap();
        cuda.write_sequences(&mut sequences, &[span(0, end - begin, end)])
            .unwrap();
        cuda.attention_paged(&mut out, &q, &cache, &sequences, spec(window))
            .unwrap();
        let mut got = vec![0.0; (end - begin) * 256];
        cuda.read_act(&out, 0, &mut got).unwrap();
        got
    };
    for window in windows {
        let at_once = attend(0, n_context, window);
        for (begin, end) in [
            (0, 50),
            (50, 90),
            (89, 90),
            (3, 4),
            (41, 42),
            (254, 259),
            (255, 256),
            (256, 257),
            (290, 300),
        ] {
            assert_eq!(
                attend(begin, end, window),
                at_once[begin * 256..end * 256],
                "rows {begin} to {end}, window {window:?}"
            );
        }
    }
}

#[test]
fn losses_do_not_depend_on_how_many_rows_are_taken_at_once() {
    let cuda = driver::open().unwrap();
    let (m, n_vocab, width) = (40, 50, 32);
    let values = |len: usize| -> Vec<f32> { (0..len).map(|i| (i * 37 % 101) as f32 / 40.0 - 1.2).collect() };
    let head = HostWeight::from_f32(n_vocab, width, &values(n_vocab * width)).unwrap();
    let (x, head) = (
        cuda.upload_act(&values(m * width)).unwrap(),
        cuda.load_weight(head).unwrap(),
    );
    let labels: Vec<u32> = (0..m as u32)
        .map(|row| if row % 7 == 0 { NO_LABEL } else { row })
        .collect();
    let run = |labels: &[u32], n_rows_max: usize| {
        let inputs = LossInputs {
            x: &x,
            head: &head,
            labels,
            loss_scale: 1.0,
        };
        let (mut losses, mut dx) = (cuda.alloc_f32(m)?, cuda.alloc_act(m * width)?);
        cuda.cross_entropy_by(&mut losses, Some(&mut dx), inputs, n_rows_max)?;
        let (mut got_losses, mut got) = (vec![9.0; m], vec![9.0; m * width]);
        cuda.read_f32(&losses, 0, &mut got_losses)?;
        cuda.read_act(&dx, 0, &mut got)?;
        Ok::<_, Error>((got_losses, got))
    };
    let at_once = run(&labels, usize::MAX).unwrap();
    for n_rows_max in [1, 17, 20] {
        assert_eq!(run(&labels, n_rows_max).unwrap(), at_once, "{n_rows_max} rows");
    }
    assert_eq!(
        run(&vec![NO_LABEL; m], 8).unwrap(),
        (vec![0.0; m], vec![0.0; m * width])
    );
    let refused = run(&[0, n_vocab as u32], 8);
    assert!(matches!(
        refused,
        Err(Error::OutOfRange {
            index: 1,
            value: 50,
            limit: 50,
            ..
        })
    ));
}

#[test]
fn a_documents_gradients_do_not_depend_on_what_is_beside_it() {
    let cuda = driver::open().unwrap();
    let heads = HeadDims {
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 64,
    };
    let spec = AttentionSpec {
        heads,
        scale: 0.125,
        window: Some(30),
    };
    let all: Vec<f32> = (0..80 * 128)
        .map(|i| (i * 37 % 101) as f32 / 40.0 - 1.2)
        .collect();
    // rows of tokens in `[begin, begin + sum of the lengths)`, the same numbers for a token wherever it stands
    let gradients = |lengths: &[usize], begin: usize| {
        let documents = Documents::of_lengths(lengths.iter().copied());
        let m = documents.n_tokens();
        let of_queries = |salt: usize| {
            let values: Vec<f32> = (begin * 128..(begin + m) * 128)
                .map(|i| all[(i + 91 * salt) % all.len()])
                .collect();
            cuda.upload_act(&values).unwrap()
        };
        let of_keys = |salt: usize| {
            let values: Vec<f32> = (begin * 64..(begin + m) * 64)
                .map(|i| all[i + 57 * salt])
                .collect();
            cuda.upload_act(&values).unwrap()
        };
        let (q, dout, k, v) = (of_queries(0), of_queries(1), of_keys(2), of_keys(3));
        let (mut out, mut lse) = (cuda.alloc_act(m * 128).unwrap(), cuda.alloc_f32(m * 2).unwrap());
        cuda.attention(&mut out, &mut lse, &q, &k, &v, &documents, spec)
            .unwrap();
        let [mut dq, mut dk, mut dv] = [128, 64, 64].map(|width| cuda.alloc_act(m * width).unwrap());
        cuda.attention_backward(
            &mut dq, &mut dk, &mut dv, &dout, &out, &lse, &q, &k, &v, &documents, spec,
        )
        .unwrap();
        [(dq, 128), (dk, 64), (dv, 64)].map(|(held, width)| {
            let mut got = vec![0.0; m * width];
            cuda.read_act(&held, 0, &mut got).unwrap();
            got
        })
    };
    let together = gradients(&[7, 66, 5], 0);
    let alone = gradients(&[66], 7);
    for ((together, alone), width) in together.iter().zip(&alone).zip([128, 64, 64]) {
        assert_eq!(&together[7 * width..73 * width], &alone[..]);
    }
}
