use super::support::*;
use crate::{Backend, Cpu, DoubleQuant, HostWeight, NO_LABEL, Nf4Matrix};

struct Case {
    head: HostWeight,
    x: Vec<f32>,
    labels: Vec<u32>,
}

fn case(m: usize, width: usize, n_vocab: usize) -> Case {
    let weights: Vec<f32> = values(2, n_vocab * width).iter().map(|w| w * 2.0).collect();
    let labels = (0..m)
        .map(|i| {
            if i % 3 == 2 {
                NO_LABEL
            } else {
                (i * 31 % n_vocab) as u32
            }
        })
        .collect();
    Case {
        head: HostWeight::from_f32(n_vocab, width, &weights).unwrap(),
        x: values(1, m * width),
        labels,
    }
}

const LOSS_SCALE: f32 = 0.25;

fn losses(cpu: &Cpu, case: &Case, x: &[f32]) -> Vec<f32> {
    let m = case.labels.len();
    let head = cpu.load_weight(case.head.clone()).unwrap();
    let mut losses = vec![9.0; m];
    cpu.cross_entropy(&mut losses, None, &x.to_vec(), &head, &case.labels, LOSS_SCALE, m)
        .unwrap();
    losses
}

fn with_gradient(cpu: &Cpu, case: &Case) -> (Vec<f32>, Vec<f32>) {
    let m = case.labels.len();
    let head = cpu.load_weight(case.head.clone()).unwrap();
    let (mut losses, mut dx) = (vec![9.0; m], vec![9.0; case.x.len()]);
    cpu.cross_entropy(
        &mut losses,
        Some(&mut dx),
        &case.x,
        &head,
        &case.labels,
        LOSS_SCALE,
        m,
    )
    .unwrap();
    (losses, dx)
}

#[test]
fn cross_entropy_and_its_gradient() {
    for (m, width, n_vocab) in [(1, 1, 1), (31, 33, 257), (33, 31, 31), (5, 64, 1000)] {
        let case = case(m, width, n_vocab);
        let both = same_everywhere(|cpu| {
            let (losses, dx) = with_gradient(cpu, &case);
            [losses, dx].concat()
        });
        let (got, dx) = both.split_at(m);
        let w = case.head.to_f32();
        let expected: Vec<f64> = case
            .x
            .chunks(width)
            .zip(&case.labels)
            .map(|(x, &label)| {
                if label == NO_LABEL {
                    return 0.0;
                }
                let logits: Vec<f64> = w.chunks(width).map(|w| weighted_sum(x, w)).collect();
                logits.iter().map(|logit| logit.exp()).sum::<f64>().ln() - logits[label as usize]
            })
            .collect();
        assert_close(got, &expected, 2e-6);
        let cpu = cpu();
        assert_eq!(losses(&cpu, &case, &case.x), got);
        assert_gradient(&case.x, dx, |x| {
            f64::from(LOSS_SCALE)
                * losses(&cpu, &case, x)
                    .iter()
                    .map(|&loss| f64::from(loss))
                    .sum::<f64>()
        });
    }
}

#[test]
fn rows_in_several_chunks_are_as_in_one() {
    // 40 000 logits a row: 104 rows fill the room for logits
    let n_vocab = 40_000;
    let head = Nf4Matrix::quantize(n_vocab, 64, &values(2, n_vocab * 64), DoubleQuant::Yes).unwrap();
    let m = 120;
    let case = Case {
        head: HostWeight::Nf4(head),
        x: values(1, m * 64),
        labels: (0..m as u32).map(|i| i * 300).collect(),
    };
    let cpu = cpu();
    let (all, dx) = with_gradient(&cpu, &case);
    for row in [0, 50, 103, 104, 119] {
        let one = Case {
            head: case.head.clone(),
            x: case.x[row * 64..(row + 1) * 64].to_vec(),
            labels: vec![case.labels[row]],
        };
        let (loss, dx_one) = with_gradient(&cpu, &one);
        crate::golden::assert_same_bits(&loss, &all[row..row + 1]);
        crate::golden::assert_same_bits(&dx_one, &dx[row * 64..(row + 1) * 64]);
    }
}

#[test]
fn a_label_outside_the_vocabulary_is_refused() {
    let mut case = case(3, 4, 10);
    case.labels[1] = 10;
    let cpu = cpu();
    let head = cpu.load_weight(case.head.clone()).unwrap();
    assert!(
        cpu.cross_entropy(&mut vec![0.0; 3], None, &case.x, &head, &case.labels, 1.0, 3)
            .is_err()
    );
}

#[test]
fn a_nan_shows_in_the_loss() {
    let mut case = case(2, 4, 10);
    case.x[1] = f32::NAN;
    let cpu = cpu();
    let losses = losses(&cpu, &case, &case.x);
    assert!(losses[0].is_nan() && losses[1].is_finite());
}
