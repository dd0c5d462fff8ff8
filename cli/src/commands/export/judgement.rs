//! Whether what was exported is near to what was trained, in words.
//!
//! Invariant: a judgement follows from the measured KL alone, by a bound that holds for any two models; where none was
//! measured the difference is as large as it can be.

use llamaduo_engine::export::Difference;
use serde::Serialize;

use crate::args::ExportTarget;

/// What a mean KL comes to for answers that are drawn at random.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Judgement {
    size: Size,
    /// The part of the next tokens that need be drawn otherwise is no more than this: √(KL/2), Pinsker's inequality. Of a
    /// mean KL it bounds the mean part, since a root is concave.
    tokens_differing_max: f64,
    /// Why nothing is known of the difference, where that is so.
    #[serde(skip)]
    unknown: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Size {
    Small,
    Noticeable,
    Large,
}

/// With one token in twenty drawn otherwise some 0.95¹⁰ = 60 % of answers of ten tokens stay as they were; with one in five
/// 0.8¹⁰ = 11 %.
const SMALL_MAX: f64 = 0.05;
const NOTICEABLE_MAX: f64 = 0.2;

/// Why an adapter alone is far off, and what is not.
const OF_ADAPTER_ALONE: &str = "the adapter was trained on the base's NF4 values and stands on others here, so judge its answers \
                                before they are used, or take --to gguf, which merges it with the values that it was trained on";
/// The same of what was rounded when it was stored.
const OF_MERGED: &str = "a finer --type comes nearer; otherwise judge its answers before they are used";

impl Judgement {
    pub(super) fn of(difference: &Difference) -> Self {
        let unknown = match difference {
            Difference { positions: 0, .. } => Some("no position was compared"),
            Difference { kl_mean, .. } if !kl_mean.is_finite() => Some("not all logits are finite numbers"),
            _ => None,
        };
        let tokens_differing_max = match unknown {
            Some(_) => 1.0,
            None => (difference.kl_mean.max(0.0) / 2.0).sqrt().min(1.0),
        };
        let size = match tokens_differing_max {
            part if part <= SMALL_MAX => Size::Small,
            part if part <= NOTICEABLE_MAX => Size::Noticeable,
            _ => Size::Large,
        };
        Self {
            size,
            tokens_differing_max,
            unknown,
        }
    }

    /// A line for people.
    pub(super) fn words(self, to: ExportTarget) -> String {
        if let Some(why) = self.unknown {
            return format!(
                "that counts as large, since {why}: judge its answers before they are used, or give other rows with --data"
            );
        }
        let size = match self.size {
            Size::Small => "small",
            Size::Noticeable => "noticeable",
            Size::Large => "large",
        };
        let percent = 100.0 * self.tokens_differing_max;
        let line = format!("that is {size}: at most {percent:.1} % of next tokens are drawn otherwise");
        match (self.size, to) {
            (Size::Small, _) => line,
            (_, ExportTarget::GgufLora) => format!("{line}; {OF_ADAPTER_ALONE}"),
            (_, _) => format!("{line}; {OF_MERGED}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(kl_mean: f64) -> Judgement {
        judged_at(64, kl_mean)
    }

    fn judged_at(positions: usize, kl_mean: f64) -> Judgement {
        Judgement::of(&Difference {
            positions,
            logits_max: 1.0,
            kl_mean,
            top1_agreement: 0.9,
        })
    }

    #[test]
    fn a_difference_is_judged_by_how_many_tokens_it_can_change() {
        for (kl_mean, size, percent) in [
            (-1e-12, "small", "0.0 %"),
            (3e-3, "small", "3.9 %"),
            (0.02, "noticeable", "10.0 %"),
            (0.6, "large", "54.8 %"),
            (8.0, "large", "100.0 %"),
        ] {
            let words = judged(kl_mean).words(ExportTarget::Gguf);
            assert!(
                words.contains(&format!("that is {size}: at most {percent}")),
                "{words}"
            );
        }
    }

    #[test]
    fn what_was_not_measured_is_not_small() {
        for (positions, kl_mean, why) in [
            (64, f64::NAN, "finite numbers"),
            (64, f64::INFINITY, "finite numbers"),
            (0, 0.0, "no position"),
        ] {
            let judgement = judged_at(positions, kl_mean);
            assert_eq!(
                (judgement.size, judgement.tokens_differing_max),
                (Size::Large, 1.0)
            );
            let words = judgement.words(ExportTarget::Gguf);
            assert!(words.contains("large") && words.contains(why), "{words}");
        }
    }

    #[test]
    fn what_is_not_small_says_what_comes_nearer() {
        let small = judged(1e-4).words(ExportTarget::GgufLora);
        assert!(!small.contains(';'), "{small}");
        let alone = judged(0.4).words(ExportTarget::GgufLora);
        assert!(alone.contains("NF4") && alone.contains("--to gguf"), "{alone}");
        let merged = judged(0.4).words(ExportTarget::Safetensors);
        assert!(merged.contains("--type"), "{merged}");
    }
}
