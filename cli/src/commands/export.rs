//! `export`: what was trained, in the formats of other programs.
//!
//! Invariant: nothing that is there is replaced unless `--overwrite` asks for it, and stdout says what was measured on
//! what was written.

mod judgement;

use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use llamaduo_data::import::ROW_FORM;
use llamaduo_engine::export::{self, Difference, Exported, Progress, Request, StoredType, Target};
use llamaduo_engine::train::Conversation;
use llamaduo_engine::{ModelFiles, peft};
use serde::Serialize;

use super::local_model::{find, read};
use crate::args::{AdapterChoice, Export, ExportTarget, ExportType};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::model;
use crate::output::Output;
use judgement::Judgement;

/// Between two lines about how far it is, where there is no bar.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
const WRITE_TEMPLATE: &str = "writing {bar:24} {pos}/{len} tensors · {elapsed}";

/// What is printed for programs.
#[derive(Serialize)]
struct Report {
    to: &'static str,
    out: String,
    /// `null` where nothing was merged.
    #[serde(rename = "type")]
    stored: Option<StoredType>,
    #[serde(flatten)]
    exported: Exported,
    /// Whether the difference is large; `null` where there is none.
    judgement: Option<Judgement>,
}

/// `export`.
pub(super) fn export(arguments: &Export, output: &Output) -> Result<Exit> {
    let target = target(arguments)?;
    check_place(arguments)?;
    let conversations = match &arguments.data {
        Some(path) => conversations(path)?,
        None => Vec::new(),
    };
    let directory = adapter_of(arguments);
    let path = find(&arguments.model, directory.as_slice(), output)?;
    let adapter = match directory {
        Some(directory) => Some(peft::load(directory, &ModelFiles::open(&path)?.config)?),
        None => None,
    };
    let name = llamaduo_worker::models::published_name(&arguments.model.model);
    let request = Request {
        model: &path,
        base_name: &name,
        quant: model::base_quant(arguments.model.quant),
        compute: arguments.model.compute,
        adapter: adapter.as_ref(),
        target,
        out: &arguments.out,
        conversations: &conversations,
    };
    let mut shown = Shown::new(output);
    let exported = export::export(&request, &mut |progress| shown.show(progress))?;
    shown.end();
    let stored = stored(target);
    let report = Report {
        to: arguments.to.name(),
        out: arguments.out.display().to_string(),
        stored,
        judgement: exported.difference.as_ref().map(Judgement::of),
        exported,
    };
    output.result(&report, || words(arguments, &report))?;
    Ok(Exit::Ok)
}

fn adapter_of(arguments: &Export) -> Option<&Path> {
    arguments.adapter.as_ref().and_then(AdapterChoice::directory)
}

fn target(arguments: &Export) -> Result<Target> {
    let usage = |text: String| Err(Error::Usage(text));
    let (to, stored) = (arguments.to.name(), arguments.stored.map(stored_type));
    let is_adapter_alone = matches!(arguments.to, ExportTarget::Peft | ExportTarget::GgufLora);
    if is_adapter_alone && stored.is_some() {
        return usage(format!(
            "--type has no meaning with --to {to}: an adapter is small and always stored as f32; leave --type out"
        ));
    }
    let needs_adapter = is_adapter_alone || arguments.separate_adapter;
    if needs_adapter && adapter_of(arguments).is_none() {
        return usage(format!(
            "--to {to} writes an adapter, but none is given; name its directory with --adapter"
        ));
    }
    if arguments.separate_adapter && arguments.to != ExportTarget::Ollama {
        return usage(
            "--separate-adapter has a meaning with --to ollama only; to get an adapter alone, use --to gguf-lora".to_owned(),
        );
    }
    Ok(match arguments.to {
        ExportTarget::Peft => Target::Peft,
        ExportTarget::GgufLora => Target::GgufLora,
        // llama.cpp computes on halves as well as on bfloat16, and they hold three bits more.
        ExportTarget::Gguf => Target::Gguf(stored.unwrap_or(StoredType::F16)),
        // transformers computes in the type of the file, where halves overflow in some families.
        ExportTarget::Safetensors => match stored {
            Some(StoredType::Q8_0) => {
                return usage(
                    "--to safetensors has no q8_0; choose --type bf16, f16 or f32, or --to gguf".to_owned(),
                );
            }
            stored => Target::Safetensors(stored.unwrap_or(StoredType::Bf16)),
        },
        ExportTarget::Ollama => Target::Ollama {
            stored: stored.unwrap_or(StoredType::F16),
            separate_adapter: arguments.separate_adapter,
        },
    })
}

fn stored(target: Target) -> Option<StoredType> {
    match target {
        Target::Peft | Target::GgufLora => None,
        Target::Gguf(stored) | Target::Safetensors(stored) | Target::Ollama { stored, .. } => Some(stored),
    }
}

fn stored_type(name: ExportType) -> StoredType {
    match name {
        ExportType::F32 => StoredType::F32,
        ExportType::F16 => StoredType::F16,
        ExportType::Bf16 => StoredType::Bf16,
        ExportType::Q8_0 => StoredType::Q8_0,
    }
}

/// Refuses a place that is taken, or of the wrong kind, before anything is computed.
fn check_place(arguments: &Export) -> Result<()> {
    let (out, to) = (&arguments.out, arguments.to.name());
    let usage = |text: String| Err(Error::Usage(text));
    let is_file = matches!(arguments.to, ExportTarget::GgufLora | ExportTarget::Gguf);
    let shown = out.display();
    if is_file && out.extension().is_none_or(|extension| extension != "gguf") {
        return usage(format!(
            "--to {to} writes one file, whose name must end in .gguf; found --out {shown}"
        ));
    }
    let metadata = match std::fs::metadata(out) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(Error::Read {
                path: out.clone(),
                source,
            });
        }
    };
    if metadata.is_dir() == is_file {
        let (expected, found) = match is_file {
            true => ("a file", "a directory"),
            false => ("a directory", "a file"),
        };
        return usage(format!(
            "--to {to} writes {expected}, and {shown} is {found}; name another place with --out"
        ));
    }
    let is_empty = metadata.is_dir()
        && std::fs::read_dir(out)
            .map(|mut entries| entries.next().is_none())
            .unwrap_or(false);
    if !is_empty && !arguments.overwrite {
        return usage(format!(
            "{shown} exists already; name another place with --out, or let it be replaced with --overwrite"
        ));
    }
    Ok(())
}

fn conversations(path: &Path) -> Result<Vec<Conversation>> {
    let name = path.display().to_string();
    let rows: Vec<(u64, Conversation)> = llamaduo_data::jsonl::read_lines(&name, &read(path)?, ROW_FORM)?;
    let rows: Vec<Conversation> = rows.into_iter().map(|(_, row)| row).collect();
    match rows.is_empty() {
        true => Err(Error::Usage(format!("{name} holds no rows; expected {ROW_FORM}"))),
        false => Ok(rows),
    }
}

/// What a person reads.
fn words(arguments: &Export, report: &Report) -> String {
    let mut text = report.out.clone();
    if let Some(difference) = &report.exported.difference {
        text += &format!(
            "\n{}",
            measured(arguments.to, adapter_of(arguments).is_some(), difference)
        );
    }
    if let Some(judgement) = report.judgement {
        text += &format!("\n{}", judgement.words(arguments.to));
    }
    if arguments.to == ExportTarget::Ollama {
        text += &format!("\nnext: cd {} && ollama create NAME -f Modelfile", report.out);
    }
    text
}

fn measured(to: ExportTarget, has_adapter: bool, difference: &Difference) -> String {
    let what = match (to, has_adapter) {
        (ExportTarget::GgufLora, _) => {
            "the adapter on the base's own values, beside the base as it was trained on"
        }
        (_, true) => "as read back, beside base and adapter as trained",
        (_, false) => "as read back, beside the base as it is held here",
    };
    format!(
        "{what}: logits differ by at most {:.2e}, mean KL {:.2e} nats, the same likeliest token at {:.1} % of {} positions",
        difference.logits_max,
        difference.kl_mean,
        100.0 * difference.top1_agreement,
        difference.positions
    )
}

/// Progress on stderr: a bar on a terminal, a line now and then elsewhere.
struct Shown<'o> {
    output: &'o Output,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl<'o> Shown<'o> {
    fn new(output: &'o Output) -> Self {
        Self {
            output,
            bar: None,
            last_line: Instant::now(),
        }
    }

    fn show(&mut self, progress: Progress) {
        match progress {
            Progress::Reference => self.output.line("computing what the trained model answers"),
            Progress::Comparing => {
                self.end();
                self.output.line("reading it back and comparing");
            }
            Progress::Writing { n_done, n_tensors } => self.written(n_done, n_tensors),
        }
    }

    fn written(&mut self, n_done: usize, n_tensors: usize) {
        if let (None, Some(bars)) = (&self.bar, self.output.bars()) {
            let style = ProgressStyle::with_template(WRITE_TEMPLATE);
            let bar = bars.add(ProgressBar::new(n_tensors as u64));
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.bar = Some(bar);
        }
        match &self.bar {
            Some(bar) => bar.set_position(n_done as u64),
            None if self.last_line.elapsed() >= LINE_INTERVAL => {
                self.last_line = Instant::now();
                self.output
                    .line(&format!("  writing: {n_done}/{n_tensors} tensors"));
            }
            None => {}
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_valid() {
        assert!(ProgressStyle::with_template(WRITE_TEMPLATE).is_ok());
    }
}
