//! Settings of the sampler; the rule itself is tested where it is.

use super::*;

#[test]
fn settings_without_a_meaning_are_refused() {
    for sampling in [
        Sampling {
            temperature: f32::NAN,
            ..Sampling::GREEDY
        },
        Sampling {
            top_p: 0.0,
            ..Sampling::GREEDY
        },
        Sampling {
            min_p: 1.0,
            ..Sampling::GREEDY
        },
        Sampling {
            repetition_penalty: 0.0,
            ..Sampling::GREEDY
        },
    ] {
        assert!(sampling.validate().is_err(), "{sampling:?}");
    }
}
