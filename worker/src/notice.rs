//! What a worker tells the people who started it, in plain words and seldom; the log says the rest.
//!
//! Invariant: what goes on unchanged is told again less and less often.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use llamaduo_proto::ids::WorkerId;
use tokio::time::Instant;

/// Something that whoever started the worker should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A session began.
    Connected {
        /// The coordinator's address.
        url: String,
    },
    /// Nobody answers as a coordinator does.
    Away {
        /// The coordinator's address.
        url: String,
        /// What came instead of an answer.
        reason: String,
    },
    /// Another process has the worker's name.
    NameTaken {
        /// The name.
        worker: WorkerId,
        /// When it is free if that process is gone.
        free_in: Duration,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { url } => write!(f, "connected to the coordinator at {url}"),
            Self::Away { url, reason } => write!(
                f,
                "no coordinator answers at {url} ({reason}); trying until one does: start it with `llamaduo coordinator`, \
                 or name another address with --coordinator"
            ),
            Self::NameTaken { worker, free_in } => write!(
                f,
                "another process was at work as {worker} a moment ago; waiting {} s for it to be gone",
                free_in.as_secs().max(1)
            ),
        }
    }
}

/// Who is told.
#[derive(Clone)]
pub struct Tell(Arc<dyn Fn(&Notice) + Send + Sync>);

impl Tell {
    /// Has `hear` called with each notice; it must not block.
    pub fn new(hear: impl Fn(&Notice) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hear))
    }

    /// Tells nobody.
    pub fn nobody() -> Self {
        Self::new(|_| {})
    }
}

impl fmt::Debug for Tell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tell")
    }
}

/// First and longest silence about a coordinator that stays away.
const AGAIN_FIRST: Duration = Duration::from_secs(60);
const AGAIN_MAX: Duration = Duration::from_secs(960);

/// How a link gets on, told when it changes and seldom while it does not.
#[derive(Clone, Debug)]
pub(crate) struct Telling {
    tell: Tell,
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    New,
    Connected,
    Away { again_at: Instant, pause: Duration },
}

impl Telling {
    pub(crate) fn new(tell: Tell) -> Self {
        Self {
            tell,
            state: Arc::new(Mutex::new(State::New)),
        }
    }

    /// Changes the state and tells what `next` says.
    fn change(&self, next: impl FnOnce(State) -> Option<(State, Notice)>) {
        // Nothing panics while the lock is held, so a poisoned lock still guards a whole state.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((changed, notice)) = next(*state) {
            *state = changed;
            drop(state);
            (self.tell.0)(&notice);
        }
    }

    pub(crate) fn connected(&self, url: &str) {
        let notice = || Notice::Connected { url: url.to_owned() };
        self.change(|state| (state != State::Connected).then(|| (State::Connected, notice())));
    }

    pub(crate) fn away(&self, url: &str, reason: &str, now: Instant) {
        self.change(|state| {
            let pause = match state {
                State::New | State::Connected => AGAIN_FIRST,
                State::Away { again_at, .. } if now < again_at => return None,
                State::Away { pause, .. } => (pause * 4).min(AGAIN_MAX),
            };
            let again_at = now + pause;
            let notice = Notice::Away {
                url: url.to_owned(),
                reason: reason.to_owned(),
            };
            Some((State::Away { again_at, pause }, notice))
        });
    }

    pub(crate) fn name_taken(&self, worker: &WorkerId, free_in: Duration) {
        let notice = Notice::NameTaken {
            worker: worker.clone(),
            free_in,
        };
        self.change(|_| Some((State::New, notice)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn what_goes_on_is_told_once_and_then_seldom() {
        let heard: Arc<Mutex<Vec<Notice>>> = Arc::default();
        let ear = Arc::clone(&heard);
        let telling = Telling::new(Tell::new(move |notice| ear.lock().unwrap().push(notice.clone())));
        let n_heard = || heard.lock().unwrap().len();
        let start = Instant::now();
        let mut told_at = Vec::new();
        for second in (0..3600).step_by(3) {
            let n_before = n_heard();
            telling.away("http://x", "refused", start + Duration::from_secs(second));
            if n_before < n_heard() {
                told_at.push(second);
            }
        }
        assert_eq!(told_at, [0, 60, 300, 1260, 2220, 3180]);
        for _ in 0..3 {
            telling.connected("http://x");
        }
        telling.away("http://x", "refused", start);
        assert_eq!(n_heard(), told_at.len() + 2, "each change is told, once");
        let words = heard.lock().unwrap()[0].to_string();
        assert!(
            words.starts_with("no coordinator answers at http://x (refused)"),
            "{words}"
        );
    }
}
