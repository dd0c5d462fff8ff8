//! One token from a row of logits: the rule that every backend's `choose` follows to the bit.
//!
//! Invariant: a function of the logits, the settings and one random number. Weights are integers, so their sums are exact
//! in any order: how many threads add them, on which device, changes nothing. Equal weights rank by the lower id.
//!
//! A token's weight is `exp((logit - largest) / temperature)`, relative to the likeliest token's, in units of 2⁻⁴³, cut
//! off below. Its exponential is made of additions and multiplications alone, each of them rounded once, which all
//! machines do alike; a library's own differs from one to the next.

#[cfg(test)]
mod tests;

use crate::error::{Error, Result};

const OP: &str = "choose";

/// How a row's token is chosen: first the penalty, then the temperature, then the cut-offs in the order in which they
/// stand here, each of what those before it left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleSpec {
    /// Logits are divided by it; 0 always takes the largest (greedy).
    pub temperature: f32,
    /// Keeps the so many likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the likeliest tokens that together reach this part of all weight; 1 keeps all.
    pub top_p: f32,
    /// Drops tokens less likely than this part of the likeliest one; 0 drops none.
    pub min_p: f32,
    /// Logits of seen tokens are divided by it when positive, multiplied when not; 1 leaves them.
    pub repetition_penalty: f32,
}

/// What one row's token is chosen by.
#[derive(Clone, Copy, Debug)]
pub struct SampleRow<'a> {
    /// The settings.
    pub spec: SampleSpec,
    /// Uniform below 2⁵³; not used where the temperature is 0.
    pub random: u64,
    /// Tokens that the penalty falls on, as often as one likes; ids that no logit has are passed over.
    pub seen: &'a [u32],
}

/// Bits of a weight's unit: the likeliest token weighs `1 << WEIGHT_BITS`.
pub const WEIGHT_BITS: u32 = 43;
/// Bits of an id within a key: a weight of 44 bits and an id fill one word, and 2²⁰ weights add up within another.
pub const ID_BITS: u32 = 20;
/// Bits of a random number.
pub const RANDOM_BITS: u32 = 53;
/// Tokens so many nats below the likeliest weigh less than a unit: e^-29.9 < 2⁻⁴³.
pub const NEGLIGIBLE: f32 = 32.0;

impl SampleSpec {
    /// Always the token of the largest logit.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
    };

    /// The least weight that `min_p` keeps.
    pub(crate) fn min_weight(self) -> u64 {
        (f64::from(self.min_p) * (1u64 << WEIGHT_BITS) as f64).ceil() as u64
    }

    fn check(self) -> Result<()> {
        let Self {
            temperature,
            top_p,
            min_p,
            repetition_penalty,
            ..
        } = self;
        let checks = [
            (
                "temperature",
                temperature.is_finite() && temperature >= 0.0,
                "0 or more",
            ),
            ("top_p", top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", (0.0..1.0).contains(&min_p), "at least 0 and below 1"),
            (
                "repetition_penalty",
                repetition_penalty.is_finite() && repetition_penalty > 0.0,
                "a positive number",
            ),
        ];
        match checks.into_iter().find(|(_, holds, _)| !holds) {
            Some((what, _, expected)) => Err(Error::Setting {
                op: OP,
                what,
                expected,
            }),
            None => Ok(()),
        }
    }
}

impl SampleRow<'_> {
    /// The seen tokens that a penalty changes: each once, none without a penalty.
    pub(crate) fn penalized(&self, n_vocab: usize) -> Vec<u32> {
        if self.spec.repetition_penalty == 1.0 {
            return Vec::new();
        }
        let known = self.seen.iter().copied();
        let mut ids: Vec<u32> = known.filter(|&id| (id as usize) < n_vocab).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// Fails on rows whose settings have no meaning, and on a vocabulary that keys cannot number.
pub(crate) fn check(rows: &[SampleRow<'_>], n_vocab: usize) -> Result<()> {
    let fails = |what, expected| {
        Err(Error::Setting {
            op: OP,
            what,
            expected,
        })
    };
    if n_vocab == 0 || n_vocab > 1 << ID_BITS {
        return fails("the vocabulary", "of 1 to 1,048,576 tokens");
    }
    for row in rows {
        row.spec.check()?;
        if row.random >> RANDOM_BITS != 0 {
            return fails("the random number", "below 2^53");
        }
    }
    Ok(())
}

/// `logit` of a token that was seen, under `penalty`.
pub(crate) fn penalize(logit: f32, penalty: f32) -> f32 {
    match logit > 0.0 {
        true => logit / penalty,
        false => logit * penalty,
    }
}

/// The next token of logits that the penalty has already changed. `None` when the largest is not finite: a token would
/// be made up, perhaps the one that ends a response.
pub(crate) fn choose(logits: &[f32], spec: SampleSpec, random: u64) -> Option<u32> {
    let (best, largest) = argmax(logits);
    if !largest.is_finite() {
        return None;
    }
    if spec.temperature == 0.0 {
        return Some(best);
    }
    // Rank by rank: weights from the largest, equal ones by the lower id.
    let mut keys = keys(logits, largest, spec.temperature);
    keys.sort_unstable_by(|a, b| b.cmp(a));
    let weights = || keys.iter().map(|key| key >> ID_BITS);
    let mut total: u64 = weights().sum();
    if spec.top_k > 0 {
        total = weights().take(spec.top_k).sum();
    }
    if spec.top_p < 1.0 {
        let part = (f64::from(spec.top_p) * total as f64).ceil() as u64;
        total = through(&keys, part.max(1) - 1).map_or(total, |(_, sum)| sum);
    }
    if spec.min_p > 0.0 {
        let likely = weights().take_while(|&weight| weight >= spec.min_weight());
        total = total.min(likely.sum());
    }
    let place = (u128::from(random) * u128::from(total)) >> RANDOM_BITS;
    let (key, _) = through(&keys, place as u64)?;
    Some(id_of(key))
}

/// The first key, by rank, with which the sum of weights is above `place`, and that sum.
fn through(keys: &[u64], place: u64) -> Option<(u64, u64)> {
    let mut sum = 0;
    keys.iter().find_map(|&key| {
        sum += key >> ID_BITS;
        (sum > place).then_some((key, sum))
    })
}

/// Of each token that can be chosen its weight, and below it its id so that the lower one makes the larger key.
fn keys(logits: &[f32], largest: f32, temperature: f32) -> Vec<u64> {
    // No token below it weighs a unit: rounding keeps the order of numbers.
    let floor = largest - NEGLIGIBLE * temperature;
    let temperature = f64::from(temperature);
    logits
        .iter()
        .zip(0u64..)
        .filter(|&(&logit, _)| logit >= floor)
        .map(|(&logit, id)| {
            let exponent = (f64::from(logit) - f64::from(largest)) / temperature;
            weight(exponent) << ID_BITS | (((1 << ID_BITS) - 1) ^ id)
        })
        .collect()
}

fn id_of(key: u64) -> u32 {
    const MASK: u64 = (1 << ID_BITS) - 1;
    (key & MASK ^ MASK) as u32
}

/// Coefficients `1/n!` of the exponential's series, from the highest: with `|x| <= ln(2)/2` the next term is below 5e-18.
const SERIES: [f64; 14] = [
    1.0 / 6_227_020_800.0,
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    1.0 / 2.0,
    1.0,
    1.0,
];

/// ln(2) in two parts, the first of 32 bits, so that its multiples by small numbers are exact.
const LN_2: [f64; 2] = [
    f64::from_bits(0x3fe6_2e42_fee0_0000),
    f64::from_bits(0x3dea_39ef_3579_3c76),
];

/// `exp(x) * 2^43`, cut off below, of `x <= 0`: `exp(x) = 2^n * exp(rest)` with a rest of at most ln(2)/2.
fn weight(x: f64) -> u64 {
    if x < -30.0 {
        return 0; // less than a unit
    }
    let n = (x * std::f64::consts::LOG2_E).round_ties_even();
    let rest = (x - n * LN_2[0]) - n * LN_2[1];
    let exp = SERIES.iter().fold(0.0, |sum, &term| sum * rest + term);
    let unit = (i64::from(WEIGHT_BITS) + 1023 + n as i64) as u64;
    (exp * f64::from_bits(unit << 52)) as u64
}

/// The first of the largest logits. What is no number is never the largest.
fn argmax(logits: &[f32]) -> (u32, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (&logit, id) in logits.iter().zip(0..) {
        if logit > best.1 {
            best = (id, logit);
        }
    }
    best
}
