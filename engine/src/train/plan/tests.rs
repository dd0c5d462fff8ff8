//! Every row once an epoch, whatever the packing; micro-batches within their bounds.

use super::*;

fn rows(lengths: &[usize]) -> Vec<Row> {
    let row = |(first, &len): (usize, &usize)| {
        let ids = (0..len as u32).map(|token| first as u32 * 100 + token).collect();
        Row::new(ids, |_| true)
    };
    lengths.iter().enumerate().map(row).collect()
}

fn rows_of_epoch(plan: &Plan<'_>, steps: std::ops::Range<u32>) -> Vec<u32> {
    let mut firsts: Vec<u32> = steps
        .flat_map(|step| plan.micro_batches(step))
        .flat_map(|batch| {
            batch
                .documents
                .ranges()
                .map(|range| batch.ids[range.start])
                .collect::<Vec<_>>()
        })
        .collect();
    firsts.sort_unstable();
    firsts
}

#[test]
fn every_epoch_sees_every_row_once_in_another_order() {
    let rows = rows(&[5, 9, 3, 7, 4, 6, 8]);
    for packing in [false, true] {
        let config = TrainConfig {
            epochs: 2.0,
            batch_rows: 2,
            accumulation: 1,
            max_seq_len: 12,
            packing,
            ..TrainConfig::default()
        };
        let plan = Plan::new(&rows, &config);
        let half = plan.n_steps() / 2;
        let all: Vec<u32> = (0..7).map(|row| row * 100).collect();
        assert_eq!(rows_of_epoch(&plan, 0..half), all);
        assert_eq!(rows_of_epoch(&plan, half..2 * half), all);
        assert_ne!(
            plan.micro_batches(0),
            plan.micro_batches(half),
            "packing {packing}"
        );
        assert_eq!(plan.n_tokens(), 2 * 42);
    }
}

#[test]
fn micro_batches_are_bounded_by_tokens_but_never_divide_a_row() {
    let rows = rows(&[5, 5, 20, 5, 5, 5]);
    let batches = micro_batches(&rows, 12);
    let lengths: Vec<usize> = batches.iter().map(|batch| batch.ids.len()).collect();
    assert_eq!(lengths, [10, 20, 10, 5]);
    assert_eq!(batches[0].n_labels(), 8);

    let config = TrainConfig {
        batch_rows: 6,
        micro_batch_tokens: 12,
        ..TrainConfig::default()
    };
    let plan = Plan::new(&rows, &config);
    let widest = (0..plan.n_steps())
        .flat_map(|step| plan.micro_batches(step))
        .map(|batch| batch.ids.len())
        .max();
    assert!(widest.unwrap() <= plan.micro_batch_tokens_max());
}

#[test]
fn fractions_of_epochs_and_a_limit_of_steps_round_as_transformers() {
    let rows = rows(&[3; 10]);
    let config = TrainConfig {
        epochs: 1.5,
        batch_rows: 4,
        accumulation: 1,
        ..TrainConfig::default()
    };
    let plan = Plan::new(&rows, &config);
    assert_eq!((plan.n_steps(), plan.n_tokens()), (5, 3 * (10 + 8)));
    let limited = TrainConfig {
        max_steps: Some(2),
        ..config
    };
    assert_eq!(Plan::new(&rows, &limited).n_steps(), 2);
}
