use super::compute;

const EDGES: [u64; 16] = [
    0,
    1,
    2,
    7,
    31,
    32,
    33,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
];

/// Every pair of edges is met at some lane of some of the 16 runs.
fn check(instruction: &str, result: &str, expected: impl Fn(u64, u64, u64) -> u64) {
    for shift in 0..16 {
        let a = std::array::from_fn(|lane| EDGES[lane % 16]);
        let b = std::array::from_fn(|lane| EDGES[(lane + shift) % 16]);
        let c = std::array::from_fn(|lane| 0x0123_4567_89ab_cdefu64.rotate_left((lane + shift) as u32));
        let got = compute(instruction, result, [&a, &b, &c]);
        for lane in 0..32 {
            let (a, b, c) = (a[lane], b[lane], c[lane]);
            let expected = expected(a, b, c);
            assert_eq!(got[lane], expected, "{instruction} of {a:#x}, {b:#x}, {c:#x}");
        }
    }
}

#[test]
fn arithmetic_of_32_bits_wraps() {
    check("add.s32 %r1, %ra, %rb;", "%r1", |a, b, _| {
        u64::from((a as u32).wrapping_add(b as u32))
    });
    check("sub.s32 %r1, %ra, %rb;", "%r1", |a, b, _| {
        u64::from((a as u32).wrapping_sub(b as u32))
    });
    check("mul.lo.s32 %r1, %ra, %rb;", "%r1", |a, b, _| {
        u64::from((a as u32).wrapping_mul(b as u32))
    });
    check("mad.lo.s32 %r1, %ra, %rb, %rc;", "%r1", |a, b, c| {
        u64::from((a as u32).wrapping_mul(b as u32).wrapping_add(c as u32))
    });
    check("mul.hi.u32 %r1, %ra, %rb;", "%r1", |a, b, _| {
        (u64::from(a as u32) * u64::from(b as u32)) >> 32
    });
    check("mul.hi.s32 %r1, %ra, %rb;", "%r1", |a, b, _| {
        u64::from(((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32)
    });
    check("neg.s32 %r1, %ra;", "%r1", |a, _, _| {
        u64::from((a as u32).wrapping_neg())
    });
    check("abs.s32 %r1, %ra;", "%r1", |a, _, _| {
        u64::from((a as i32).wrapping_abs() as u32)
    });
}

#[test]
fn products_of_twice_the_width_are_whole() {
    check("mul.wide.u32 %d1, %ra, %rb;", "%d1", |a, b, _| {
        u64::from(a as u32) * u64::from(b as u32)
    });
    check("mul.wide.s32 %d1, %ra, %rb;", "%d1", |a, b, _| {
        (i64::from(a as i32) * i64::from(b as i32)) as u64
    });
    check("mad.wide.u32 %d1, %ra, %rb, %dc;", "%d1", |a, b, c| {
        (u64::from(a as u32) * u64::from(b as u32)).wrapping_add(c)
    });
    check("mul.wide.u16 %r1, %ha, %hb;", "%r1", |a, b, _| {
        u64::from(a as u16) * u64::from(b as u16)
    });
}

#[test]
fn arithmetic_of_64_bits_wraps() {
    check("add.s64 %d1, %da, %db;", "%d1", |a, b, _| a.wrapping_add(b));
    check("sub.s64 %d1, %da, %db;", "%d1", |a, b, _| a.wrapping_sub(b));
    check("mul.lo.s64 %d1, %da, %db;", "%d1", |a, b, _| a.wrapping_mul(b));
    check("neg.s64 %d1, %da;", "%d1", |a, _, _| a.wrapping_neg());
    check("min.u64 %d1, %da, %db;", "%d1", |a, b, _| a.min(b));
    check("max.s64 %d1, %da, %db;", "%d1", |a, b, _| {
        (a as i64).max(b as i64) as u64
    });
}

#[test]
fn division_by_zero_gives_all_ones() {
    check("div.u32 %r1, %ra, %rb;", "%r1", |a, b, _| {
        u64::from((a as u32).checked_div(b as u32).unwrap_or(!0))
    });
    check("rem.u32 %r1, %ra, %rb;", "%r1", |a, b, _| {
        u64::from((a as u32).checked_rem(b as u32).unwrap_or(!0))
    });
    check("div.s32 %r1, %ra, %rb;", "%r1", |a, b, _| {
        u64::from(if b as u32 == 0 {
            !0
        } else {
            (a as i32).wrapping_div(b as i32) as u32
        })
    });
}

#[test]
fn the_sign_of_the_type_decides_an_order() {
    check("min.s32 %r1, %ra, %rb;", "%r1", |a, b, _| {
        u64::from((a as i32).min(b as i32) as u32)
    });
    check("min.u32 %r1, %ra, %rb;", "%r1", |a, b, _| {
        u64::from((a as u32).min(b as u32))
    });
    check("max.s32 %r1, %ra, %rb;", "%r1", |a, b, _| {
        u64::from((a as i32).max(b as i32) as u32)
    });
    for (name, holds) in [
        ("lt.s32", (|a, b| (a as i32) < b as i32) as fn(u64, u64) -> bool),
        ("lt.u32", |a, b| (a as u32) < b as u32),
        ("ge.s64", |a, b| a as i64 >= b as i64),
        ("hi.u64", |a, b| a > b),
        ("eq.b32", |a, b| a as u32 == b as u32),
        ("ne.s16", |a, b| a as u16 != b as u16),
    ] {
        let letter = if name.ends_with("64") {
            "d"
        } else if name.ends_with("16") {
            "h"
        } else {
            "r"
        };
        let text = format!("setp.{name} %p1, %{letter}a, %{letter}b; selp.u32 %r1, 5, 9, %p1;");
        check(&text, "%r1", |a, b, _| if holds(a, b) { 5 } else { 9 });
    }
}

#[test]
fn shifts_stop_at_the_width() {
    check("shl.b32 %r1, %ra, %rb;", "%r1", |a, b, _| {
        u64::from((a as u32).checked_shl(b as u32).unwrap_or(0))
    });
    check("shr.u32 %r1, %ra, %rb;", "%r1", |a, b, _| {
        u64::from((a as u32).checked_shr(b as u32).unwrap_or(0))
    });
    check("shr.s32 %r1, %ra, %rb;", "%r1", |a, b, _| {
        u64::from((i64::from(a as i32) >> (b as u32).min(63)) as u32)
    });
    check("shl.b64 %d1, %da, %rb;", "%d1", |a, b, _| {
        a.checked_shl(b as u32).unwrap_or(0)
    });
    check("shr.s64 %d1, %da, %rb;", "%d1", |a, b, _| {
        ((i128::from(a as i64)) >> (b as u32).min(100)) as u64
    });
}

#[test]
fn bits_are_picked_and_moved() {
    check("lop3.b32 %r1, %ra, %rb, %rc, 0xe8;", "%r1", |a, b, c| {
        let [a, b, c] = [a, b, c].map(|x| x as u32);
        u64::from(a & b | a & c | b & c)
    });
    check("prmt.b32 %r1, %ra, %rb, 0x7610;", "%r1", |a, b, _| {
        u64::from(a as u32 & 0xffff | b as u32 & 0xffff_0000)
    });
    check("prmt.b32 %r1, %ra, %rb, 0xbbbb;", "%r1", |a, _, _| {
        if a >> 31 & 1 == 1 { 0xffff_ffff } else { 0 }
    });
    check("bfe.u32 %r1, %ra, 4, 8;", "%r1", |a, _, _| a >> 4 & 0xff);
    check("bfi.b32 %r1, %ra, %rb, 8, 12;", "%r1", |a, b, _| {
        b & 0xffff_ffff & !0xfff00 | a << 8 & 0xfff00
    });
    check("bfi.b32 %r1, %ra, %rb, 16, 32;", "%r1", |a, b, _| {
        b & 0xffff | a << 16 & 0xffff_0000
    });
    check("popc.b32 %r1, %ra;", "%r1", |a, _, _| {
        u64::from((a as u32).count_ones())
    });
    check("clz.b32 %r1, %ra;", "%r1", |a, _, _| {
        u64::from((a as u32).leading_zeros())
    });
    check("shf.l.wrap.b32 %r1, %ra, %rb, 8;", "%r1", |a, b, _| {
        u64::from((b as u32) << 8 | a as u32 >> 24)
    });
    check("not.b32 %r1, %ra;", "%r1", |a, _, _| u64::from(!(a as u32)));
    check("xor.b64 %d1, %da, %db;", "%d1", |a, b, _| a ^ b);
}

#[test]
fn vectors_of_halves_are_packed() {
    check("mov.b32 %r1, {%ha, %hb};", "%r1", |a, b, _| {
        a & 0xffff | (b & 0xffff) << 16
    });
    check("mov.b32 {%h1, %h2}, %ra;", "%h2", |a, _, _| a >> 16 & 0xffff);
    check("mov.b64 %d1, {%ra, %rb};", "%d1", |a, b, _| {
        a & 0xffff_ffff | b << 32
    });
    check("mov.b64 {_, %r1}, %da;", "%r1", |a, _, _| a >> 32);
}

#[test]
fn integers_are_extended_by_their_own_sign() {
    check("cvt.s64.s32 %d1, %ra;", "%d1", |a, _, _| a as i32 as i64 as u64);
    check("cvt.u64.u32 %d1, %ra;", "%d1", |a, _, _| a & 0xffff_ffff);
    check("cvt.s32.s8 %r1, %ra;", "%r1", |a, _, _| {
        u64::from(a as i8 as i32 as u32)
    });
    check("cvt.u16.u64 %h1, %da;", "%h1", |a, _, _| a & 0xffff);
}
