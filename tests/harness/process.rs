//! The real `llamaduo` binary as child processes that can be killed.
//!
//! Invariant: every child dies with its handle, so that a failed test leaves nothing running.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The release binary, built if it is not up to date.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let status = Command::new(env!("CARGO"))
            .args([
                "build",
                "--release",
                "--quiet",
                "--package",
                "llamaduo-cli",
                "--bin",
                "llamaduo",
            ])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .status()
            .expect("cargo runs: it runs this test");
        assert!(status.success(), "the llamaduo binary must build");
        let test_program = std::env::current_exe().expect("the running test has a path");
        // target/release/deps/it-<hash> lies two folders below the profile's folder.
        let profile = test_program
            .ancestors()
            .nth(2)
            .expect("a test program lies in target/release/deps");
        profile.join("llamaduo")
    })
}

/// A command line of the binary, without colours or a user's settings.
pub fn llamaduo() -> Command {
    let mut command = Command::new(binary());
    command
        .env("NO_COLOR", "1")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// What a finished command said.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Data.
    pub stdout: String,
    /// Progress and errors.
    pub stderr: String,
}

impl Output {
    /// The exit code; -1 after a signal.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Fails unless it ended with `code` and told why in each of `words`, with no data.
    pub fn assert_refused(&self, code: i32, words: &[&str]) {
        let Self { stdout, stderr, .. } = self;
        assert_eq!(self.code(), code, "{stdout}\n{stderr}");
        assert_eq!(stdout, "", "an error is no data");
        for word in words {
            assert!(stderr.contains(word), "no `{word}` in: {stderr}");
        }
    }
}

/// Runs to the end, which must not be a panic's.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let output = Output {
        status: output.status,
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    };
    assert!(!output.stderr.contains("panicked at"), "{}", output.stderr);
    output
}

/// A running process, killed when dropped. Its output goes to files, so that it never blocks.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, with stdout and stderr appended to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .expect("the log opens");
        let copy = file.try_clone().expect("the log can be shared");
        let child = command
            .stdout(file)
            .stderr(copy)
            .spawn()
            .expect("the binary starts");
        Self {
            child,
            log: log.to_owned(),
        }
    }

    /// SIGKILL, as `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a killed child ends");
    }

    /// Waits for the end, at most `limit`; prints the log and fails beyond.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(
                begun.elapsed() < limit,
                "still running after {limit:?}:\n{}",
                self.log()
            );
            pause();
        }
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("a child can be waited for")
            .is_none()
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        let mut text = String::new();
        let read = std::fs::File::open(&self.log).and_then(|mut file| file.read_to_string(&mut text));
        if let Err(error) = read {
            text = format!("(no log: {error})");
        }
        text
    }

    /// Waits until the log holds `text`, at most `limit`; false when the process ended before.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> bool {
        let begun = Instant::now();
        loop {
            if self.log().contains(text) {
                return true;
            }
            if !self.is_running() {
                return self.log().contains(text);
            }
            assert!(
                begun.elapsed() < limit,
                "no `{text}` after {limit:?}:\n{}",
                self.log()
            );
            pause();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already dead is as good as killed now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Between two looks at another process.
#[expect(
    clippy::disallowed_methods,
    reason = "tests watch real processes and have no runtime to wait on"
)]
pub fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
