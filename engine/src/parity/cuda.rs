//! Whole models on CUDA against the same models on the CPU: logits, gradients, training and generation. The driver is the
//! stand-in over the PTX interpreter, beside this test's own file, or with `LLAMADUO_TEST_CUDA=real` the machine's.
//!
//! Invariant: both have the same weights, adapter, rows and dropout; what differs is that activations are bf16 here.

use llamaduo_kernels::{Backend, Compute, Cuda};

use super::*;
use crate::local_model::LoadOptions;
use crate::model::DropoutStream;
use crate::testing::{golden_model, open_on_cuda, open_on_hopper};

/// A family whose heads and widths have kernels, and how its linears are held: NF4 in both forms, and not at all.
const RUN: [(&str, BaseQuant); 3] = [
    ("llama3", BaseQuant::Nf4 { double: true }),
    ("mistral", BaseQuant::Nf4 { double: false }),
    ("gemma", BaseQuant::None),
];

/// Tokens of a prompt whose continuation is compared.
const PROMPT_LEN: usize = 21;

/// On the CPU, its products computed as `compute` says.
fn open_on_cpu(family: &str, quant: BaseQuant, compute: Compute) -> LocalModel {
    let options = LoadOptions {
        quant,
        compute,
        ..LoadOptions::default()
    };
    LocalModel::open(golden_model(family), &options).unwrap()
}

/// `|ours - theirs| / |theirs|` over all elements.
fn distance(ours: &[f32], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let square = |value: f64| value * value;
    let pairs = ours.iter().zip(theirs);
    let off: f64 = pairs.map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    (off / theirs.iter().map(|&b| square(b.into())).sum::<f64>()).sqrt()
}

/// How much further from the CPU's f32 than the CPU with the operands of its products rounded to bf16, which keeps all
/// activations in f32.
const FACTOR: f64 = 2.5;

/// `ours` is not much further from `theirs` than `rounded` is.
fn check(what: &str, ours: &[f32], theirs: &[f32], rounded: &[f32]) {
    let (distance, bound) = (distance(ours, theirs), FACTOR * distance(rounded, theirs));
    println!("{what}: {distance:.1e} of {bound:.1e}");
    assert!(
        distance <= bound,
        "{what} is {distance:e} off, allowed are {bound:e}"
    );
}

/// Losses, gradients under dropout, and the parameters after two steps.
fn trained<B: Backend>(family: &str, model: &LocalModel<B>, adapter: &Adapter, keep: Keep) -> [Vec<f32>; 3] {
    let batches = micro_batches(&labelled_rows(family), 512);
    let state = OptimizerState::start(adapter.params().to_vec());
    let layout = adapter.layout().clone();
    let mut trainer = Trainer::new(model.inner(), layout, &state, 80, keep).unwrap();
    let dropout = Some(DropoutStream { rate: 0.2, key: 77 });
    let loss = trainer.gradients(&batches, dropout).unwrap() as f32;
    let gradients = trainer.read_gradients().unwrap();
    let mut losses = vec![loss];
    losses.extend((1..=2).map(|number| plain_step(&mut trainer, &batches, number, 1e-3)));
    [losses, gradients, trainer.params().unwrap()]
}

#[test]
fn models_train_on_cuda_as_on_the_cpu() {
    check_training(RUN, open_on_cuda);
}

#[test]
fn models_train_on_hopper_as_on_the_cpu() {
    if std::env::var_os("LLAMADUO_TEST_CUDA").is_some_and(|value| value == "real") {
        println!("skipped: the machine's own card is what it is");
        return;
    }
    // where linears are NF4 it has kernels of its own
    let [double, plain, _] = RUN;
    check_training([double, plain], open_on_hopper);
}

/// How a model is opened on a card.
type OpenOnCuda = fn(&str, BaseQuant) -> LocalModel<Cuda>;

fn check_training<const N: usize>(run: [(&str, BaseQuant); N], open_on_cuda: OpenOnCuda) {
    for (family, quant) in run {
        let [cpu, rounded] = [Compute::F32, Compute::Bf16].map(|compute| open_on_cpu(family, quant, compute));
        let cuda = open_on_cuda(family, quant);
        let adapter = peft::load(&golden(family).join("adapter"), cpu.config()).unwrap();
        let ours = trained(family, &cuda, &adapter, Keep::All);
        let [theirs, rounded] = [cpu, rounded].map(|model| trained(family, &model, &adapter, Keep::All));
        // losses hardly move: their distance is bounded by itself
        for (ours, theirs) in ours[0].iter().zip(&theirs[0]) {
            println!("{family} loss {ours} of {theirs}");
            assert!(
                (ours - theirs).abs() < 2e-3 * theirs,
                "{family} loss {ours}, expected {theirs}"
            );
        }
        check(&format!("{family} gradients"), &ours[1], &theirs[1], &rounded[1]);
        for (name, _, range) in peft::tensors(adapter.layout()) {
            let [ours, theirs, rounded] = [&ours, &theirs, &rounded].map(|run| &run[1][range.clone()]);
            check(&format!("{family} grad.{name}"), ours, theirs, rounded);
        }
        let [moved, expected, rounded] = [&ours, &theirs, &rounded].map(|run| -> Vec<f32> {
            let pairs = run[2].iter().zip(adapter.params());
            pairs.map(|(after, before)| after - before).collect()
        });
        check(&format!("{family} steps"), &moved, &expected, &rounded);
        // what is computed again is the same
        assert_eq!(trained(family, &cuda, &adapter, Keep::Inputs), ours, "{family}");
    }
}

/// Logits of a row at once, and of two over pages, one token at a time.
fn answered<B: Backend>(model: &LocalModel<B>, adapter: &Adapter, rows: &[Vec<i64>]) -> [Vec<f32>; 2] {
    let at_once = logits(model, Some(adapter), &tokens(&rows[0])).unwrap();
    let (prompts, follow): (Vec<_>, Vec<_>) = rows
        .iter()
        .map(|ids| {
            (
                ids[..PROMPT_LEN].to_vec(),
                ids[PROMPT_LEN..PROMPT_LEN + 3].to_vec(),
            )
        })
        .unzip();
    [at_once, decoded(model, Some(adapter), &prompts, &follow).concat()]
}

#[test]
fn models_answer_on_cuda_as_on_the_cpu() {
    for (family, quant) in RUN {
        let [cpu, rounded] = [Compute::F32, Compute::Bf16].map(|compute| open_on_cpu(family, quant, compute));
        let cuda = open_on_cuda(family, quant);
        let adapter = peft::load(&golden(family).join("adapter"), cpu.config()).unwrap();
        let rows = id_rows(&reference(family, "reference.safetensors"), "input_ids");
        let ours = answered(&cuda, &adapter, &rows);
        let [theirs, rounded] = [&cpu, &rounded].map(|model| answered(model, &adapter, &rows));
        check(&format!("{family} logits"), &ours[0], &theirs[0], &rounded[0]);
        check(
            &format!("{family} logits, decoded"),
            &ours[1],
            &theirs[1],
            &rounded[1],
        );

        // the most likely token, or one that is so but for bf16
        let prompts: Vec<Vec<i64>> = rows.iter().map(|ids| ids[..PROMPT_LEN].to_vec()).collect();
        for (answer, prompt) in greedy(&cuda, Some(&adapter), &prompts, 4).iter().zip(&prompts) {
            let ids = [tokens(prompt), answer.ids.clone()].concat();
            let expected = logits(&cpu, Some(&adapter), &ids).unwrap();
            let n_vocab = cpu.config().vocab_size;
            let rows = expected[(PROMPT_LEN - 1) * n_vocab..].chunks(n_vocab);
            assert_eq!(answer.ids.len(), 4, "{family}");
            for (row, &id) in rows.zip(&answer.ids) {
                let best = row.iter().copied().fold(f32::MIN, f32::max);
                assert!(row[id as usize] >= best - 0.05 * largest(row), "{family}");
            }
        }
    }
}
