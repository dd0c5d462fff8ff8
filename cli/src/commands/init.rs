//! `init`: a config and a coverage dataset to begin with.
//!
//! Invariant: nothing that exists is overwritten, and the next commands named work as they stand.

use std::path::Path;

use llamaduo_worker::stand_in::tickets;
use serde::Serialize;

use crate::args;
use crate::directory::write_file;
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::output::Output;

/// Seed of the sample dataset: any does.
const SAMPLE_SEED: u64 = 0;

const CONFIG: &str = include_str!("init/llamaduo.toml");

#[derive(Serialize)]
struct Written {
    config: String,
    coverage: String,
}

/// `init`.
pub(super) fn init(arguments: &args::Init, output: &Output) -> Result<Exit> {
    let config = arguments.directory.join("llamaduo.toml");
    let coverage = arguments.directory.join("data/coverage.jsonl");
    for path in [&config, &coverage] {
        refuse_existing(path)?;
    }
    write_file(&coverage, tickets::coverage_dataset(SAMPLE_SEED).as_bytes())?;
    write_file(&config, CONFIG.as_bytes())?;
    let written = Written {
        config: config.display().to_string(),
        coverage: coverage.display().to_string(),
    };
    output.result(&written, || format!("{}\n{}", written.config, written.coverage))?;
    output.line(&format!(
        "next: `llamaduo stand-in-service` in one terminal and `llamaduo run -c {}` in another; then put in your own \
         pairs and your own service LLM",
        written.config
    ));
    Ok(Exit::Ok)
}

fn refuse_existing(path: &Path) -> Result<()> {
    if path.exists() {
        let path = path.display();
        return Err(Error::Usage(format!(
            "{path} exists; name another directory, or move it away"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::config;

    #[test]
    fn what_init_writes_is_a_plan() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("new");
        let output = crate::output::Output::new(crate::args::Format::Json);
        let arguments = super::args::Init {
            directory: directory.clone(),
        };
        super::init(&arguments, &output).unwrap();
        let path = directory.join("llamaduo.toml");
        let plan = config::plan::plan(&config::load(&path, &[]).unwrap(), &directory).unwrap();
        assert!(plan.spec.coverage.n_train > 0 && plan.spec.coverage.n_test > 0);
        let again = super::init(&arguments, &output).unwrap_err();
        assert!(again.to_string().contains("exists"), "{again}");
    }

    #[test]
    fn defaults_in_the_file_are_the_defaults() {
        // Nothing but the keys behind a bare #.
        let commented: String = super::CONFIG
            .lines()
            .filter_map(|line| match line.strip_prefix('#') {
                Some(line) if !line.starts_with(' ') => Some(line),
                _ => line.starts_with('[').then_some(line),
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let config = config::parse("llamaduo.toml", &commented, &[]).unwrap();
        assert_eq!(config, config::Config::default());
        // And those named behind a value.
        for (key, value) in super::CONFIG.lines().filter_map(|line| {
            let (set, comment) = line.split_once("# default ")?;
            Some((set.split_once(" = ")?.0, comment))
        }) {
            let defaults = toml::to_string(&config::Config::default()).unwrap();
            let line = format!("{key} = {value}");
            assert!(
                defaults.lines().any(|known| known == line),
                "`{line}` is no default"
            );
            assert!(
                !super::CONFIG
                    .lines()
                    .any(|set| set.starts_with(&format!("{line} "))),
                "{line} is set to it"
            );
        }
    }

    #[test]
    fn every_key_is_in_the_file() {
        let mut section = String::new();
        let mut named = std::collections::BTreeSet::new();
        for line in super::CONFIG.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = name.to_owned();
                named.insert(section.clone());
                continue;
            }
            let line = line.trim_start_matches('#').trim_start();
            let words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let listed = section == "judge" && !line.contains(" = ");
            for word in words.take(if listed { usize::MAX } else { 1 }) {
                named.insert(format!("{section}.{word}"));
            }
        }
        let missing: Vec<String> = config::known_keys()
            .into_iter()
            .filter(|key| !named.contains(key))
            .collect();
        assert_eq!(missing, [""; 0]);
    }
}
