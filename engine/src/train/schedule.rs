//! The learning rate of each step.
//!
//! Invariant: a function of the step's number alone, equal to transformers' `get_cosine_schedule_with_warmup` and
//! `get_constant_schedule_with_warmup`, whose first step has rate 0 when there is a warm-up, but for a last step that
//! would still be warm-up: it runs at the full rate.

use super::config::{Schedule, TrainConfig};

/// Learning rate of step `step`, counted from 0, of `n_steps`.
pub(crate) fn learning_rate(config: &TrainConfig, step: u32, n_steps: u32) -> f64 {
    let warmup = (f64::from(n_steps) * config.warmup_ratio).ceil() as u32;
    // A run of one step would be all warm-up, at rate 0: it would learn nothing.
    let warmup = warmup.min(n_steps.saturating_sub(1));
    if step < warmup {
        return config.learning_rate * f64::from(step) / f64::from(warmup);
    }
    match config.schedule {
        Schedule::Constant => config.learning_rate,
        Schedule::Cosine => {
            let progress = f64::from(step - warmup) / f64::from((n_steps - warmup).max(1));
            config.learning_rate * (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
        }
    }
}
