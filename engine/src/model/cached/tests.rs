//! Steps that are replayed, on CUDA, against the same steps launch by launch.
//!
//! Invariant: tokens and logits have the same bits, whatever was run before and beside.

use llamaduo_kernels::{Cuda, SampleRow, SampleSpec, SequenceSpan};

use super::*;
use crate::local_model::{BaseQuant, LocalModel};
use crate::lora::{Adapter, LoraConfig};
use crate::model::AdapterSet;
use crate::peft;
use crate::testing::{golden, open_on_cuda};

const PLAN: CachePlan = CachePlan {
    n_pages: 24,
    page_len: 8,
    prefill_rows_max: 64,
    decode_rows_max: 3,
};

/// As [`CachedDecoder::decode`], but launch by launch.
fn decode_plainly(
    decoder: &mut CachedDecoder<'_, Cuda>,
    input: PassInput<'_>,
    rows: &[SampleRow<'_>],
) -> Vec<u32> {
    let CachedDecoder {
        model, caches, step, ..
    } = decoder;
    let backend = &model.backend;
    step.write(backend, input).unwrap();
    backend
        .write_choices(&mut step.choices, rows, model.config.vocab_size)
        .unwrap();
    step.forward(backend, model, caches).unwrap();
    step.logits(backend, model).unwrap();
    backend.choose(&mut step.choices, &mut step.logits).unwrap();
    let mut chosen = vec![0; rows.len()];
    backend.read_choices(&step.choices, &mut chosen).unwrap();
    chosen
}

fn bits(decoder: &CachedDecoder<'_, Cuda>, row: usize) -> Vec<u32> {
    let logits = decoder.read_logits(row).unwrap();
    logits.iter().map(|logit| logit.to_bits()).collect()
}

#[test]
fn a_replayed_step_gives_the_bits_of_its_launches() {
    for (family, quant) in [
        ("mistral", BaseQuant::Nf4 { double: false }),
        ("gemma", BaseQuant::None),
    ] {
        let model = open_on_cuda(family, quant);
        let adapter = peft::load(&golden(family).join("adapter"), model.config()).unwrap();
        let small = LoraConfig {
            rank: 3,
            ..LoraConfig::default()
        };
        let small = Adapter::init(model.config(), &small, 1).unwrap();
        let one = LoadedAdapters::one(model.inner(), Some(&adapter)).unwrap();
        let several = AdapterSet::upload(model.inner(), &[small, adapter]).unwrap();
        for adapters in [one, LoadedAdapters::Several(several)] {
            check_replay(family, &model, &adapters);
        }
    }
}

fn check_replay(family: &str, model: &LocalModel<Cuda>, adapters: &LoadedAdapters<Cuda>) {
    // Of each sequence, where there are several.
    let of_sequence = [Some(1), None, Some(0)];
    let [mut plain, mut replayed] =
        [(); 2].map(|()| CachedDecoder::new(model.inner(), adapters, PLAN).unwrap());
    let span = |of: usize, first_row: usize, n_rows: usize, n_context: usize| SequenceSpan {
        first_row,
        n_rows,
        n_context,
        pages: (0..8).map(|page| 3 * page + of as u32).collect(),
    };
    let mut texts: [Vec<u32>; 3] = [21, 9, 30].map(|len| (3..len + 3).collect());
    for (of, text) in texts.iter().enumerate() {
        for decoder in [&mut plain, &mut replayed] {
            let n = text.len() - 1;
            let input = PassInput {
                ids: &text[..n],
                sequences: &[span(of, 0, n, n)],
                adapters: &[of_sequence[of]],
            };
            decoder.prefill(input).unwrap();
        }
    }
    // Which sequences a step holds: some end, some join.
    let steps: [&[usize]; 7] = [&[0, 1], &[0, 1], &[1], &[1, 2], &[2, 0], &[0, 1, 2], &[2]];
    for (number, of) in steps.into_iter().enumerate() {
        let ids: Vec<u32> = of.iter().map(|&of| *texts[of].last().unwrap()).collect();
        let spans: Vec<SequenceSpan> = of
            .iter()
            .enumerate()
            .map(|(row, &of)| span(of, row, 1, texts[of].len()))
            .collect();
        let rows: Vec<SampleRow<'_>> = of
            .iter()
            .map(|&of| SampleRow {
                spec: SampleSpec {
                    temperature: 0.5 + of as f32,
                    ..SampleSpec::GREEDY
                },
                random: (number as u64 * 7 + of as u64 * 3) << 47,
                seen: &[],
            })
            .collect();
        let adapters: Vec<Option<usize>> = of.iter().map(|&of| of_sequence[of]).collect();
        let input = PassInput {
            ids: &ids,
            sequences: &spans,
            adapters: &adapters,
        };
        let expected = decode_plainly(&mut plain, input, &rows);
        assert_eq!(replayed.decode(input, &rows).unwrap(), expected, "{family}");
        for (row, (&of, id)) in of.iter().zip(expected).enumerate() {
            assert_eq!(bits(&replayed, row), bits(&plain, row), "{family}, step {number}");
            texts[of].push(id);
        }
    }
    // Of one, two and three rows: all else lies in buffers.
    assert_eq!(replayed.recordings.len(), 3, "{family}");
    assert!(plain.recordings.is_empty());
}
