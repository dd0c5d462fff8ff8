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

/// A row of a case.
struct Row {
    logits: Vec<f32>,
    spec: SampleSpec,
    random: u64,
    seen: Vec<u32>,
}

pub(crate) fn add_to(cases: &mut Vec<Case>) {
    for n_vocab in [1, 31, 33, 257, 2053] {
        for (index, spec) in SPECS.chunks(1).enumerate() {
            turns(cases, n_vocab, 15, index, spec);
        }
        turns(cases, n_vocab, 33, 8, &SPECS);
    }
    turns(cases, 128_256, 2, 9, &SPECS[6..]);
    for (index, spec) in [0, 3, 4, 5].map(|index| SPECS[index]).into_iter().enumerate() {
        let name = format!("choose: one likely token, settings {index}");
        choose(cases, name, LIKELY_VOCAB, move || likely(spec));
    }
}

/// `m` rows that take the settings by turns.
fn turns(cases: &mut Vec<Case>, n_vocab: usize, m: usize, seed: usize, specs: &'static [SampleSpec]) {
    let row = move |row: usize| Row {
        logits: logits(row, n_vocab),
        spec: specs[row % specs.len()],
        random: match row % 7 {
            5 => 0,
            6 => (1 << 53) - 1,
            _ => (u64::from(random::word(seed as u64, row as u64)) << 21) | row as u64,
        },
        seen: (0..7 * row as u32)
            .map(|i| (i * 37 + row as u32) % (n_vocab as u32 + 3))
            .collect(),
    };
    let name = format!("choose: V {n_vocab}, M {m}, settings {seed}");
    choose(cases, name, n_vocab, move || (0..m).map(row).collect());
}

/// So many that a thread of a block reads four logits, and a lane four keys of its warp.
const LIKELY_VOCAB: usize = 4 * 1024;

/// Rows of one likely token, one half as likely and others that are not; in each the likely one is where another turn of
/// the kernel's loops begins to read. The largest random number asks for the last token that is left, 0 for the first.
fn likely(spec: SampleSpec) -> Vec<Row> {
    let of_blocks = (0..4).map(|turn| 1024 * turn);
    let of_warps = (1..4).map(|turn| 32 * turn);
    let row = |likely: usize| {
        let mut logits = vec![-9.0; LIKELY_VOCAB];
        logits[likely] = 4.0;
        logits[7] = 3.3;
        let spec = SampleSpec {
            top_k: spec.top_k.min(2),
            top_p: spec.top_p.max(0.75),
            ..spec
        };
        [0, (1 << 53) - 1].map(|random| Row {
            logits: logits.clone(),
            spec,
            random,
            seen: Vec::new(),
        })
    };
    of_blocks.chain(of_warps).flat_map(row).collect()
}

/// The rows on both backends.
fn choose(
    cases: &mut Vec<Case>,
    name: String,
    n_vocab: usize,
    make: impl Fn() -> Vec<Row> + Send + Sync + 'static,
) {
    cases.push(Case::new(name, move |cpu, cuda| {
        let made = make();
        let m = made.len();
        let all: Vec<f32> = made.iter().flat_map(|row| row.logits.iter().copied()).collect();
        let rows = made.iter().map(|row| SampleRow {
            spec: row.spec,
            random: row.random,
            seen: &row.seen,
        });
        let rows: Vec<SampleRow<'_>> = rows.collect();
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
