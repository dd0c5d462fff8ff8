//! A text does not depend on its batch; pages are shared; what does not fit is refused alone.

mod adapters;

use super::*;
use crate::chat_template::Role;
use crate::local_model::BaseQuant;
use crate::testing::{golden, open, open_with_text};

const OPTIONS: GenerateOptions = GenerateOptions {
    max_tokens: 20,
    sampling: Sampling::GREEDY,
    stop: Vec::new(),
    stop_tokens: Vec::new(),
    logprobs: None,
    seed: 3,
};

fn prompt(id: u64, len: usize, n: usize, temperature: f32) -> PromptIds {
    let ids = (0..len as u64)
        .map(|token| 3 + llamaduo_kernels::random::word(id, token) % 300)
        .collect();
    let sampling = Sampling {
        temperature,
        ..Sampling::GREEDY
    };
    PromptIds {
        id,
        adapter: None,
        ids,
        n,
        options: GenerateOptions {
            sampling,
            max_tokens: 10 + len % 7,
            ..OPTIONS
        },
    }
}

fn run(model: &LocalModel, prompts: &[PromptIds], batch: BatchOptions) -> Vec<Completion> {
    run_with(model, &[], prompts, batch)
}

fn run_with<B: Backend>(
    model: &LocalModel<B>,
    adapters: &[Adapter],
    prompts: &[PromptIds],
    batch: BatchOptions,
) -> Vec<Completion> {
    generate_ids(model, adapters, prompts, &[2], &batch, &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap()
}

/// Of many lengths; the last two begin as the one before them.
fn prompts() -> Vec<PromptIds> {
    let lengths = [1, 2, 16, 17, 33, 40, 300, 70];
    let mut prompts: Vec<PromptIds> = lengths
        .iter()
        .zip(0..)
        .map(|(&len, id)| prompt(id, len, 3, 1.0))
        .collect();
    for (id, n_alike) in [(8, 48), (9, 23)] {
        let mut other = prompt(id, 70, 3, 1.0);
        other.ids[..n_alike].copy_from_slice(&prompts[7].ids[..n_alike]);
        prompts.push(other);
    }
    prompts
}

#[test]
fn a_text_does_not_depend_on_what_else_is_in_the_batch() {
    let model = open("llama_tied", BaseQuant::Nf4 { double: true });
    let adapter = crate::peft::load(&golden("llama_tied").join("adapter"), model.config()).unwrap();
    let mut prompts = prompts();
    let texts = |completions: &[Completion]| -> Vec<Vec<u32>> {
        completions
            .iter()
            .map(|completion| completion.ids.clone())
            .collect()
    };
    let plain = texts(&run(&model, &prompts, BatchOptions::default()));
    let adapter = std::slice::from_ref(&adapter);
    for named in [None, Some(0)] {
        prompts.iter_mut().for_each(|prompt| prompt.adapter = named);
        let together = run_with(&model, adapter, &prompts, BatchOptions::default());
        assert_eq!(together.len(), 30);
        assert_eq!(texts(&together) == plain, named.is_none());
        let tight = BatchOptions {
            max_batch: 5,
            cache_bytes_max: 0,
        };
        assert_eq!(run_with(&model, adapter, &prompts, tight), together);
        let single = BatchOptions {
            max_batch: 1,
            ..tight
        };
        let alone: Vec<Completion> = prompts
            .iter()
            .flat_map(|prompt| run_with(&model, adapter, std::slice::from_ref(prompt), single))
            .collect();
        assert_eq!(alone, together);
    }
}

#[test]
fn the_responses_of_one_prompt_share_its_pages_and_differ_in_their_text() {
    let model = open("llama_tied", BaseQuant::None);
    let shared = run(&model, &[prompt(6, 70, 4, 1.0)], BatchOptions::default());
    let texts: std::collections::BTreeSet<_> = shared.iter().map(|completion| &completion.ids).collect();
    assert_eq!(texts.len(), 4);
    let single = run(&model, &[prompt(6, 70, 1, 1.0)], BatchOptions::default());
    assert_eq!(single[0], shared[0]);
    let greedy = run(&model, &[prompt(6, 70, 4, 0.0)], BatchOptions::default());
    assert!(greedy.iter().all(|completion| completion.ids == greedy[0].ids));
}

#[test]
fn a_request_beyond_the_context_is_refused_and_harms_no_other() {
    let model = open("llama_tied", BaseQuant::None);
    let context_len = model.config().context_len;
    let fits = prompt(1, context_len - 16, 1, 0.0);
    let fits = PromptIds {
        options: GenerateOptions {
            max_tokens: 16,
            ..OPTIONS
        },
        ..fits
    };
    let too_long = PromptIds {
        id: 2,
        ids: [fits.ids.clone(), vec![5]].concat(),
        n: 2,
        ..fits.clone()
    };
    let completions = run(&model, &[too_long, fits], BatchOptions::default());
    let refused = Finish::Refused {
        prompt_tokens: context_len - 15,
        max_tokens: 16,
        context_len,
    };
    assert_eq!(
        completions
            .iter()
            .map(|completion| completion.request)
            .collect::<Vec<_>>(),
        [2, 2, 1]
    );
    assert_eq!(completions[0].finish, refused);
    assert!(refused.to_string().contains("shorten the prompt"));
    assert!(completions[2].tokens > 0);
}

#[test]
fn a_stop_token_ends_a_response_and_is_no_part_of_it() {
    let model = open("llama_tied", BaseQuant::None);
    let request = PromptIds {
        options: OPTIONS,
        ..prompt(5, 40, 1, 0.0)
    };
    let free = run(&model, std::slice::from_ref(&request), BatchOptions::default()).remove(0);
    assert_eq!((free.finish, free.tokens), (Finish::Length, 20));
    let stop = free.ids[5];
    let first = free.ids.iter().position(|&id| id == stop).unwrap();
    let stopped = generate_ids(
        &model,
        &[],
        &[request],
        &[stop],
        &BatchOptions::default(),
        &mut |_| ControlFlow::Continue(()),
    );
    let stopped = stopped.unwrap().remove(0);
    assert_eq!(
        (stopped.finish, &stopped.ids[..]),
        (Finish::Stop, &free.ids[..first])
    );
}

#[test]
fn a_request_may_have_stop_tokens_of_its_own() {
    let model = open("llama_tied", BaseQuant::None);
    let mut request = PromptIds {
        options: OPTIONS,
        ..prompt(5, 40, 1, 0.0)
    };
    let free = run(&model, std::slice::from_ref(&request), BatchOptions::default()).remove(0);
    let other = request.clone();
    request.options.stop_tokens = vec![free.ids[5]];
    let completions = run(&model, &[request, other], BatchOptions::default());
    let first = free.ids.iter().position(|id| *id == free.ids[5]).unwrap();
    assert_eq!(completions[0].finish, Finish::Stop);
    assert_eq!(completions[0].ids, free.ids[..first]);
    assert_eq!(completions[1], free);
}

#[test]
fn logprobs_are_those_of_the_logits_whatever_the_sampling_and_the_batch() {
    let model = open("llama_tied", BaseQuant::None);
    let mut asked = prompt(5, 40, 2, 0.8);
    asked.options.sampling.repetition_penalty = 1.3;
    asked.options.sampling.top_k = 40;
    let plain = run(&model, std::slice::from_ref(&asked), BatchOptions::default());
    assert!(plain.iter().all(|completion| completion.logprobs.is_none()));
    asked.options.logprobs = Some(3);
    let completions = run(
        &model,
        &[prompt(1, 9, 1, 1.0), asked.clone()],
        BatchOptions::default(),
    );
    for (completion, plain) in completions[1..].iter().zip(&plain) {
        assert_eq!(completion.ids, plain.ids);
        let logprobs = completion.logprobs.as_ref().unwrap();
        assert_eq!(logprobs.len(), completion.ids.len());
        let ids = [&asked.ids[..], &completion.ids].concat();
        let logits = crate::logits(&model, None, &ids).unwrap();
        let rows: Vec<&[f32]> = logits.chunks(model.config().vocab_size).collect();
        for (n_said, (found, &id)) in logprobs.iter().zip(&completion.ids).enumerate() {
            let row = rows[asked.ids.len() - 1 + n_said];
            assert_eq!(*found, TokenLogprob::of(row, id, 3));
            assert_eq!(found.chosen.id, id);
        }
    }
}

#[test]
fn breaking_off_returns_what_is_complete() {
    let model = open("llama_tied", BaseQuant::None);
    let mut n_complete = 0;
    let batch = BatchOptions {
        max_batch: 2,
        ..BatchOptions::default()
    };
    let completions = generate_ids(&model, &[], &prompts(), &[], &batch, &mut |event| {
        n_complete += usize::from(matches!(event, GenerateEvent::Completed(_)));
        if n_complete == 3 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert_eq!(completions.unwrap().len(), 3);
}

#[test]
fn options_without_a_meaning_are_refused() {
    let model = open("llama_tied", BaseQuant::None);
    let none = PromptIds {
        options: GenerateOptions {
            max_tokens: 0,
            ..OPTIONS
        },
        ..prompt(1, 3, 1, 0.0)
    };
    let empty = prompt(1, 0, 1, 0.0);
    let endless = prompt(1, 3, usize::MAX, 0.0);
    let unknown = PromptIds {
        adapter: Some(0),
        ..prompt(1, 3, 1, 0.0)
    };
    let mut endless_list = prompt(1, 3, 1, 0.0);
    endless_list.options.logprobs = Some(LOGPROBS_MAX + 1);
    let refused = [
        (none, 1),
        (empty, 1),
        (endless, 1),
        (endless_list, 1),
        (unknown, 1),
        (prompt(1, 3, 1, 0.0), 0),
    ];
    for (prompt, max_batch) in refused {
        let batch = BatchOptions {
            max_batch,
            ..BatchOptions::default()
        };
        let outcome = generate_ids(&model, &[], &[prompt], &[], &batch, &mut |_| {
            ControlFlow::Continue(())
        });
        assert!(matches!(outcome, Err(Error::GenerateOptions { .. })));
    }
    let nothing = run(&model, &[prompt(1, 3, 0, 0.0)], BatchOptions::default());
    assert!(nothing.is_empty());
}

fn request(text: &str, n: usize, options: GenerateOptions) -> GenerateRequest {
    let messages = vec![Message {
        role: Role::User,
        content: text.to_owned(),
    }];
    GenerateRequest {
        id: 7,
        adapter: None,
        messages,
        n,
        options,
    }
}

#[test]
fn streamed_text_is_the_completions_text() {
    let model = open_with_text();
    let sampling = Sampling {
        temperature: 1.5,
        ..Sampling::GREEDY
    };
    let requests = [request("naïve 🙂", 6, GenerateOptions { sampling, ..OPTIONS })];
    let mut streamed = vec![String::new(); 6];
    let completions = generate(&model, &[], &requests, &BatchOptions::default(), &mut |event| {
        if let GenerateEvent::Text { k, text, .. } = event {
            streamed[k] += text;
        }
        ControlFlow::Continue(())
    });
    let completions = completions.unwrap();
    assert_eq!(
        completions
            .iter()
            .map(|completion| completion.text.clone())
            .collect::<Vec<_>>(),
        streamed
    );
    assert!(streamed.iter().any(|text| !text.is_empty()));
}

#[test]
fn a_stop_string_ends_a_response_before_it_and_was_never_streamed() {
    let model = open_with_text();
    let sampling = Sampling {
        temperature: 1.0,
        ..Sampling::GREEDY
    };
    let run = |stop: Vec<String>| {
        let requests = [request(
            "hello",
            1,
            GenerateOptions {
                sampling,
                stop,
                max_tokens: 60,
                ..OPTIONS
            },
        )];
        let mut streamed = String::new();
        let completions = generate(&model, &[], &requests, &BatchOptions::default(), &mut |event| {
            if let GenerateEvent::Text { text, .. } = event {
                streamed += text;
            }
            ControlFlow::Continue(())
        });
        let completion = completions.unwrap().remove(0);
        assert_eq!(completion.text, streamed);
        completion
    };
    let free = run(vec![]);
    let is_plain = |pair: &[char]| pair.iter().all(|&c| c != char::REPLACEMENT_CHARACTER);
    let characters: Vec<char> = free.text.chars().collect();
    let stop: String = characters
        .windows(2)
        .skip(3)
        .find(|pair| is_plain(pair))
        .unwrap()
        .iter()
        .collect();
    let stopped = run(vec![stop.clone()]);
    assert_eq!(stopped.finish, Finish::Stop);
    assert_eq!(stopped.text, free.text[..free.text.find(&stop).unwrap()]);
    assert!(stopped.tokens < free.tokens);
}

#[test]
fn a_stop_string_that_names_a_special_token_stops_at_the_token() {
    let model = open_with_text();
    let sampling = Sampling {
        temperature: 1.0,
        ..Sampling::GREEDY
    };
    // Some of these responses say <|im_start|>, which no text shows.
    let run = |stop: &[&str]| {
        let options = GenerateOptions {
            sampling,
            stop: stop.iter().map(|&text| text.to_owned()).collect(),
            max_tokens: 200,
            ..OPTIONS
        };
        let requests = [request("hello", 24, options)];
        generate(&model, &[], &requests, &BatchOptions::default(), &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap()
    };
    let special = model.tokenizer().unwrap().special_id("<|im_start|>").unwrap();
    let (free, stopped) = (run(&[]), run(&["<|im_start|>"]));
    assert!(free.iter().any(|completion| completion.ids.contains(&special)));
    for (free, stopped) in free.iter().zip(&stopped) {
        let end = free.ids.iter().position(|&id| id == special);
        assert_eq!(stopped.ids, free.ids[..end.unwrap_or(free.ids.len())]);
        assert!(end.is_none() || stopped.finish == Finish::Stop);
    }
}
