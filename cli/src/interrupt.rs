//! Ctrl-C, twice: the first asks to finish, the second to stop.
//!
//! Invariant: from the moment one of these exists, a signal never kills the process by itself.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The requests to stop that reach this process.
#[derive(Debug)]
pub(crate) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// Starts to listen.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
