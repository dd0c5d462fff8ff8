//! llama.cpp itself, prebuilt in the Python package `xllamacpp`, which is installed below the target folder.
//!
//! Invariant: a machine that cannot have it says so on one line, and the test that wanted it does nothing else.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// Pinned: another release may round otherwise. The wheel has 32 MB.
const PACKAGE: &str = "xllamacpp==2026.10.11549";

/// An installed llama.cpp.
#[derive(Debug)]
pub struct LlamaCpp {
    python: PathBuf,
}

impl LlamaCpp {
    /// Installs it once for a target folder; `None` where that cannot be, which is said on standard output.
    pub fn get() -> Option<&'static Self> {
        static INSTALLED: OnceLock<Result<LlamaCpp, String>> = OnceLock::new();
        match INSTALLED.get_or_init(Self::install) {
            Ok(installed) => Some(installed),
            Err(why) => {
                // Not through print!, which is kept back when a test passes: `.ci/run` lists such lines.
                let line = format!("\nskipped: llama.cpp cannot be had here ({why})\n");
                std::io::stdout().write_all(line.as_bytes()).unwrap_or_default();
                None
            }
        }
    }

    fn install() -> Result<Self, String> {
        let test_program = std::env::current_exe().map_err(|error| error.to_string())?;
        // target/release/deps/it-<hash> lies three folders below the target folder.
        let target = test_program.ancestors().nth(3).ok_or("no target folder")?;
        let venv = target.join("llama-cpp");
        let python = venv.join("bin/python");
        let works = || {
            let mut command = Command::new(&python);
            command.args(["-c", "import xllamacpp"]);
            said(&mut command)
        };
        if works().is_err() {
            said(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
            let mut pip = Command::new(&python);
            pip.args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--only-binary=:all:",
                "--no-input",
            ]);
            pip.args([
                "--disable-pip-version-check",
                "--timeout",
                "15",
                "--retries",
                "1",
                PACKAGE,
            ]);
            said(&mut pip)?;
            works()?;
        }
        Ok(Self { python })
    }

    /// Greedy answers of a model in a GGUF file, with an adapter in another, to what `llama_cpp.py` calls requests.
    pub fn answers(
        &self,
        model: &Path,
        adapter: Option<&Path>,
        requests: &Value,
        max_tokens: usize,
    ) -> Vec<String> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/harness/llama_cpp.py");
        let mut command = Command::new(&self.python);
        command.arg(script).arg(model).args(adapter);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("an installed python starts");
        let asked = serde_json::json!({ "requests": requests, "max_tokens": max_tokens }).to_string();
        let mut stdin = child.stdin.take().expect("it was asked for");
        stdin
            .write_all(asked.as_bytes())
            .expect("the program reads what it is asked");
        drop(stdin);
        let output = child.wait_with_output().expect("the program ends");
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{log}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}\n{log}"))
    }
}

/// Runs a command; the last line of what it says when it fails.
fn said(command: &mut Command) -> Result<(), String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let last = words.lines().rev().find(|line| !line.trim().is_empty());
    Err(last.unwrap_or("it said nothing").trim().to_owned())
}
