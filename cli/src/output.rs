//! stdout is data, stderr is progress. This is the only place that writes to either.
//!
//! Invariant: a line on stderr never tears a progress bar, and a closed pipe is no error.

use std::io::{self, IsTerminal, Write};

use indicatif::MultiProgress;
use serde::Serialize;

use crate::args::Format;

/// The two streams of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    format: Format,
    bars: MultiProgress,
    is_terminal: bool,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self {
            format,
            bars: MultiProgress::new(),
            is_terminal: io::stderr().is_terminal(),
        }
    }

    /// How results are printed.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Whether stderr may be coloured (https://no-color.org).
    pub(crate) fn colours(&self) -> bool {
        self.is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
    }

    /// The bars on stderr, when it is a terminal.
    pub(crate) fn bars(&self) -> Option<&MultiProgress> {
        self.is_terminal.then_some(&self.bars)
    }

    /// Prints a result: `value` for programs, `text` for people.
    pub(crate) fn result(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> io::Result<()> {
        let text = match self.format {
            Format::Json => serde_json::to_string(value)?,
            Format::Text => text(),
        };
        self.bars.suspend(|| {
            let mut stdout = io::stdout().lock();
            let written = writeln!(stdout, "{}", text.trim_end_matches('\n')).and_then(|()| stdout.flush());
            match written {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                other => other,
            }
        })
    }

    /// A part of a result that is printed as it comes; whoever reads it may be gone.
    pub(crate) fn part(&self, text: &str) -> io::Result<()> {
        self.bars.suspend(|| {
            let mut stdout = io::stdout().lock();
            stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
        })
    }

    /// A line of progress. Nothing can be done about a stderr that is gone.
    pub(crate) fn line(&self, text: &str) {
        self.bars
            .suspend(|| writeln!(io::stderr().lock(), "{text}").unwrap_or_default());
    }

    /// An error with its causes.
    pub(crate) fn error(&self, error: &dyn std::error::Error) {
        self.line(&describe(error));
    }
}

/// An error as people read it: each cause on a line of its own, once.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = format!("error: {error}");
    let mut last = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !last.contains(&message) {
            text.push_str(&format!("\n  because: {message}"));
            last = message;
        }
        cause = error.source();
    }
    text
}

/// Lets the log share stderr with the bars.
impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bars.suspend(|| io::stderr().lock().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}
