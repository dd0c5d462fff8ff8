use crate::cpu::math::{dot, exp, exp_in_place, max, sigmoid, sum_squares};

#[test]
fn exp_is_within_two_units_in_the_last_place() {
    let mut worst = 0f64;
    for i in -87_000..88_300 {
        let x = i as f32 / 1000.0;
        let expected = f64::from(x).exp();
        let unit = f64::from((expected as f32).next_up()) - f64::from(expected as f32);
        worst = worst.max((f64::from(exp(x)) - expected).abs() / unit);
    }
    assert!(worst <= 2.0, "{worst}");
}

#[test]
fn exp_has_ends() {
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(exp(-0.0), 1.0);
    assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(exp(-88.0), 0.0);
    assert!(exp(f32::INFINITY).is_finite() && exp(f32::INFINITY) > 2e38);
    assert!(exp(f32::NAN).is_nan());
    assert_eq!(sigmoid(100.0), 1.0);
    assert!(sigmoid(-100.0) >= 0.0 && sigmoid(-100.0) < 1e-37);
}

#[test]
fn sums_take_every_element() {
    for len in [0, 1, 31, 32, 33, 100] {
        let ones = vec![1f32; len];
        assert_eq!(dot(&ones, &ones), len as f32);
        assert_eq!(sum_squares(&ones), len as f64);
        let mut zeros = vec![0f32; len];
        assert_eq!(exp_in_place(&mut zeros, 2.0, 0.0), len as f32);
        assert!(zeros.iter().all(|&value| value == 1.0));
        for i in 0..len {
            let mut values = vec![-1f32; len];
            values[i] = 3.0;
            assert_eq!(max(&values), 3.0);
        }
    }
    assert_eq!(max(&[]), f32::NEG_INFINITY);
}
