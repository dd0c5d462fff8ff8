use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Golden {
    student_t: Vec<(usize, f64)>,
    wilson: Vec<(f64, f64, f64, f64)>,
    clusters: Vec<Vec<f64>>,
    mean_interval: (f64, f64, f64),
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../../../tests/golden/scores/golden.json")).unwrap()
}

fn cluster(values: &[f64]) -> Cluster {
    Cluster {
        count: values.len() as f64,
        sum: values.iter().sum(),
    }
}

#[test]
fn points_of_students_t_are_scipys() {
    for (freedom, t) in golden().student_t {
        assert!(
            (student_t(freedom) - t).abs() < 1e-4,
            "t({freedom}) = {} not {t}",
            student_t(freedom)
        );
    }
    assert_eq!(student_t(0), f64::INFINITY);
}

#[test]
fn wilson_intervals_are_scipys() {
    for (successes, n, low, high) in golden().wilson {
        let interval = wilson(successes / n, n);
        assert!(
            (interval.low - low).abs() < 1e-6 && (interval.high - high).abs() < 1e-6,
            "{interval:?}"
        );
    }
}

#[test]
fn the_interval_of_a_mean_is_scipys_over_cluster_means() {
    let golden = golden();
    let clusters: Vec<Cluster> = golden.clusters.iter().map(|values| cluster(values)).collect();
    let (expected, low, high) = golden.mean_interval;
    let interval = mean_interval(&clusters).unwrap();
    assert!((mean(&clusters).unwrap() - expected).abs() < 1e-9);
    assert!(
        (interval.low - low).abs() < 1e-3 && (interval.high - high).abs() < 1e-3,
        "{interval:?}"
    );
}

#[test]
fn one_prompt_has_no_interval() {
    let one = [cluster(&[80.0, 90.0])];
    assert_eq!(
        (mean(&one), mean_interval(&one), share_interval(&one)),
        (Some(85.0), None, None)
    );
    assert_eq!(mean(&[]), None);
    for ratio in [mean_ratio, share_ratio] {
        assert_eq!(ratio(&[(one[0], one[0])]), (Some(1.0), None));
        assert_eq!(ratio(&[]), (None, None));
    }
}

#[test]
fn where_all_prompts_agree_a_share_is_as_sure_as_its_prompts_are_many() {
    let all = vec![cluster(&[1.0, 1.0, 1.0, 1.0]); 15];
    assert_eq!(share_interval(&all), Some(wilson(1.0, 15.0)));
}

#[test]
fn a_service_that_scores_nothing_gives_no_ratio() {
    let (some, nothing) = (cluster(&[1.0]), cluster(&[0.0]));
    for ratio in [mean_ratio, share_ratio] {
        assert_eq!(ratio(&[(some, nothing), (some, nothing)]), (None, None));
    }
    // One success in twenty cannot be told from none by its standard error.
    let mut pairs = vec![(some, nothing); 19];
    pairs.push((some, some));
    assert_eq!(mean_ratio(&pairs), (Some(20.0), None));
    let interval = share_ratio(&pairs).1.unwrap();
    assert!(interval.low > 1.0 && interval.high.is_finite(), "{interval:?}");
}

#[test]
fn a_ratio_of_full_coverages_is_as_sure_as_its_prompts_are_many() {
    let full = cluster(&[1.0, 1.0, 1.0, 1.0]);
    for n in [2, 15, 90] {
        let pairs = vec![(full, full); n];
        let (value, interval) = share_ratio(&pairs);
        assert_eq!(value, Some(1.0));
        let (interval, share) = (interval.unwrap(), wilson(1.0, n as f64));
        assert!((interval.low - share.low).abs() < 1e-12, "{interval:?} of {n}");
        assert!(
            (interval.high - 1.0 / share.low).abs() < 1e-9,
            "{interval:?} of {n}"
        );
    }
}

#[test]
fn the_prompts_that_full_coverage_needs_are_just_enough() {
    let full = cluster(&[1.0]);
    for floor in [0.5, 0.8, 0.9, 0.95] {
        let needed = prompts_needed(floor).unwrap() as usize;
        let low = |n: usize| share_ratio(&vec![(full, full); n]).1.unwrap().low;
        assert!(
            low(needed) >= floor && low(needed - 1) < floor,
            "{floor}: {needed}"
        );
    }
    assert_eq!(prompts_needed(1.0), None);
}

#[test]
fn where_the_service_covers_all_the_ratio_is_bounded_as_the_share_is_shown() {
    let (covered, missed) = (cluster(&[1.0]), cluster(&[0.0]));
    let mut pairs = vec![(covered, covered); 88];
    pairs.extend([(missed, covered); 2]);
    let over: Vec<Cluster> = pairs.iter().map(|pair| pair.0).collect();
    let (low, shown) = (
        share_ratio(&pairs).1.unwrap().low,
        share_interval(&over).unwrap().low,
    );
    assert!((low - shown).abs() < 1e-12, "{low} {shown}");
    assert!((0.915..0.93).contains(&low), "{low}");
}

#[test]
fn the_ends_of_a_share_are_exact_at_the_ends_of_the_scale() {
    for n in 2..200 {
        assert_eq!(wilson(1.0, f64::from(n)).high, 1.0);
        assert_eq!(wilson(0.0, f64::from(n)).low, 0.0);
    }
}

/// Uniform numbers in 0..1 from a counter, so that the simulations below are the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normal by the sum of twelve uniforms, which is close enough for a coverage of 95 %.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.next()).sum::<f64>() - 6.0
    }
}

const ROUNDS: usize = 4000;

/// How often, of [`ROUNDS`], `holds` finds the truth inside.
fn coverage(mut holds: impl FnMut(&mut Random) -> bool) -> f64 {
    let mut random = Random(2024);
    (0..ROUNDS).filter(|_| holds(&mut random)).count() as f64 / ROUNDS as f64
}

/// Scores of one prompt: its own difficulty, then a deviation for each of four answers.
fn prompt_scores(random: &mut Random, difficulty: f64, mean: f64) -> Cluster {
    let values: Vec<f64> = (0..4)
        .map(|_| mean + difficulty + 6.0 * random.normal())
        .collect();
    cluster(&values)
}

#[test]
fn the_mean_lies_in_its_interval_95_times_of_100() {
    let share = coverage(|random| {
        let clusters: Vec<Cluster> = (0..20)
            .map(|_| {
                let difficulty = 12.0 * random.normal();
                prompt_scores(random, difficulty, 75.0)
            })
            .collect();
        mean_interval(&clusters).is_some_and(|interval| interval.low <= 75.0 && 75.0 <= interval.high)
    });
    assert!((0.935..0.965).contains(&share), "{share}");
}

#[test]
fn the_ratio_lies_in_fiellers_interval_95_times_of_100() {
    let share = coverage(|random| {
        let pairs: Vec<(Cluster, Cluster)> = (0..20)
            .map(|_| {
                // What is hard for one model is hard for the other: the pairing is what makes the interval short.
                let difficulty = 12.0 * random.normal();
                (
                    prompt_scores(random, difficulty, 72.0),
                    prompt_scores(random, difficulty, 80.0),
                )
            })
            .collect();
        mean_ratio(&pairs)
            .1
            .is_some_and(|interval| interval.low <= 0.9 && 0.9 <= interval.high)
    });
    assert!((0.935..0.965).contains(&share), "{share}");
}

#[test]
fn the_ratio_of_coverages_lies_in_its_interval_at_least_94_times_of_100() {
    let share = coverage(|random| {
        let pairs: Vec<(Cluster, Cluster)> = (0..40)
            .map(|_| {
                let difficulty = 0.08 * random.normal();
                let mut answers = |p: f64| {
                    let values: Vec<f64> = (0..4)
                        .map(|_| f64::from(u8::from(random.next() < p - difficulty.abs() + 0.06383)))
                        .collect();
                    cluster(&values)
                };
                (answers(0.75), answers(0.85))
            })
            .collect();
        // E|0.08·normal| = 0.06383, so the shares are 0.75 and 0.85.
        share_ratio(&pairs)
            .1
            .is_some_and(|interval| interval.low <= 0.75 / 0.85 && 0.75 / 0.85 <= interval.high)
    });
    assert!((0.94..=1.0).contains(&share), "{share}");
}

#[test]
fn a_model_below_the_gate_passes_it_rarely_where_nearly_all_is_covered() {
    // The service covers everything, the local model 0.9: how often is the lower bound above 0.9, which is one-sided
    // and may be so 2.5 times of 100, with as few prompts as 15?
    for (n, k) in [(15, 1), (15, 4), (30, 1), (90, 1)] {
        let wrong = 1.0
            - coverage(|random| {
                let pairs: Vec<(Cluster, Cluster)> = (0..n)
                    .map(|_| {
                        let values: Vec<f64> =
                            (0..k).map(|_| f64::from(u8::from(random.next() < 0.9))).collect();
                        (cluster(&values), cluster(&vec![1.0; k]))
                    })
                    .collect();
                share_ratio(&pairs).1.is_some_and(|interval| interval.low <= 0.9)
            });
        assert!(wrong <= 0.035, "{wrong} with {n} prompts of {k} answers");
    }
}

#[test]
fn the_share_lies_in_its_interval_at_least_93_times_of_100() {
    let share = coverage(|random| {
        let clusters: Vec<Cluster> = (0..25)
            .map(|_| {
                // Each prompt is easy (answered at 0.98) or hard (at 0.6): 0.866 in all.
                let p = if random.next() < 0.7 { 0.98 } else { 0.6 };
                let values: Vec<f64> = (0..4).map(|_| f64::from(u8::from(random.next() < p))).collect();
                cluster(&values)
            })
            .collect();
        share_interval(&clusters).is_some_and(|interval| interval.low <= 0.866 && 0.866 <= interval.high)
    });
    assert!((0.93..=1.0).contains(&share), "{share}");
}
