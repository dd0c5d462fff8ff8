//! The next tokens of rows: which they are, and that the logits are left as they were.
//!
//! Invariant: the same tokens, of any logits: equal ones, ones that no token can have, ones that are no number.

use llamaduo_kernels::{Backend, SampleRow, SampleSpec, random};

use crate::case::{Case, EXACT, Output, numbers};

const PLAIN: SampleSpec = SampleSpec {
    temperature: 1.0,
    ..SampleSpec::GREEDY
};

/// Each setting on its own, and all.
const SPECS: [SampleSpec; 8] = [
    SampleSpec::GREEDY,
    PLAIN,
    SampleSpec {
        temperature: 0.02,
        ..PLAIN
    },
    SampleSpec { top_k: 9, ..PLAIN },
    SampleSpec { top_p: 0.6, ..PLAIN },
    SampleSpec { min_p: 0.3, ..PLAIN },
    SampleSpec {
        repetition_penalty: 1.7,
        ..PLAIN
    },
    SampleSpec {
        temperature: 0.7,
        top_k: 20,
        top_p: 0.8,
        min_p: 0.05,
        repetition_penalty: 0.6,
    },
];

/// A row's logits, of its number.
fn logits(row: usize, n_vocab: usize) -> Vec<f32> {
    let values = numbers(400 + row as u64, n_vocab);
    let of = |make: fn(usize, f32) -> f32| values.iter().enumerate().map(|(id, &x)| make(id, x)).collect();
    match row % 5 {
        0 => of(|_, x| 8.0 * x),
        1 => of(|_, x| (4.0 * x).round()), // many equal ones, zeros of both signs
        2 => of(|_, _| -3.5),
        3 => of(|id, x| match id % 4 {
            1 => f32::NAN,
            2 => f32::NEG_INFINITY,
            _ => x,
        }),
        _ => of(|_, x| 0.001 * x - 1e4),
    }
}

pub(crate) fn add_to(cases: &mut Vec<Case>) {
    for n_vocab in [1, 31, 33, 257, 2053] {
        for (index, spec) in SPECS.chunks(1).enumerate() {
            choose(cases, n_vocab, 15, index, spec);
        }
        choose(cases, n_vocab, 33, 8, &SPECS);
    }
    choose(cases, 128_256, 2, 9, &SPECS[6..]);
}

/// `m` rows that take the settings by turns.
fn choose(cases: &mut Vec<Case>, n_vocab: usize, m: usize, seed: usize, specs: &'static [SampleSpec]) {
    let name = format!("choose: V {n_vocab}, M {m}, settings {seed}");
    cases.push(Case::new(name, move |cpu, cuda| {
        let all: Vec<f32> = (0..m).flat_map(|row| logits(row, n_vocab)).collect();
        let seen: Vec<Vec<u32>> = (0..m as u32)
            .map(|row| {
                (0..7 * row)
                    .map(|i| (i * 37 + row) % (n_vocab as u32 + 3))
                    .collect()
            })
            .collect();
        let rows: Vec<SampleRow<'_>> = seen
            .iter()
            .enumerate()
            .map(|(row, seen)| SampleRow {
                spec: specs[row % specs.len()],
                random: match row % 7 {
                    5 => 0,
                    6 => (1 << 53) - 1,
                    _ => (u64::from(random::word(seed as u64, row as u64)) << 21) | row as u64,
                },
                seen,
            })
            .collect();
        let (mut expected, mut got) = (vec![0; m], vec![0; m]);
        let mut choices = cpu.alloc_choices(m)?;
        cpu.write_choices(&mut choices, &rows, n_vocab)?;
        cpu.choose(&mut choices, &mut all.clone())?;
        cpu.read_choices(&choices, &mut expected)?;

        let mut on_device = cuda.upload_f32(&all)?;
        let mut choices = cuda.alloc_choices(m)?;
        cuda.write_choices(&mut choices, &rows, n_vocab)?;
        cuda.choose(&mut choices, &mut on_device)?;
        cuda.read_choices(&choices, &mut got)?;
        let mut logits = vec![0.0; all.len()];
        cuda.read_f32(&on_device, 0, &mut logits)?;
        let as_floats = |ids: Vec<u32>| ids.into_iter().map(|id| id as f32).collect();
        Ok(vec![
            Output {
                what: "token",
                expected: as_floats(expected),
                got: as_floats(got),
                bound: EXACT,
            },
            Output {
                what: "logits",
                expected: all,
                got: logits,
                bound: EXACT,
            },
        ])
    }));
}
