//! Scores of a subject, as the run's record and its events hold them.

use llamaduo_data::score::{Judged, MetricScore as Measured};
use llamaduo_proto::run::{MetricScore, Scores};

/// The scores of `judged`. `n_verdicts` counts those that could be read.
pub(super) fn scores(judged: &Judged) -> Scores {
    let scores = judged.scores();
    let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Scores {
        similarity: metric(&scores.similarity),
        precision: metric(&scores.precision),
        n_verdicts: count(scores.verdicts.saturating_sub(scores.unparsed)),
        n_unparsed: count(scores.unparsed),
    }
}

fn metric(measured: &Measured) -> MetricScore {
    MetricScore {
        mean: measured.mean,
        interval: measured
            .mean_interval
            .map(|interval| (interval.low, interval.high)),
        coverage: measured.coverage,
    }
}
