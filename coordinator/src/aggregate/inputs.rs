//! Reading what tasks gave back.
//!
//! Invariant: every artifact is verified by its digest and every row is parsed; a damaged row is an error that names
//! artifact and line, never a gap.

use llamaduo_artifacts::Directory;
use llamaduo_data::score::Judged;
use llamaduo_data::synthesis::Candidate;
use llamaduo_data::{Response, Sample, Verdict, jsonl};
use llamaduo_proto::Digest;
use llamaduo_proto::ids::{Cycle, TaskId};
use llamaduo_proto::manifest::Manifest;
use llamaduo_proto::run::{CoverageDataset, RunSpec, Subject};
use llamaduo_proto::task::{TaskOutput, TaskResult};
use serde::de::DeserializeOwned;

use super::Error;
use crate::machine::{Run, TaskKind};

/// The rows of an artifact that holds `what`.
pub(super) fn rows<T: DeserializeOwned>(
    artifacts: &Directory,
    what: &'static str,
    digest: &Digest,
) -> Result<Vec<T>, Error> {
    let text = text(artifacts, what, digest)?;
    let name = format!("artifact {digest}");
    jsonl::read(&name, &text).map_err(|source| Error::Content {
        what,
        digest: *digest,
        source,
    })
}

fn text(artifacts: &Directory, what: &'static str, digest: &Digest) -> Result<String, Error> {
    let bytes = artifacts
        .get(digest)
        .map_err(|source| Error::Artifact { what, source })?;
    String::from_utf8(bytes).map_err(|_| Error::NotText {
        what,
        digest: *digest,
    })
}

/// Stores the outcome of an aggregate.
pub(super) fn store(artifacts: &Directory, what: &'static str, bytes: &[u8]) -> Result<Digest, Error> {
    artifacts
        .put(bytes)
        .map_err(|source| Error::Artifact { what, source })
}

/// Stores a manifest.
pub(super) fn store_manifest(artifacts: &Directory, manifest: &Manifest) -> Result<Digest, Error> {
    let what = "a manifest";
    let bytes = serde_json::to_vec(manifest).map_err(|source| Error::Encode {
        what,
        source: llamaduo_data::Error::Encode { what, source },
    })?;
    store(artifacts, what, &bytes)
}

/// What a manifest names under `file`.
pub(super) fn file_of(artifacts: &Directory, manifest: &Digest, file: &str) -> Result<Option<Digest>, Error> {
    let what = "a manifest";
    let text = text(artifacts, what, manifest)?;
    let parsed: Manifest = serde_json::from_str(&text).map_err(|source| Error::Content {
        what,
        digest: *manifest,
        source: llamaduo_data::Error::Encode { what, source },
    })?;
    Ok(parsed.files.get(file).copied())
}

/// Results of the tasks of one kind, by shard, up to the first that is not done.
fn results<'a>(
    run: &'a Run,
    cycle: Cycle,
    kind: impl Fn(u32) -> TaskKind + 'a,
) -> impl Iterator<Item = &'a TaskResult> {
    let result = move |id: TaskId| run.tasks.get(&id)?.record.result.as_ref();
    (0..).map_while(move |shard| result(kind(shard).id(cycle)))
}

/// Every verdict on a subject's responses.
pub(super) fn verdicts(
    artifacts: &Directory,
    run: &Run,
    cycle: Cycle,
    subject: Subject,
) -> Result<Vec<Verdict>, Error> {
    let mut all = Vec::new();
    for result in results(run, cycle, |shard| TaskKind::Judge { subject, shard }) {
        if let TaskOutput::Judge(output) = &result.output {
            all.extend(rows(artifacts, "verdicts", &output.verdicts)?);
        }
    }
    Ok(all)
}

/// Every response of a subject.
pub(super) fn responses(
    artifacts: &Directory,
    run: &Run,
    cycle: Cycle,
    subject: Subject,
) -> Result<Vec<Response>, Error> {
    let mut all = Vec::new();
    for result in results(run, cycle, |shard| TaskKind::Infer { subject, shard }) {
        if let TaskOutput::Infer(output) = &result.output {
            all.extend(rows(artifacts, "responses", &output.responses)?);
        }
    }
    Ok(all)
}

/// Everything that was synthesized in a cycle, in call order, with the artifacts it is in.
pub(super) fn candidates(
    artifacts: &Directory,
    run: &Run,
    cycle: Cycle,
) -> Result<(Vec<Candidate>, Vec<Digest>), Error> {
    let (mut all, mut parents) = (Vec::new(), Vec::new());
    for result in results(run, cycle, |shard| TaskKind::Synthesize { shard }) {
        if let TaskOutput::Synthesize(output) = &result.output {
            all.extend(rows(artifacts, "synthesized items", &output.samples)?);
            parents.push(result.manifest);
        }
    }
    Ok((all, parents))
}

/// A subject's answers with their grades.
pub(super) fn judged(
    artifacts: &Directory,
    run: &Run,
    spec: &RunSpec,
    cycle: Cycle,
    subject: Subject,
) -> Result<Judged, Error> {
    Ok(Judged::new(
        &verdicts(artifacts, run, cycle, subject)?,
        spec.gate.coverage_score,
    ))
}

/// Reads both splits of a coverage dataset before anything is spent on them.
pub(crate) fn check_coverage(artifacts: &Directory, coverage: &CoverageDataset) -> Result<(), Error> {
    for (what, digest, expected) in [
        ("the train split", coverage.train, coverage.n_train),
        ("the test split", coverage.test, coverage.n_test),
    ] {
        let found = rows::<Sample>(artifacts, what, &digest)?.len();
        if u32::try_from(found) != Ok(expected) {
            return Err(Error::RowCount {
                what,
                found,
                expected,
            });
        }
    }
    Ok(())
}
