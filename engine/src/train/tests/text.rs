//! Training and measuring on conversations: which tokens are learnt, what is cut, what is refused.

use super::*;
use crate::chat_template::{Message, Role};
use crate::testing::open_with_text;

fn conversation(question: &str, answer: &str) -> Conversation {
    let message = |role, content: &str| Message {
        role,
        content: content.to_owned(),
    };
    Conversation {
        messages: vec![message(Role::User, question), message(Role::Assistant, answer)],
    }
}

#[test]
fn the_loss_is_on_the_whole_sequence_or_on_what_the_assistant_says() {
    let model = open_with_text();
    let (tokenizer, template) = (model.tokenizer().unwrap(), model.chat_template().unwrap());
    let mut messages = conversation("hi", "yes").messages;
    messages.extend(conversation("sure?", "no").messages);
    let learnt = |loss_on| {
        let row = encode_row(tokenizer, template, &messages, loss_on).unwrap();
        let labels: Vec<u32> = row
            .labels
            .iter()
            .copied()
            .filter(|&label| label != llamaduo_kernels::NO_LABEL)
            .collect();
        (row.ids.len(), labels.len(), tokenizer.decode(&labels).unwrap())
    };
    let (n_tokens, n_labels, _) = learnt(LossOn::WholeSequence);
    assert_eq!(n_labels, n_tokens - 1);
    let (_, n_labels, text) = learnt(LossOn::ResponseOnly);
    // Each answer, its end-of-turn token and the newline after it.
    assert_eq!(
        (n_labels, text.as_str()),
        ("yes".len() + "no".len() + 4, "yes\nno\n")
    );
}

#[test]
fn rows_that_are_cut_or_dropped_are_counted() {
    let model = open_with_text();
    let long = "x".repeat(100);
    let rows = [
        conversation("hi", "yes"),
        conversation("hi", &long),
        conversation(&long, "never seen"),
    ];
    let config = TrainConfig {
        loss_on: LossOn::ResponseOnly,
        max_seq_len: 64,
        ..small_config()
    };
    let mut counts = None;
    let outcome = train(&model, &rows, &config, None, None, &mut |event| {
        if let TrainEvent::Started {
            n_samples,
            n_cut,
            n_dropped,
            ..
        } = event
        {
            counts = Some((n_samples, n_cut, n_dropped));
        }
        ControlFlow::Continue(())
    });
    let Ok(TrainOutcome::Finished(trained)) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(counts, Some((2, 1, 1)));
    assert_eq!((trained.samples, trained.cut, trained.dropped), (2, 1, 1));
    let outcome = train(&model, &rows[2..], &config, None, None, &mut |_| {
        ControlFlow::Continue(())
    });
    assert!(
        matches!(
            outcome,
            Err(Error::AllRowsDropped {
                n_rows: 1,
                len_max: 64
            })
        ),
        "{outcome:?}"
    );
}

#[test]
fn conversations_train_and_measure_better_afterwards() {
    let model = open_with_text();
    let rows: Vec<Conversation> = (0..4)
        .map(|i| conversation(&format!("question {i}"), "always the same"))
        .collect();
    let config = TrainConfig {
        lora: LoraConfig {
            dropout: 0.0,
            ..LoraConfig::default()
        },
        epochs: 20.0,
        learning_rate: 1e-2,
        max_seq_len: 64,
        packing: true,
        ..small_config()
    };
    let outcome = train(&model, &rows, &config, None, None, &mut |_| {
        ControlFlow::Continue(())
    });
    let Ok(TrainOutcome::Finished(trained)) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(trained.samples, 4);
    assert_eq!(
        trained.tokens,
        trained.log.iter().map(|log| log.tokens).sum::<u64>()
    );
    let before = crate::evaluate(&model, None, &rows).unwrap();
    let after = crate::evaluate(&model, Some(&trained.adapter), &rows).unwrap();
    assert_eq!(before.tokens, after.tokens);
    let mut told = Vec::new();
    let observed = crate::evaluate_observed(&model, None, &rows, &mut |n_done, n| told.push((n_done, n)));
    assert_eq!(observed.unwrap(), before);
    assert_eq!(told.last(), Some(&(before.tokens, before.tokens)));
    assert!(after.loss < before.loss - 1.0, "{before:?} {after:?}");
    let more = train(&model, &rows, &config, Some(&trained.adapter), None, &mut |_| {
        ControlFlow::Continue(())
    });
    let Ok(TrainOutcome::Finished(more)) = more else {
        panic!("{more:?}")
    };
    assert!(
        more.log[0].loss < trained.log[0].loss - 1.0,
        "goes on from the adapter"
    );
}

#[test]
fn rows_beyond_the_context_cannot_be_measured_and_an_unfit_adapter_cannot_be_used() {
    let model = open_with_text();
    let long = conversation(&"x".repeat(600), "y");
    let error = crate::evaluate(&model, None, &[conversation("a", "b"), long]).unwrap_err();
    assert!(
        matches!(
            error,
            Error::RowTooLong {
                row: 1,
                context_len: 512,
                ..
            }
        ),
        "{error}"
    );
    assert!(matches!(
        crate::evaluate(&model, None, &[]),
        Err(Error::NothingToLearn)
    ));
    let other = Adapter::init(
        &crate::testing::golden_model("llama3").config,
        &LoraConfig::default(),
        1,
    )
    .unwrap();
    let error = crate::evaluate(&model, Some(&other), &[conversation("a", "b")]).unwrap_err();
    assert!(matches!(error, Error::AdapterMismatch { .. }), "{error}");
}
