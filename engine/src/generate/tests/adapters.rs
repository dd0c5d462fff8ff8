//! Requests of several adapters, and of none, in one batch.
//!
//! Invariant: tokens and likelihoods have the very bits that they have when an adapter's requests are run alone.

use llamaduo_kernels::{Backend, Compute, Cuda, Device};

use super::*;
use crate::local_model::LoadOptions;
use crate::lora::{LinearName, LoraConfig, LoraTargets};
use crate::testing::{golden_model, open_on_cuda};

/// An adapter of made-up numbers, large enough to change what is said.
fn made_up(config: &ModelConfig, rank: usize, targets: LoraTargets, seed: u64) -> Adapter {
    let lora = LoraConfig {
        rank,
        targets,
        ..LoraConfig::default()
    };
    let n_params = Adapter::init(config, &lora, seed).unwrap().params().len() as u64;
    let params = (0..n_params).map(|i| llamaduo_kernels::random::uniform(seed, i) / 4.0 - 0.125);
    Adapter::from_params(config, lora, params.collect()).unwrap()
}

/// Of different ranks, on different linears.
fn adapters(family: &str, config: &ModelConfig) -> [Adapter; 3] {
    [
        crate::peft::load(&golden(family).join("adapter"), config).unwrap(),
        made_up(config, 3, LoraTargets::Qv, 5),
        made_up(
            config,
            17,
            LoraTargets::List(vec![LinearName::Key, LinearName::Down]),
            6,
        ),
    ]
}

/// What each adapter, and the base, answers to its own prompts alone.
fn alone<B: Backend>(
    model: &LocalModel<B>,
    adapters: &[Adapter],
    prompts: &[PromptIds],
    batch: BatchOptions,
) -> Vec<Completion> {
    let named = (0..adapters.len()).map(Some).chain([None]);
    let completions = named.flat_map(|adapter| {
        let own = prompts.iter().filter(|prompt| prompt.adapter == adapter);
        let own: Vec<PromptIds> = own
            .map(|prompt| PromptIds {
                adapter: adapter.map(|_| 0),
                ..prompt.clone()
            })
            .collect();
        let only = adapter.map_or(&[][..], |adapter| std::slice::from_ref(&adapters[adapter]));
        let completions = run_with(model, only, &own, batch);
        completions.into_iter().map(move |completion| Completion {
            adapter,
            ..completion
        })
    });
    let mut completions: Vec<Completion> = completions.collect();
    let place = |of: &Completion| {
        let is_own = |prompt: &PromptIds| (prompt.id, prompt.adapter) == (of.request, of.adapter);
        (prompts.iter().position(is_own), of.k)
    };
    completions.sort_by_key(place);
    completions
}

#[test]
fn each_request_is_answered_as_by_its_adapter_alone() {
    for compute in [Compute::F32, Compute::Bf16, Compute::Int16] {
        let options = LoadOptions {
            compute,
            device: Device::Cpu,
            ..LoadOptions::default()
        };
        let model = LocalModel::open(golden_model("llama_tied"), &options).unwrap();
        let adapters = adapters("llama_tied", model.config());
        let mut prompts = prompts();
        for (prompt, adapter) in prompts
            .iter_mut()
            .zip([Some(2), None, Some(0), Some(1)].into_iter().cycle())
        {
            prompt.adapter = adapter;
            prompt.options.logprobs = Some(2);
        }
        // The same prompt by all of them: nothing of its beginning may be shared.
        let same = prompts[6].clone();
        prompts.extend([Some(0), Some(1), None].map(|adapter| PromptIds {
            id: 20,
            adapter,
            ..same.clone()
        }));
        let expected = alone(&model, &adapters, &prompts, BatchOptions::default());
        let together = run_with(&model, &adapters, &prompts, BatchOptions::default());
        assert_eq!(together, expected, "{compute}");
        let tight = BatchOptions {
            max_batch: 5,
            cache_bytes_max: 0,
        };
        assert_eq!(
            run_with(&model, &adapters, &prompts, tight),
            expected,
            "{compute}"
        );
        let of_all: std::collections::BTreeSet<_> = (together.iter())
            .filter(|completion| completion.request == 20 && completion.k == 0)
            .map(|completion| &completion.ids)
            .collect();
        assert_eq!(of_all.len(), 3, "the adapters say different things");
    }
}

#[test]
fn so_they_are_on_cuda() {
    for (family, quant) in [
        ("mistral", BaseQuant::Nf4 { double: true }),
        ("gemma", BaseQuant::None),
    ] {
        let model: LocalModel<Cuda> = open_on_cuda(family, quant);
        let adapters = adapters(family, model.config());
        let named = [Some(1), None, Some(0), Some(2), Some(0)];
        let prompts: Vec<PromptIds> = named
            .into_iter()
            .zip([3, 18, 5, 9, 21])
            .zip(0..)
            .map(|((adapter, len), id)| {
                let mut prompt = prompt(id, len, 1, 1.0);
                prompt.ids.iter_mut().for_each(|token| *token %= 90);
                prompt.adapter = adapter;
                prompt.options.max_tokens = 3 + id as usize % 2;
                prompt.options.logprobs = Some(1);
                prompt
            })
            .collect();
        let batch = BatchOptions {
            max_batch: 4,
            ..BatchOptions::default()
        };
        let expected = alone(&model, &adapters, &prompts, batch);
        assert_eq!(run_with(&model, &adapters, &prompts, batch), expected, "{family}");
    }
}

#[test]
fn an_adapter_for_a_model_of_other_sizes_is_refused_among_others() {
    let model = open("llama_tied", BaseQuant::None);
    let other = open("gemma", BaseQuant::None);
    let adapters = [
        made_up(model.config(), 4, LoraTargets::Qv, 1),
        made_up(other.config(), 4, LoraTargets::Qv, 1),
    ];
    let prompts = [Some(0), None].map(|adapter| PromptIds {
        adapter,
        ..prompt(1, 5, 1, 0.0)
    });
    let outcome = generate_ids(
        &model,
        &adapters,
        &prompts,
        &[],
        &BatchOptions::default(),
        &mut |_| ControlFlow::Continue(()),
    );
    assert!(matches!(outcome, Err(Error::AdapterMismatch { .. })));
}
