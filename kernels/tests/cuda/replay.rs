//! Steps that come again are one graph: what it gives, when another is made, and what runs without one.
//!
//! Invariant: a step gives the same bits with a graph and without.

use llamaduo_kernels::cuda::CudaRecordings;
use llamaduo_kernels::{
    AttentionSpec, Backend, Cuda, Error, HeadDims, HostWeight, SampleRow, SampleSpec, SequenceSpan,
};

use crate::case::activations;
use crate::driver;

const HEADS: HeadDims = HeadDims {
    n_heads: 2,
    n_kv_heads: 1,
    head_dim: 64,
};
const SPEC: AttentionSpec = AttentionSpec {
    heads: HEADS,
    scale: 0.125,
    window: None,
};
const WIDTH: usize = 128;
const N_VOCAB: usize = 300;
const PAGE_LEN: usize = 8;
const N_PAGES: usize = 80;

/// A little model: an embedding that is also the queries, attention, logits, a token.
struct Step<B: Backend> {
    m: usize,
    ids: B::U32,
    sequences: B::Sequences,
    cache: B::KvCache,
    table: B::Weight,
    queries: B::Act,
    keys: B::Act,
    mixed: B::Act,
    logits: B::F32,
    choices: B::Choices,
}

impl Step<Cuda> {
    fn new(cuda: &Cuda, m_max: usize) -> Self {
        let table = HostWeight::from_f32(N_VOCAB, WIDTH, &activations(7, N_VOCAB * WIDTH)).unwrap();
        Self {
            m: 0,
            ids: cuda.upload_u32(&vec![0; m_max]).unwrap(),
            sequences: cuda.alloc_sequences(N_PAGES, PAGE_LEN, &[SPEC]).unwrap(),
            cache: cuda.alloc_kv_cache(HEADS, N_PAGES, PAGE_LEN).unwrap(),
            table: cuda.load_weight(table).unwrap(),
            queries: cuda.alloc_act(m_max * WIDTH).unwrap(),
            keys: cuda.upload_act(&activations(8, m_max * 64)).unwrap(),
            mixed: cuda.alloc_act(m_max * WIDTH).unwrap(),
            logits: cuda.alloc_f32(m_max * N_VOCAB).unwrap(),
            choices: cuda.alloc_choices(m_max).unwrap(),
        }
    }

    /// Rows with so many tokens each, the last of which is the id.
    fn write(&mut self, cuda: &Cuda, rows: &[(u32, usize)], spec: SampleSpec) {
        let ids: Vec<u32> = rows.iter().map(|(id, _)| *id).collect();
        let spans: Vec<SequenceSpan> = rows
            .iter()
            .zip(0..)
            .map(|((_, n_context), row)| SequenceSpan {
                first_row: row,
                n_rows: 1,
                n_context: *n_context,
                pages: (0..40).map(|page| 2 * page + row as u32 % 2).collect(),
            })
            .collect();
        let row = SampleRow {
            spec,
            random: 1 << 50,
            seen: &ids,
        };
        self.m = rows.len();
        cuda.write_u32(&mut self.ids, &ids).unwrap();
        cuda.write_sequences(&mut self.sequences, &spans).unwrap();
        cuda.write_choices(&mut self.choices, &vec![row; rows.len()], N_VOCAB)
            .unwrap();
    }

    fn run(&mut self, cuda: &Cuda) -> Result<(), Error> {
        let m = self.m;
        cuda.embed(&mut self.queries, &self.ids, &self.table, 1.0, m)?;
        cuda.write_kv(&mut self.cache, &self.keys, &self.keys, &self.sequences)?;
        cuda.attention_paged(&mut self.mixed, &self.queries, &self.cache, &self.sequences, SPEC)?;
        cuda.logits(&mut self.logits, &self.mixed, &self.table, m)?;
        cuda.choose(&mut self.choices, &mut self.logits)
    }

    /// The tokens, and the bits of the logits.
    fn read(&self, cuda: &Cuda) -> (Vec<u32>, Vec<u32>) {
        let (mut ids, mut logits) = (vec![0; self.m], vec![0.0; self.m * N_VOCAB]);
        cuda.read_choices(&self.choices, &mut ids).unwrap();
        cuda.read_f32(&self.logits, 0, &mut logits).unwrap();
        (ids, logits.iter().map(|logit| logit.to_bits()).collect())
    }
}

/// What was launched: the works of each graph, and kernels beside graphs.
fn graphs_launched() -> (Vec<u64>, usize) {
    let (mut graphs, mut n_kernels) = (Vec::new(), 0);
    for (name, n) in driver::take_launched() {
        match name == "graph" {
            true => graphs.push(n),
            false => n_kernels += 1,
        }
    }
    let n_within = graphs.iter().sum::<u64>() as usize;
    (graphs, n_kernels - n_within)
}

/// Each sequence's token and how long its context is.
type Grown<'a> = &'a [(u32, usize)];

#[test]
fn a_step_that_comes_again_is_one_launch_of_the_same_bits() {
    let cuda = driver::open().unwrap();
    let (mut plain, mut replayed) = (Step::new(&cuda, 3), Step::new(&cuda, 3));
    let mut recordings = CudaRecordings::default();
    let warm = SampleSpec {
        temperature: 0.8,
        ..SampleSpec::GREEDY
    };
    let penalized = SampleSpec {
        repetition_penalty: 1.5,
        ..warm
    };
    // Contexts grow, one into its second part, one sequence ends and others join. The third number says how many different
    // steps there were by then: where more parts or pages take longer buffers, what was recorded on the old ones is over.
    let steps: [(Grown<'_>, SampleSpec, usize); 11] = [
        (&[(5, 255), (9, 3)], warm, 1),
        (&[(6, 256), (11, 4)], warm, 1),
        (&[(7, 257), (12, 5)], warm, 2),
        (&[(8, 258), (13, 6)], warm, 2),
        (&[(13, 7)], warm, 3),
        (&[(14, 8), (5, 255)], warm, 4),
        (&[(15, 9), (5, 30), (299, 40)], warm, 5),
        (&[(15, 10), (5, 31), (0, 41)], penalized, 6),
        (&[(15, 9), (4, 30), (2, 40)], warm, 6),
        (&[(16, 10), (5, 256)], warm, 7),
        (&[(17, 11), (4, 255)], warm, 7),
    ];
    graphs_launched();
    for (rows, spec, n_different) in steps {
        plain.write(&cuda, rows, spec);
        plain.run(&cuda).unwrap();
        if !driver::is_real() {
            assert_eq!(graphs_launched().0, []);
        }
        replayed.write(&cuda, rows, spec);
        cuda.replay_step(&mut recordings, |cuda| replayed.run(cuda))
            .unwrap();
        if !driver::is_real() {
            let (graphs, n_beside) = graphs_launched();
            assert_eq!((graphs.len(), n_beside), (1, 0), "{rows:?}");
            assert!(graphs[0] >= 5);
        }
        assert_eq!(replayed.read(&cuda), plain.read(&cuda), "{rows:?}");
        assert_eq!(recordings.len(), n_different, "{rows:?}");
    }
}

#[test]
fn a_step_that_a_graph_does_not_hold_runs_without_one() {
    let cuda = driver::open().unwrap();
    let mut recordings = CudaRecordings::default();
    let x = cuda.upload_act(&[1.0, 2.0]).unwrap();
    let mut y = cuda.alloc_act(2).unwrap();
    let mut sum = [0.0; 2];
    let step = |cuda: &Cuda| {
        cuda.add(&mut y, &x, 2)?;
        let twice = cuda.upload_act(&[10.0, 20.0])?;
        cuda.add(&mut y, &twice, 2)?;
        cuda.read_act(&y, 0, &mut sum)
    };
    cuda.replay_step(&mut recordings, step).unwrap();
    assert_eq!(sum, [11.0, 22.0]);
    assert!(recordings.is_empty());
    // nothing to do is no graph either
    cuda.replay_step(&mut recordings, |_| Ok::<_, Error>(())).unwrap();
    assert!(recordings.is_empty());
}

#[test]
fn a_step_for_whose_graph_there_is_no_room_runs_without_one() {
    if driver::is_real() {
        println!("skipped: a real device is not made to fail");
        return;
    }
    llamaduo_stand_in_driver::load().unwrap();
    const OUT_OF_MEMORY: i32 = 2;
    let cuda = driver::open().unwrap();
    let mut recordings = CudaRecordings::default();
    let x = cuda.upload_act(&[1.0, 2.0]).unwrap();
    let mut y = cuda.alloc_act(2).unwrap();
    let mut expected = [0.0; 2];
    let mut step = |recordings: &mut CudaRecordings, n_adds: usize| {
        cuda.replay_step(recordings, |cuda| {
            (0..n_adds).try_for_each(|_| cuda.add(&mut y, &x, 2))
        })
        .unwrap();
        let mut sum = [0.0; 2];
        cuda.read_act(&y, 0, &mut sum).unwrap();
        let added = n_adds as f32;
        expected = [expected[0] + added, expected[1] + 2.0 * added];
        assert_eq!(sum, expected);
        graphs_launched()
    };
    graphs_launched();
    // while the second launch is captured, when the graph is made of them, when it is launched for the first time
    for (call, nth) in [("launch", 2), ("instantiate", 1), ("launch", 4)] {
        assert_eq!(step(&mut recordings, 1), (vec![1], 0));
        assert_eq!(recordings.len(), 1);
        llamaduo_stand_in_driver::fail_here(call, nth, OUT_OF_MEMORY);
        assert_eq!(step(&mut recordings, 3), (vec![], 3), "{call}");
        // others go too, which makes room
        assert!(recordings.is_empty());
        assert_eq!(step(&mut recordings, 3), (vec![3], 0));
        assert_eq!(recordings.len(), 1);
        recordings = CudaRecordings::default();
    }
    // any other failure is one
    llamaduo_stand_in_driver::fail_here("instantiate", 1, 1);
    let failed = cuda.replay_step(&mut recordings, |cuda| cuda.add(&mut y, &x, 2));
    assert!(matches!(failed, Err(Error::Device { .. })), "{failed:?}");
}

#[test]
fn a_step_that_fails_has_launched_nothing() {
    let cuda = driver::open().unwrap();
    let mut recordings = CudaRecordings::default();
    let x = cuda.upload_act(&[1.0, 2.0]).unwrap();
    let mut y = cuda.alloc_act(2).unwrap();
    let failed = cuda.replay_step(&mut recordings, |cuda| {
        cuda.add(&mut y, &x, 2)?;
        cuda.add(&mut y, &x, 3)
    });
    assert!(
        matches!(failed, Err(Error::TooShort { op: "add", .. })),
        "{failed:?}"
    );
    let mut sum = [9.0; 2];
    cuda.read_act(&y, 0, &mut sum).unwrap();
    assert_eq!(sum, [0.0; 2]);
    assert!(recordings.is_empty());
    // an id that the table does not have is found in every step, also where there is a graph
    let mut step = Step::new(&cuda, 1);
    for (id, fits) in [(3, true), (4, true), (N_VOCAB as u32, false)] {
        step.write(&cuda, &[(id, 1)], SampleSpec::GREEDY);
        let done = cuda.replay_step(&mut recordings, |cuda| step.run(cuda));
        assert_eq!(done.is_ok(), fits, "{done:?}");
    }
}

#[test]
fn logits_that_are_no_numbers_are_an_error_that_names_the_row() {
    let cuda = driver::open().unwrap();
    let row = |temperature| SampleRow {
        spec: SampleSpec {
            temperature,
            ..SampleSpec::GREEDY
        },
        random: 0,
        seen: &[],
    };
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for temperature in [0.0, 0.5] {
            let mut logits = cuda.upload_f32(&[0.0, 1.0, wrong, wrong]).unwrap();
            let mut choices = cuda.alloc_choices(2).unwrap();
            cuda.write_choices(&mut choices, &[row(temperature); 2], 2)
                .unwrap();
            cuda.choose(&mut choices, &mut logits).unwrap();
            let refused = cuda.read_choices(&choices, &mut [0; 2]);
            assert!(
                matches!(refused, Err(Error::NotFinite { row: 1, .. })),
                "{refused:?}"
            );
            cuda.read_choices(&choices, &mut [0]).unwrap();
        }
    }
    let mut choices = cuda.alloc_choices(1).unwrap();
    cuda.write_choices(&mut choices, &[row(0.0); 2], 2).unwrap_err();
    cuda.read_choices(&choices, &mut [0]).unwrap_err();
}
