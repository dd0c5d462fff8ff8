//! Answers on stdout while they grow, one after another.
//!
//! Invariant: an answer is printed whole before the next begins, without the newlines at its end.

use std::io;
use std::ops::ControlFlow;

use crate::output::Output;

/// The answers to one prompt. One of them is printed as it grows; what later ones say meanwhile waits.
pub(super) struct Printed<'a> {
    output: &'a Output,
    answers: Vec<Answer>,
    /// The one that is printed now.
    current: usize,
    n_newlines: usize,
    failure: Option<io::Error>,
}

/// What is known of an answer and not printed yet.
struct Answer {
    /// A line over it; nothing where it is the only one.
    heading: String,
    waiting: String,
    has_ended: bool,
}

impl<'a> Printed<'a> {
    /// An answer for each of the headings.
    pub(super) fn new(output: &'a Output, headings: Vec<String>) -> Self {
        let answer = |heading| Answer {
            heading,
            waiting: String::new(),
            has_ended: false,
        };
        Self {
            output,
            answers: headings.into_iter().map(answer).collect(),
            current: 0,
            n_newlines: 0,
            failure: None,
        }
    }

    /// Why nothing more was printed.
    pub(super) fn failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    /// More of an answer; breaks once nobody reads it.
    pub(super) fn push(&mut self, place: usize, text: &str) -> ControlFlow<()> {
        self.answers[place].waiting.push_str(text);
        match place == self.current {
            true => self.show(),
            false => ControlFlow::Continue(()),
        }
    }

    /// The end of an answer; those behind it that have ended too are printed with it.
    pub(super) fn end(&mut self, place: usize) -> ControlFlow<()> {
        self.answers[place].has_ended = true;
        while self
            .answers
            .get(self.current)
            .is_some_and(|answer| answer.has_ended)
        {
            self.show()?;
            let is_last = self.current + 1 == self.answers.len();
            self.write(if is_last { "\n" } else { "\n\n" })?;
            self.current += 1;
            self.n_newlines = 0;
        }
        match self.current < self.answers.len() {
            true => self.show(),
            false => ControlFlow::Continue(()),
        }
    }

    /// What there is of the current answer.
    fn show(&mut self) -> ControlFlow<()> {
        let answer = &mut self.answers[self.current];
        let heading = std::mem::take(&mut answer.heading);
        let text = std::mem::take(&mut answer.waiting);
        if !heading.is_empty() {
            self.write(&(heading + "\n"))?;
        }
        let words = text.trim_end_matches('\n');
        if !words.is_empty() {
            let newlines = "\n".repeat(std::mem::take(&mut self.n_newlines));
            self.write(&(newlines + words))?;
        }
        self.n_newlines += text.len() - words.len();
        ControlFlow::Continue(())
    }

    fn write(&mut self, text: &str) -> ControlFlow<()> {
        match self.output.part(text) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.failure = Some(error);
                ControlFlow::Break(())
            }
        }
    }
}
