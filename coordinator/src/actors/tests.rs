//! Actors under paused time.
