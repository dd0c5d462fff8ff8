use half::{bf16, f16};

use super::compute;

/// Values of all kinds: exact, tiny, denormal, huge, not numbers, and ties of the halves' rounding.
fn values() -> Vec<f32> {
    let mut values = vec![
        0.0,
        -0.0,
        1.0,
        -1.0,
        1.5,
        3.0,
        1e-40,
        -1e-44,
        1e-38,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        65504.0,
        65520.0,
        1e-7,
        6e-8,
    ];
    values.extend(
        [
            0x3f80_8000,
            0x3f81_8000,
            0x3f80_8001,
            0x3f80_7fff,
            0x7f7f_ffff,
            0x0000_8000,
        ]
        .map(f32::from_bits),
    );
    let mut state = 1u32;
    values.extend((0..232).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from_bits(state)
    }));
    values
}

fn same(got: u32, expected: u32, n_mantissa: u32) -> bool {
    let is_nan = |bits: u32| match n_mantissa {
        23 => f32::from_bits(bits).is_nan(),
        10 => f16::from_bits(bits as u16).is_nan(),
        7 => bf16::from_bits(bits as u16).is_nan(),
        _ => false,
    };
    got == expected || is_nan(got) && is_nan(expected)
}

fn check(instruction: &str, expected: impl Fn(f32, f32, f32) -> f32) {
    check_bits(instruction, "%f1", 23, |a, b, c| expected(a, b, c).to_bits());
}

fn check_bits(instruction: &str, result: &str, n_mantissa: u32, expected: impl Fn(f32, f32, f32) -> u32) {
    let values = values();
    for (round, chunk) in values.chunks_exact(32).enumerate() {
        let at = |offset: usize| -> [u64; 32] {
            std::array::from_fn(|lane| {
                u64::from(values[(32 * round + lane * (offset + 1) + offset) % values.len()].to_bits())
            })
        };
        let a: [u64; 32] = std::array::from_fn(|lane| u64::from(chunk[lane].to_bits()));
        let (b, c) = (at(1), at(2));
        let got = compute(instruction, result, [&a, &b, &c]);
        for lane in 0..32 {
            let [x, y, z] = [a, b, c].map(|lanes| f32::from_bits(lanes[lane] as u32));
            let expected = expected(x, y, z);
            assert!(
                same(got[lane] as u32, expected, n_mantissa),
                "{instruction} of {x:e}, {y:e}, {z:e}: {:#x}, expected {expected:#x}",
                got[lane]
            );
        }
    }
}

#[test]
fn arithmetic_of_f32_is_rounded_once() {
    check("add.f32 %f1, %ra, %rb;", |a, b, _| a + b);
    check("sub.rn.f32 %f1, %ra, %rb;", |a, b, _| a - b);
    check("mul.f32 %f1, %ra, %rb;", |a, b, _| a * b);
    check("fma.rn.f32 %f1, %ra, %rb, %rc;", |a, b, c| a.mul_add(b, c));
    check("div.rn.f32 %f1, %ra, %rb;", |a, b, _| a / b);
    check("sqrt.rn.f32 %f1, %ra;", |a, _, _| a.sqrt());
    check("rcp.rn.f32 %f1, %ra;", |a, _, _| 1.0 / a);
    check("neg.f32 %f1, %ra;", |a, _, _| -a);
    check("abs.f32 %f1, %ra;", |a, _, _| a.abs());
}

#[test]
fn the_least_and_largest_pass_over_nan() {
    check("min.f32 %f1, %ra, %rb;", |a, b, _| {
        if a.is_nan() {
            b
        } else if b.is_nan() || a < b {
            a
        } else if a == b {
            f32::from_bits(a.to_bits() | b.to_bits())
        } else {
            b
        }
    });
    check("max.f32 %f1, %ra, %rb;", |a, b, _| {
        if a.is_nan() {
            b
        } else if b.is_nan() || a > b {
            a
        } else if a == b {
            f32::from_bits(a.to_bits() & b.to_bits())
        } else {
            b
        }
    });
}

#[test]
fn approximations_are_near() {
    let near = |name: &str, exact: fn(f64) -> f64| {
        check_bits(&format!("{name} %f1, %ra;"), "%f1", 23, |a, _, _| {
            let (a, flush) = (f64::from(a), name.contains("ftz"));
            let a = if flush && (a as f32).is_subnormal() {
                0f64.copysign(a)
            } else {
                a
            };
            let result = exact(a) as f32;
            (if flush && result.is_subnormal() {
                0f32.copysign(result)
            } else {
                result
            })
            .to_bits()
        });
    };
    near("ex2.approx.ftz.f32", f64::exp2);
    near("ex2.approx.f32", f64::exp2);
    near("lg2.approx.f32", f64::log2);
    near("rcp.approx.f32", |a| 1.0 / a);
    near("rsqrt.approx.f32", |a| 1.0 / a.sqrt());
    near("sin.approx.f32", f64::sin);
    near("cos.approx.f32", f64::cos);
    near("tanh.approx.f32", f64::tanh);
    // A divisor from 2^126 on gives 0.
    let huge = f32::from_bits(0x7e80_0001);
    let got = compute(
        "div.approx.f32 %f1, %ra, %rb;",
        "%f1",
        [
            &[u64::from(3f32.to_bits()); 32],
            &[u64::from(huge.to_bits()); 32],
            &[0; 32],
        ],
    );
    assert_eq!(got, [0; 32]);
}

#[test]
fn bf16_is_rounded_to_nearest_even() {
    let reference = |x: f32| u32::from(bf16::from_f32(x).to_bits());
    check_bits("cvt.rn.bf16.f32 %h1, %ra;", "%h1", 7, |a, _, _| reference(a));
    // the first input is the upper half
    check_bits(
        "cvt.rn.bf16x2.f32 %r1, %ra, %rb; shr.u32 %r1, %r1, 16;",
        "%r1",
        7,
        |a, _, _| reference(a),
    );
    check_bits(
        "cvt.rn.bf16x2.f32 %r1, %ra, %rb; and.b32 %r1, %r1, 65535;",
        "%r1",
        7,
        |_, b, _| reference(b),
    );
}

#[test]
fn f16_is_rounded_to_nearest_even() {
    check_bits("cvt.rn.f16.f32 %h1, %ra;", "%h1", 10, |a, _, _| {
        u32::from(f16::from_f32(a).to_bits())
    });
    check_bits("cvt.f32.f16 %f1, %ha;", "%f1", 23, |a, _, _| {
        f16::from_bits(a.to_bits() as u16).to_f32().to_bits()
    });
}

#[test]
fn a_product_of_halves_is_rounded_once() {
    // 1 + 2^-8 squared is 1 + 2^-7 + 2^-16: f32 rounds nothing away, and a tie of bf16 is broken by the last bit.
    let both = |bits: u32| [u64::from(bits << 16 | bits); 32];
    let got = compute(
        "fma.rn.bf16x2 %r1, %ra, %rb, %rc;",
        "%r1",
        [&both(0x3f81), &both(0x3f81), &both(0)],
    );
    let exact = bf16::from_f32(1.007_812_5f32 * 1.007_812_5).to_bits();
    assert_eq!(got, both(u32::from(exact)));
    // 1 + 2^-9 is just below a tie once 2^-40 is taken off: through f32 it would become a tie and go the other way.
    let tiny = u32::from(bf16::from_f32(-(2f32.powi(-20))).to_bits());
    let step = u32::from(bf16::from_f32(2f32.powi(-20)).to_bits());
    let odd = 0x3f81; // 1 + 2^-7, so a tie would go up
    let got = compute(
        "fma.rn.bf16x2 %r1, %ra, %rb, %rc;",
        "%r1",
        [&both(tiny), &both(step), &both(odd)],
    );
    assert_eq!(got, both(odd));
    check_bits("fma.rn.bf16 %h1, %ha, %hb, %hc;", "%h1", 7, |a, b, c| {
        let value = |bits: u16| bf16::from_bits(bits).to_f64();
        let [a, b, c] = [a, b, c].map(|x| value(x.to_bits() as u16));
        let exact = a.mul_add(b, c);
        u32::from(nearest(exact, bf16::from_f32(exact as f32).to_bits(), value))
    });
    check_bits("fma.rn.f16 %h1, %ha, %hb, %hc;", "%h1", 10, |a, b, c| {
        let value = |bits: u16| f16::from_bits(bits).to_f64();
        let [a, b, c] = [a, b, c].map(|x| value(x.to_bits() as u16));
        let exact = a.mul_add(b, c);
        u32::from(nearest(exact, f16::from_f32(exact as f32).to_bits(), value))
    });
}

/// The bits of the value nearest to `exact`, the even one of two, by trying the neighbours of a first guess.
fn nearest(exact: f64, guess: u16, value: impl Fn(u16) -> f64) -> u16 {
    if !value(guess).is_finite() {
        return guess;
    }
    let distance = |bits: u16| (value(bits) - exact).abs();
    let candidates = [guess.wrapping_sub(1), guess, guess.wrapping_add(1)];
    let finite = candidates.into_iter().filter(|&bits| value(bits).is_finite());
    finite
        .min_by(|&x, &y| distance(x).total_cmp(&distance(y)).then((x & 1).cmp(&(y & 1))))
        .unwrap()
}

#[test]
fn f64_keeps_all_its_bits() {
    let [a, b, c] = [0.1f64, 3.0, -0.3].map(|x| [x.to_bits(); 32]);
    let run = |text: &str| f64::from_bits(compute(text, "%d1", [&a, &b, &c])[7]);
    assert_eq!(run("add.f64 %d1, %da, %db;"), 0.1 + 3.0);
    assert_eq!(run("mul.f64 %d1, %da, %db;"), 0.1 * 3.0);
    assert_eq!(run("fma.rn.f64 %d1, %da, %db, %dc;"), 0.1f64.mul_add(3.0, -0.3));
    assert_eq!(run("div.rn.f64 %d1, %da, %db;"), 0.1 / 3.0);
    assert_eq!(run("sqrt.rn.f64 %d1, %da;"), 0.1f64.sqrt());
    assert_eq!(
        run("cvt.rn.f32.f64 %f1, %da; cvt.f64.f32 %d1, %f1;"),
        f64::from(0.1f32)
    );
    assert_eq!(run("mov.f64 %d1, 0d3FF8000000000000;"), 1.5);
}

#[test]
fn floats_become_integers_in_the_named_direction() {
    for (name, round) in [
        ("rzi", f32::trunc as fn(f32) -> f32),
        ("rni", f32::round_ties_even),
        ("rmi", f32::floor),
        ("rpi", f32::ceil),
    ] {
        check_bits(&format!("cvt.{name}.s32.f32 %r1, %ra;"), "%r1", 99, |a, _, _| {
            round(a) as i32 as u32
        });
        check_bits(&format!("cvt.{name}.f32.f32 %f1, %ra;"), "%f1", 23, |a, _, _| {
            round(a).to_bits()
        });
    }
    check_bits("cvt.rn.f32.s32 %f1, %ra;", "%f1", 23, |a, _, _| {
        (a.to_bits() as i32 as f32).to_bits()
    });
    check_bits("cvt.rn.f32.u32 %f1, %ra;", "%f1", 23, |a, _, _| {
        (a.to_bits() as f32).to_bits()
    });
    check_bits("cvt.sat.f32.f32 %f1, %ra;", "%f1", 23, |a, _, _| {
        if a > 0.0 { a.min(1.0).to_bits() } else { 0 }
    });
}

#[test]
fn comparisons_say_what_nan_does() {
    for (name, holds) in [
        ("lt", (|a, b| a < b) as fn(f32, f32) -> bool),
        ("gt", |a, b| a > b),
        ("ge", |a, b| a >= b),
        ("eq", |a, b| a == b),
        ("ne", |a, b| {
            a.partial_cmp(&b).is_some_and(std::cmp::Ordering::is_ne)
        }),
        ("neu", |a, b| a != b),
        ("ltu", |a, b| a < b || a.is_nan() || b.is_nan()),
        ("nan", |a, b| a.is_nan() || b.is_nan()),
    ] {
        let text = format!(
            "mov.b32 %f1, %ra; mov.b32 %f2, %rb; setp.{name}.f32 %p1, %f1, %f2; selp.b32 %r1, 1, 0, %p1;"
        );
        check_bits(&text, "%r1", 99, |a, b, _| u32::from(holds(a, b)));
    }
}
