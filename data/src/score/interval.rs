//! 95 % intervals for means, shares and ratios of clustered observations.
//!
//! Invariant: the cluster (a prompt) is the unit; an interval from fewer than two clusters does not exist.
//!
//! Sources: the ratio estimator and its variance, Cochran, *Sampling Techniques* (3rd ed.), §6 and §9A;
//! intervals of a ratio of means, Fieller, *J. R. Stat. Soc. B* 16 (1954) 175; shares under clustering, Korn and
//! Graubard, *Survey Methodology* 24 (1998) 193, with Wilson's interval in place of Clopper and Pearson's; intervals of
//! a ratio of shares, MOVER-R, Donner and Zou, *Stat. Methods Med. Res.* 21 (2012) 347.

use serde::{Deserialize, Serialize};

/// A 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The answers to one prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Cluster {
    /// How many.
    pub(super) count: f64,
    /// The sum of their values.
    pub(super) sum: f64,
}

/// 97.5 % point of the normal distribution.
const Z: f64 = 1.959_964;

/// 97.5 % points of Student's t for 1 to 30 degrees of freedom.
const T: [f64; 30] = [
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604,
    2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555,
    2.0518, 2.0484, 2.0452, 2.0423,
];

/// 97.5 % point of Student's t; beyond the table the Cornish-Fisher expansion, good to 1e-4 there.
fn student_t(freedom: usize) -> f64 {
    match freedom.checked_sub(1).and_then(|row| T.get(row)) {
        Some(&t) => t,
        None if freedom == 0 => f64::INFINITY,
        None => {
            let (n, z2) = (freedom as f64, Z * Z);
            Z + Z * (z2 + 1.0) / (4.0 * n) + Z * (5.0 * z2 * z2 + 16.0 * z2 + 3.0) / (96.0 * n * n)
        }
    }
}

/// Σ sum / Σ count.
pub(super) fn mean(clusters: &[Cluster]) -> Option<f64> {
    let count: f64 = clusters.iter().map(|cluster| cluster.count).sum();
    let sum: f64 = clusters.iter().map(|cluster| cluster.sum).sum();
    (count > 0.0).then(|| sum / count)
}

/// Variance of [`mean`]: n/(n−1) · Σ (sumᵢ − mean·countᵢ)² / (Σ count)².
fn variance(clusters: &[Cluster], mean: f64) -> f64 {
    let n = clusters.len() as f64;
    let count: f64 = clusters.iter().map(|cluster| cluster.count).sum();
    let squares: f64 = clusters
        .iter()
        .map(|cluster| (cluster.sum - mean * cluster.count).powi(2))
        .sum();
    n / (n - 1.0) * squares / (count * count)
}

/// Student's t interval of [`mean`].
pub(super) fn mean_interval(clusters: &[Cluster]) -> Option<Interval> {
    if clusters.len() < 2 {
        return None;
    }
    let mean = mean(clusters)?;
    let half = student_t(clusters.len() - 1) * variance(clusters, mean).sqrt();
    Some(Interval {
        low: mean - half,
        high: mean + half,
    })
}

/// Wilson's interval of a share at the effective sample size p(1−p)/variance, reduced by (z/t)² for the few
/// clusters that the variance is known from. Where all prompts agree the variance says nothing and each prompt
/// counts as one observation.
pub(super) fn share_interval(clusters: &[Cluster]) -> Option<Interval> {
    if clusters.len() < 2 {
        return None;
    }
    let share = mean(clusters)?;
    let observations: f64 = clusters.iter().map(|cluster| cluster.count).sum();
    let clusters_count = clusters.len() as f64;
    let variance = variance(clusters, share);
    let effective = if variance > 0.0 && share > 0.0 && share < 1.0 {
        let correction = (Z / student_t(clusters.len() - 1)).powi(2);
        (share * (1.0 - share) / variance * correction).min(observations)
    } else {
        clusters_count
    };
    Some(wilson(share, effective))
}

/// How many prompts it takes until a coverage of all of them, of both models, bounds their ratio at `floor`; none do
/// where that is 1 or more.
pub fn prompts_needed(floor: f64) -> Option<u64> {
    // Wilson's lower end of n of n is 1 / (1 + z²/n).
    (floor < 1.0).then(|| (Z * Z * floor / (1.0 - floor)).ceil() as u64)
}

fn wilson(share: f64, n: f64) -> Interval {
    let z2n = Z * Z / n;
    let centre = (share + z2n / 2.0) / (1.0 + z2n);
    let half = Z / (1.0 + z2n) * (share * (1.0 - share) / n + z2n / (4.0 * n)).sqrt();
    // At the ends of the scale one end of the interval is the share itself, which rounding would miss by a hair.
    Interval {
        low: if share > 0.0 {
            (centre - half).max(0.0)
        } else {
            0.0
        },
        high: if share < 1.0 {
            (centre + half).min(1.0)
        } else {
            1.0
        },
    }
}

/// The first and the second of each pair.
fn unzip(pairs: &[(Cluster, Cluster)]) -> (Vec<Cluster>, Vec<Cluster>) {
    pairs.iter().copied().unzip()
}

/// The means of both sides, where their ratio has a meaning.
fn means(over: &[Cluster], under: &[Cluster]) -> Option<(f64, f64)> {
    let (y, x) = (mean(over)?, mean(under)?);
    (x > 0.0).then_some((y, x))
}

/// Ratio of the means of the first over the second of each pair, with Fieller's interval: the values r for which
/// mean(y) − r·mean(x) is no further from zero than t standard errors.
pub(super) fn mean_ratio(pairs: &[(Cluster, Cluster)]) -> (Option<f64>, Option<Interval>) {
    let (over, under) = unzip(pairs);
    let Some((y, x)) = means(&over, &under) else {
        return (None, None);
    };
    let value = y / x;
    if pairs.len() < 2 {
        return (Some(value), None);
    }
    let t2 = student_t(pairs.len() - 1).powi(2);
    let (yy, xx) = (t2 * variance(&over, y), t2 * variance(&under, x));
    let yx = t2 * covariance(pairs, y, x);
    // (x² − xx) r² − 2 (xy − yx) r + (y² − yy) ≤ 0
    let a = x * x - xx;
    let b = x * y - yx;
    let c = y * y - yy;
    let discriminant = b * b - a * c;
    if a <= 0.0 {
        return (Some(value), None);
    }
    let root = discriminant.max(0.0).sqrt();
    let interval = Interval {
        low: ((b - root) / a).max(0.0),
        high: (b + root) / a,
    };
    (Some(value), Some(interval))
}

/// Ratio of the shares of the first over the second of each pair, with its interval from those of the two shares
/// (MOVER-R): the values r for which y − r·x is no further from zero than what the intervals of y and x leave open,
/// the pairing's correlation taken off. Fieller's interval would need variances, and where nearly all answers are
/// covered there is none left to see: it then shrinks to a point, however few the prompts are.
pub(super) fn share_ratio(pairs: &[(Cluster, Cluster)]) -> (Option<f64>, Option<Interval>) {
    let (over, under) = unzip(pairs);
    let Some((y, x)) = means(&over, &under) else {
        return (None, None);
    };
    let value = y / x;
    let (Some(of_y), Some(of_x)) = (share_interval(&over), share_interval(&under)) else {
        return (Some(value), None);
    };
    let spread = (variance(&over, y) * variance(&under, x)).sqrt();
    let correlation = if spread > 0.0 {
        (covariance(pairs, y, x) / spread).clamp(-1.0, 1.0)
    } else {
        0.0
    };
    // Ends of the r with (y − r·x)² ≤ (y − y₁)² + r²(x − x₁)² − 2r·correlation·(y − y₁)(x − x₁), where y₁ and x₁ are
    // the ends of the intervals that make r small, or large.
    let parts = |y_end: f64, x_end: f64| {
        let a = x_end * (2.0 * x - x_end);
        let b = x * y - correlation * (y - y_end) * (x_end - x);
        let c = y_end * (2.0 * y - y_end);
        (a, b, c, (b * b - a * c).max(0.0).sqrt())
    };
    let (_, b, c, root) = parts(of_y.low, of_x.high);
    // The root in the form that needs no division by a, which may be 0.
    let low = if b + root > 0.0 {
        (c / (b + root)).max(0.0)
    } else {
        0.0
    };
    let (a, b, _, root) = parts(of_y.high, of_x.low);
    // A share above 0 has a low end above 0, and then a is above 0.
    let high = if a > 0.0 { (b + root) / a } else { f64::MAX };
    (Some(value), Some(Interval { low, high }))
}

fn covariance(pairs: &[(Cluster, Cluster)], y: f64, x: f64) -> f64 {
    let n = pairs.len() as f64;
    let (counts_y, counts_x) = pairs.iter().fold((0.0, 0.0), |sums, pair| {
        (sums.0 + pair.0.count, sums.1 + pair.1.count)
    });
    let products: f64 = pairs
        .iter()
        .map(|(over, under)| (over.sum - y * over.count) * (under.sum - x * under.count))
        .sum();
    n / (n - 1.0) * products / (counts_y * counts_x)
}

#[cfg(test)]
mod tests;
