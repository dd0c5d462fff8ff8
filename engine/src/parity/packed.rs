//! Rows of several documents, as transformers masks them by their positions, without dropout and with.
//!
//! Invariant: what is kept and what is made again in the backward changes no gradient.

use llamaduo_kernels::Documents;

use super::*;
use crate::model::DropoutStream;

const PACKED: [&str; 6] = [
    "gemma",
    "gemma3",
    "llama_bf16_sharded",
    "mistral_window",
    "qwen2",
    "qwen3",
];

#[test]
fn packed_documents_equal_transformers() {
    for family in PACKED {
        let file = reference(family, "packed.safetensors");
        let model = open(family, BaseQuant::None);
        let adapter = peft::load(&golden(family).join("adapter"), model.config()).unwrap();
        let (batch, lengths) = batch(&file);

        let mut rest = &batch.ids[..];
        let mut ours = Vec::new();
        for length in lengths {
            let (document, after) = rest.split_at(length);
            ours.extend(logits(&model, Some(&adapter), document).unwrap());
            rest = after;
        }
        let what = format!("{family} packed logits");
        assert_close(&what, &ours, &values(&file, "logits"), TOLERANCE);

        let check = |keep| check_gradients(family, &model, &adapter, &batch, &file, keep, None);
        assert_eq!(check(Keep::All), check(Keep::Inputs), "{family}");
    }
}

/// PEFT's own dropout, with masks that an implementation of the generator in Python has drawn.
#[test]
fn dropout_equals_that_of_peft_under_the_same_masks() {
    let family = "gemma3";
    let (packed, file) = (
        reference(family, "packed.safetensors"),
        reference(family, "dropped.safetensors"),
    );
    let model = open(family, BaseQuant::None);
    let adapter = peft::load(&golden(family).join("adapter"), model.config()).unwrap();
    let (batch, _) = batch(&packed);
    let dropout = DropoutStream {
        rate: values(&file, "rate")[0],
        key: file.i64_values("key").unwrap().1[0] as u64,
    };
    let check = |keep| check_gradients(family, &model, &adapter, &batch, &file, keep, Some(dropout));
    assert_eq!(check(Keep::All), check(Keep::Inputs));
}

/// The reference's one row, and the lengths of its documents.
fn batch(file: &SafetensorsFile) -> (MicroBatch, Vec<usize>) {
    let ids = tokens(&id_rows(file, "input_ids")[0]);
    let labels = &id_rows(file, "labels")[0];
    let lengths: Vec<usize> = file
        .i64_values("lengths")
        .unwrap()
        .1
        .iter()
        .map(|&length| length as usize)
        .collect();
    // transformers marks the token that is predicted, the engine the one before it
    let label = |t: usize| match labels.get(t + 1) {
        Some(&label) if label >= 0 => label as u32,
        _ => NO_LABEL,
    };
    let batch = MicroBatch {
        labels: (0..ids.len()).map(label).collect(),
        documents: Documents::of_lengths(lengths.iter().copied()),
        ids,
    };
    (batch, lengths)
}

fn check_gradients(
    family: &str,
    model: &LocalModel,
    adapter: &Adapter,
    batch: &MicroBatch,
    file: &SafetensorsFile,
    keep: Keep,
    dropout: Option<DropoutStream>,
) -> Vec<f32> {
    let state = OptimizerState::start(adapter.params().to_vec());
    let layout = adapter.layout().clone();
    let mut trainer = Trainer::new(model.inner(), layout, &state, batch.ids.len(), keep).unwrap();
    let loss = trainer.gradients(std::slice::from_ref(batch), dropout).unwrap() as f32;
    assert_close(
        &format!("{family} packed loss"),
        &[loss],
        &values(file, "loss"),
        TOLERANCE,
    );
    let gradients = trainer.read_gradients().unwrap();
    for (name, _, range) in peft::tensors(adapter.layout()) {
        let theirs = values(file, &format!("grad.{name}"));
        let tolerance = TOLERANCE * f64::from(largest(&theirs));
        assert_close(
            &format!("{family} packed {name}"),
            &gradients[range],
            &theirs,
            tolerance,
        );
    }
    gradients
}
