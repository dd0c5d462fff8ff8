//! What is kept of a cycle's synthesized pairs.
//!
//! Invariant: nothing is kept that is too close to a test prompt, and the kept samples are a new artifact: data that was
//! trained on before never changes.

use std::collections::BTreeMap;

use llamaduo_artifacts::Directory;
use llamaduo_data::curate::rules::ResponseForm;
use llamaduo_data::curate::{self, CurationConfig};
use llamaduo_data::{Sample, jsonl};
use llamaduo_proto::ids::Cycle;
use llamaduo_proto::manifest::{Manifest, ManifestKind};
use llamaduo_proto::run::{CurationCounts, CurationSettings, RunSpec};

use super::{Error, inputs};
use crate::machine::{Aggregated, Run};

/// Curates what the synthesize tasks of `cycle` gave back.
pub(super) fn curate(
    artifacts: &Directory,
    run: &Run,
    spec: &RunSpec,
    cycle: Cycle,
) -> Result<Aggregated, Error> {
    let (candidates, synthesized) = inputs::candidates(artifacts, run, cycle)?;
    let (data, _) = run.training_data(spec, cycle);
    let mut existing: Vec<Sample> = Vec::new();
    for digest in &data {
        existing.extend(inputs::rows(artifacts, "training samples", digest)?);
    }
    let test: Vec<Sample> = inputs::rows(artifacts, "the test split", &spec.coverage.test)?;
    let config = config(&spec.synthesis.curation, &existing);
    let curated = curate::curate(candidates, &existing, &test, &config);

    let encode = |what, text: Result<String, llamaduo_data::Error>| {
        text.map_err(|source| Error::Encode { what, source })
    };
    let kept = encode("the kept samples", jsonl::write(&curated.kept))?;
    let dropped = encode("the dropped samples", jsonl::write(&curated.dropped))?;
    let samples = inputs::store(artifacts, "the kept samples", kept.as_bytes())?;
    let dropped = inputs::store(artifacts, "the dropped samples", dropped.as_bytes())?;
    let manifest = Manifest {
        kind: ManifestKind::CuratedSamples,
        files: BTreeMap::from([
            ("samples.jsonl".to_owned(), samples),
            ("dropped.jsonl".to_owned(), dropped),
        ]),
        parents: [synthesized, data, vec![spec.coverage.test]].concat(),
    };
    let manifest = inputs::store_manifest(artifacts, &manifest)?;
    Ok(Aggregated::Curated {
        cycle,
        counts: counts(&curated.counts),
        manifest,
        samples,
    })
}

fn counts(counts: &curate::CurationCounts) -> CurationCounts {
    let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    CurationCounts {
        n_raw: count(counts.raw),
        n_kept: count(counts.kept),
        n_duplicates: count(counts.duplicates + counts.near_duplicates + counts.not_novel),
        n_filtered: count(counts.malformed + counts.filtered),
        n_contaminated: count(counts.contaminated),
    }
}

/// The knobs of curation from a run's settings; `existing` are the samples that new ones are to look like.
pub fn config(settings: &CurationSettings, existing: &[Sample]) -> CurationConfig {
    let mut config = CurationConfig::default();
    let words = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    config.rules.instruction_words_min = words(settings.prompt_words_min);
    config.rules.instruction_words_max = words(settings.prompt_words_max);
    config.rules.response_words_max = words(settings.response_words_max);
    if settings.response_json {
        let required_keys = shared_keys(existing);
        config.rules.response_form = ResponseForm::JsonObject {
            required_keys,
            allowed_values: BTreeMap::new(),
        };
    }
    config.near_duplicates.jaccard_min = settings.near_duplicate_jaccard;
    config.novelty.rouge_l_max = settings.novelty_rouge_l;
    config.contamination.rouge_l_min = settings.contamination_rouge_l;
    config.contamination.ngram_words = words(settings.contamination_run_words);
    config
}

/// The keys that every response among `samples` has, where each is a JSON object.
pub(super) fn shared_keys(samples: &[Sample]) -> Vec<String> {
    let mut objects = samples.iter().filter_map(|sample| {
        serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(sample.response().trim()).ok()
    });
    let Some(first) = objects.next() else {
        return Vec::new();
    };
    let mut keys: Vec<String> = first.keys().cloned().collect();
    for object in objects {
        keys.retain(|key| object.contains_key(key));
    }
    keys
}
