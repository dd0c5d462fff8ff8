//! Runs one attempt of one task, from its spec to its result.
//!
//! Invariant: a result names only artifacts that are stored; an attempt that is told to stop does so at the next
//! step and leaves what it has paid for or trained behind, stored.

mod executor;
mod infer;
mod judge;
mod many;
mod synthesize;
mod train;

use std::collections::BTreeMap;
use std::sync::Arc;

use llamaduo_data::{Message, Sample, jsonl};
use llamaduo_prompts::{Prompt, PromptName, Rendered, RenderedRole};
use llamaduo_proto::Digest;
use llamaduo_proto::manifest::{Manifest, ManifestKind};
use llamaduo_proto::session::Assignment;
use llamaduo_proto::task::{Progress, TaskOutput, TaskResult, TaskSpec};

use crate::artifacts::Artifacts;
use crate::calls::PaidCalls;
use crate::error::Error;
use crate::link::AttemptHandle;
use crate::models::Models;
use crate::service_llm::{AnswerSchema, ChatRequest, Services};

pub(crate) use executor::Executor;

/// What all tasks of a worker share.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) artifacts: Artifacts,
    pub(crate) calls: PaidCalls,
    pub(crate) services: Services,
    pub(crate) models: Models,
    pub(crate) executor: Executor,
}

/// Does what an assignment asks for.
pub(crate) async fn run(
    bench: &Arc<Bench>,
    assignment: &Assignment,
    attempt: &Arc<AttemptHandle>,
) -> Result<TaskResult, Error> {
    attempt.check()?;
    match &assignment.spec {
        TaskSpec::Train(task) => train::run(bench, task, assignment, attempt).await,
        TaskSpec::Infer(task) => infer::run(bench, task, assignment, attempt).await,
        TaskSpec::Judge(task) => judge::run(bench, task, attempt).await,
        TaskSpec::Synthesize(task) => synthesize::run(bench, task, attempt).await,
    }
}

impl Bench {
    /// The samples of an artifact of JSONL rows.
    async fn samples(&self, digest: Digest, attempt: &AttemptHandle) -> Result<Vec<Sample>, Error> {
        self.rows(digest, "samples as JSON lines", attempt).await
    }

    async fn rows<T: serde::de::DeserializeOwned>(
        &self,
        digest: Digest,
        expected: &'static str,
        attempt: &AttemptHandle,
    ) -> Result<Vec<T>, Error> {
        let text = self
            .artifacts
            .get_text(digest, expected, attempt.stopped())
            .await?;
        jsonl::read(&format!("artifact {digest}"), &text).map_err(Error::content(digest, expected))
    }

    /// A prompt of the run, or the built-in one.
    async fn prompt(
        &self,
        name: PromptName,
        digest: Option<Digest>,
        attempt: &AttemptHandle,
    ) -> Result<Prompt, Error> {
        match digest {
            None => Ok(Prompt::builtin(name)?),
            Some(digest) => {
                let text = self
                    .artifacts
                    .get_text(digest, "a prompt's file", attempt.stopped())
                    .await?;
                Ok(Prompt::from_toml(&text)?)
            }
        }
    }

    /// Stores files and the manifest that names them.
    async fn store(
        &self,
        attempt: &AttemptHandle,
        kind: ManifestKind,
        files: Vec<(&'static str, Vec<u8>)>,
        parents: Vec<Digest>,
    ) -> Result<Manifest, Error> {
        let mut stored = BTreeMap::new();
        for (name, bytes) in files {
            stored.insert(
                name.to_owned(),
                self.artifacts.put(bytes, attempt.stopped()).await?,
            );
        }
        Ok(Manifest {
            kind,
            files: stored,
            parents,
        })
    }

    async fn result(
        &self,
        attempt: &AttemptHandle,
        manifest: &Manifest,
        output: TaskOutput,
    ) -> Result<TaskResult, Error> {
        let manifest = self.artifacts.put_manifest(manifest, attempt.stopped()).await?;
        Ok(TaskResult { manifest, output })
    }
}

/// The file of a manifest that was just stored.
fn file(manifest: &Manifest, name: &'static str) -> Result<Digest, Error> {
    manifest.files.get(name).copied().ok_or_else(|| Error::Task {
        what: "a manifest",
        expected: format!("a file {name}"),
        found: manifest.files.keys().cloned().collect::<Vec<_>>().join(", "),
    })
}

fn progress(n_done: u64, n_total: u64, unit: &str) -> Progress {
    Progress {
        n_done,
        n_total,
        unit: unit.to_owned(),
        detail: String::new(),
    }
}

/// A rendered prompt as a question, for the `repeat`-th time.
fn request(rendered: Rendered, repeat: u64) -> ChatRequest {
    let turn = |message: llamaduo_prompts::RenderedMessage| {
        let role = match message.role {
            RenderedRole::System => llamaduo_data::Role::System,
            RenderedRole::User => llamaduo_data::Role::User,
        };
        Message::new(role, message.content)
    };
    ChatRequest {
        messages: rendered.messages.into_iter().map(turn).collect(),
        schema: Some(AnswerSchema {
            name: rendered.schema_name.to_owned(),
            schema: rendered.schema,
        }),
        repeat,
    }
}
