//! Following a run's events over broken connections.
//!
//! Invariant: durable events arrive in order, once, without gaps, whatever the connection does.

use std::ops::ControlFlow;
use std::time::Duration;

use llamaduo_proto::event::{RunEvent, RunEventKind};
use llamaduo_proto::ids::RunId;
use llamaduo_proto::run::RunStatus;
use llamaduo_proto::wire;
use tonic::{Code, Status};

use super::{Client, absent, refused_of};
use crate::error::Result;

/// Broken streams in a row without an event before the coordinator is taken for gone: with the pause below about two
/// minutes, in which a restart replays its log.
const BREAKS_MAX: u32 = 60;

/// Pause before a broken stream is opened again.
const BREAK_PAUSE: Duration = Duration::from_secs(2);

impl Client {
    async fn has_ended(&self, run: &RunId) -> Result<bool> {
        Ok(self.run(run).await?.run.status != RunStatus::Running)
    }

    /// Hands every event of `run` from number `from` on to `observe`, with progress between them, until the run has
    /// ended or `observe` breaks. The end of a run that was gone on with is an event as any other.
    pub(crate) async fn follow(
        &self,
        run: &RunId,
        from: u64,
        mut observe: impl AsyncFnMut(RunEvent) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut next_seq = from.max(1);
        let mut n_breaks = 0;
        let mut has_ended = false;
        loop {
            let request = wire::WatchEventsRequest {
                run_id: run.to_string(),
                from_seq: next_seq,
                progress: true,
            };
            let broken = match self.runs.clone().watch_events(request).await {
                Err(status) => status,
                Ok(answer) => {
                    let mut stream = answer.into_inner();
                    let asked_from = next_seq;
                    loop {
                        match stream.message().await {
                            Err(status) => break status,
                            // The coordinator ends the stream once the run has ended and all is told.
                            Ok(None) if has_ended => return Ok(()),
                            // Nothing follows a number beyond the last event of a run that has ended.
                            Ok(None) if next_seq == asked_from && self.has_ended(run).await? => return Ok(()),
                            Ok(None) => break Status::unavailable("the stream of events ended early"),
                            Ok(Some(message)) => {
                                let event =
                                    RunEvent::try_from(message.event.ok_or_else(|| absent("event"))?)?;
                                if event.seq != 0 && event.seq < next_seq {
                                    continue;
                                }
                                n_breaks = 0;
                                next_seq = next_seq.max(event.seq + 1);
                                if event.seq != 0 {
                                    has_ended = matches!(event.kind, RunEventKind::RunEnded { .. });
                                }
                                if observe(event).await?.is_break() {
                                    return Ok(());
                                }
                            }
                        }
                    }
                }
            };
            n_breaks += 1;
            let may_heal = matches!(
                broken.code(),
                Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
            );
            if !may_heal || n_breaks > BREAKS_MAX {
                return Err(refused_of(run, "follow the run")(broken));
            }
            tracing::warn!(run_id = %run, next_seq, message = broken.message(), "event stream broke; opening it again");
            tokio::time::sleep(BREAK_PAUSE).await;
        }
    }
}
