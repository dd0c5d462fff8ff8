use half::bf16;

use super::{kernel, run, words};
use crate::descriptor::Descriptor;
use crate::{Fault, Memory, Module, Problem};

/// Rows of the right operand.
const N: usize = 16;
/// Bytes of a row of the right operand's pattern: four steps of 16 values.
const ROW_BYTES: usize = 128;
/// Of the right operand at the beginning of shared memory: 128-byte swizzle, 1024 bytes from 8 rows to the next.
const DESCRIPTOR: u64 = 1 << 62 | (1024 >> 4) << 32 | 1 << 16;

/// Small numbers, exact in bf16.
fn element(row: usize, column: usize, salt: usize) -> f32 {
    ((row * 7 + column * 13 + salt * 5) % 33) as f32 / 8.0 - 2.0
}

/// What the threads are given: 4 words of the left operand each, and then the right one, each row's pieces of 16 bytes
/// exchanged by the row's number.
fn operands() -> Vec<u8> {
    let pair = |row: usize, column: usize| {
        [0, 1]
            .map(|next| bf16::from_f32(element(row, column + next, 1)).to_le_bytes())
            .concat()
    };
    let mut bytes = Vec::new();
    for thread in 0..128 {
        for register in 0..4 {
            let row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (register % 2);
            bytes.extend(pair(row, thread % 4 * 2 + 8 * (register / 2)));
        }
    }
    for row in 0..N {
        for slot in 0..8 {
            for value in 0..8 {
                let column = 8 * (slot ^ (row % 8)) + value;
                bytes.extend(bf16::from_f32(element(row, column, 2)).to_le_bytes());
            }
        }
    }
    bytes
}

/// The lines of a product of the second 16 columns; a test leaves one out, or puts something in its place.
fn lines() -> Vec<(&'static str, String)> {
    let line = |text: &str| format!("\t{text}\n");
    let store = "mad.wide.u32 %at, %tid, 16, %in;
	ld.global.v4.u32 {%r0,%r1,%r2,%r3}, [%at+2048];
	mov.u32 %r4, dynamic;
	shl.b32 %r5, %tid, 4;
	add.s32 %r5, %r5, %r4;
	st.shared.v4.u32 [%r5], {%r0,%r1,%r2,%r3};";
    let left = "ld.global.v4.u32 {%r10,%r11,%r12,%r13}, [%at];
	mov.f32 %f0, 0f3f800000; mov.f32 %f1, 0f3f800000; mov.f32 %f2, 0f3f800000; mov.f32 %f3, 0f3f800000;
	mov.f32 %f4, 0f3f800000; mov.f32 %f5, 0f3f800000; mov.f32 %f6, 0f3f800000; mov.f32 %f7, 0f3f800000;";
    let product = format!(
        "mov.u64 %d1, {};
	wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {{%f0,%f1,%f2,%f3,%f4,%f5,%f6,%f7}}, {{%r10,%r11,%r12,%r13}}, %d1, 1, 1, 1, 0;",
        DESCRIPTOR + 2
    );
    let out = "mad.wide.u32 %at, %tid, 32, %out;
	st.global.v4.f32 [%at], {%f0,%f1,%f2,%f3};
	st.global.v4.f32 [%at+16], {%f4,%f5,%f6,%f7};";
    vec![
        ("store", line(store)),
        ("proxy fence", line("fence.proxy.async.shared::cta;")),
        ("barrier", line("bar.sync 0;")),
        ("left", line(left)),
        ("fence", line("wgmma.fence.sync.aligned;")),
        ("product", line(&product)),
        ("commit", line("wgmma.commit_group.sync.aligned;")),
        ("before wait", String::new()),
        ("wait", line("wgmma.wait_group.sync.aligned 0;")),
        ("out", line(out)),
    ]
}

/// The body with `text` in the place of a line.
fn body_with(name: &str, text: &str) -> String {
    let mut lines = lines();
    let line = lines.iter_mut().find(|(known, _)| *known == name).unwrap();
    line.1 = format!("\t{text}\n");
    lines.into_iter().map(|(_, text)| text).collect()
}

fn run_body(body: &str, n_threads: u32) -> Result<Vec<f32>, Fault> {
    let mut out = vec![0; 128 * 32];
    run(
        &kernel("", body),
        [1, n_threads],
        N * ROW_BYTES,
        &operands(),
        &mut out,
    )?;
    Ok(words(&out).into_iter().map(f32::from_bits).collect())
}

/// The report on a body, and the text of the line that it names.
fn report(name: &str, text: &str) -> (Problem, String) {
    let body = body_with(name, text);
    let fault = run_body(&body, 128).unwrap_err();
    let source = kernel("", &body);
    let line = source.lines().nth(fault.line as usize - 1).unwrap();
    (fault.problem, line.trim().to_owned())
}

#[test]
fn a_product_is_that_of_its_matrices() {
    let got = run_body(&body_with("before wait", ""), 128).unwrap();
    for (index, &got) in got.iter().enumerate() {
        let (thread, sum) = (index / 8, index % 8);
        let row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (sum % 4 / 2);
        let column = sum / 4 * 8 + thread % 4 * 2 + sum % 2;
        let terms = (0..16).map(|k| element(row, k, 1) * element(column, 16 + k, 2));
        assert_eq!(got, terms.sum::<f32>() + 1.0, "row {row}, column {column}");
    }
}

#[test]
fn what_ordinary_instructions_wrote_needs_a_fence_and_then_a_barrier() {
    let (problem, line) = report("proxy fence", "");
    assert_eq!(
        problem,
        Problem::NoProxyFence {
            address: 32,
            other: 2
        }
    );
    assert!(line.starts_with("wgmma.mma_async"), "{line}");
    // on the wrong side of the barrier it does nothing for what other warps wrote
    let body = body_with("proxy fence", "");
    let body = body.replace("bar.sync 0;", "bar.sync 0;\n\tfence.proxy.async.shared::cta;");
    let problem = run_body(&body, 128).unwrap_err().problem;
    assert!(
        matches!(problem, Problem::NoProxyFence { other: 32.., .. }),
        "{problem}"
    );
    // before the write it does nothing at all
    let mut moved = lines();
    moved.swap(0, 1);
    let body: String = moved.into_iter().map(|(_, text)| text).collect();
    let problem = run_body(&body, 128).unwrap_err().problem;
    assert!(matches!(problem, Problem::NoProxyFence { .. }), "{problem}");
    let (problem, _) = report("barrier", "");
    assert!(
        matches!(problem, Problem::Race { .. } | Problem::Uninitialised { .. }),
        "{problem}"
    );
}

#[test]
fn registers_need_a_fence_after_they_were_touched() {
    let (problem, line) = report("fence", "");
    assert_eq!(problem, Problem::NoRegisterFence);
    assert!(line.starts_with("wgmma.mma_async"), "{line}");
    for touched in ["mov.u32 %r12, 0;", "add.f32 %f9, %f5, %f5;"] {
        let text = format!("wgmma.fence.sync.aligned;\n\t{touched}");
        assert_eq!(report("fence", &text).0, Problem::NoRegisterFence, "{touched}");
    }
    // products of one shape that follow one another on the same sums need none
    let lines = lines();
    let product = &lines.iter().find(|(name, _)| *name == "product").unwrap().1;
    run_body(&body_with("product", &product.repeat(2)), 128).unwrap();
}

#[test]
fn registers_are_not_to_be_touched_before_the_wait() {
    for touched in [
        "mov.f32 %f9, %f3;",
        "mov.f32 %f3, 0f00000000;",
        "mov.u32 %r13, 0;",
        "add.s32 %r20, %r10, 1;",
        "st.global.f32 [%out], %f0;",
    ] {
        let (problem, line) = report("before wait", touched);
        assert_eq!((problem, line.as_str()), (Problem::HeldRegister, touched));
    }
    assert_eq!(report("wait", "").0, Problem::HeldRegister);
    assert_eq!(
        report("wait", "wgmma.wait_group.sync.aligned 1;").0,
        Problem::HeldRegister
    );
    // a group that was not closed is not waited for
    assert_eq!(report("commit", "").0, Problem::HeldRegister);
}

#[test]
fn what_a_product_reads_is_not_to_be_written_before_the_wait() {
    let write = "st.shared.v4.u32 [%r5], {%r0,%r1,%r2,%r3};";
    let (problem, line) = report("before wait", write);
    assert!(matches!(problem, Problem::ReadByProduct { .. }), "{problem}");
    assert_eq!(line, write);
    // nor by another warp before a barrier
    let after = |between: &str| {
        let text = format!("wgmma.wait_group.sync.aligned 0;\n\t{between}\n\t{write}");
        run_body(&body_with("wait", &text), 128)
    };
    let problem = after("").unwrap_err().problem;
    assert!(
        matches!(problem, Problem::ReadByProduct { .. } | Problem::Race { .. }),
        "{problem}"
    );
    after("bar.sync 0;").unwrap();
}

#[test]
fn a_warpgroup_is_four_warps_at_the_same_product() {
    let fault = run_body(&body_with("product", ""), 64).unwrap_err();
    assert_eq!(fault.problem, Problem::PartedWarpgroup, "two warps are none");
    let skipped = |n_threads: u32, text: &str| {
        format!("setp.lt.u32 %p1, %tid, {n_threads};\n\t@%p1 bra $SKIP;\n\t{text}\n$SKIP:")
    };
    let (problem, line) = report("before wait", &skipped(32, "wgmma.commit_group.sync.aligned;"));
    assert_eq!(
        (problem, line.as_str()),
        (Problem::PartedWarpgroup, "wgmma.commit_group.sync.aligned;")
    );
    let (problem, _) = report("before wait", &skipped(5, "wgmma.commit_group.sync.aligned;"));
    assert!(matches!(problem, Problem::Diverged { .. }), "{problem}");
    // descriptors are those of the warpgroup, not of a warp or of a lane
    let lines = lines();
    let product = &lines.iter().find(|(name, _)| *name == "product").unwrap().1;
    for n_threads in [32, 5] {
        let other = format!(
            "{};\n\tsetp.lt.u32 %p1, %tid, {n_threads};\n\t@%p1 sub.s64 %d1, %d1, 2;\n\twgmma.mma",
            DESCRIPTOR + 2
        );
        let text = product.replacen(&format!("{};\n\twgmma.mma", DESCRIPTOR + 2), &other, 1);
        assert_eq!(
            report("product", &text).0,
            Problem::PartedWarpgroup,
            "{n_threads}"
        );
    }
}

#[test]
fn a_descriptor_must_hold_together() {
    for (wrong, what) in [
        (DESCRIPTOR + 2, None),
        (DESCRIPTOR + 7, Some("leaves the rows")),
        (DESCRIPTOR + 8, Some("does not begin")),
        (DESCRIPTOR | 1 << 14, Some("no meaning")),
        (DESCRIPTOR | 1 << 49, Some("base offset")),
        (DESCRIPTOR + (1 << 32), Some("stride")),
    ] {
        match (Descriptor::decode(wrong), what) {
            (Ok(_), None) => {}
            (Err(problem), Some(what)) => assert!(problem.to_string().contains(what), "{problem}"),
            other => panic!("{wrong:#x}: {other:?}"),
        }
    }
}

#[test]
fn swizzles_are_those_of_the_manual() {
    let stride = |bytes: u64| (bytes >> 4) << 32;
    // of row 3 and row 13, which is row 5 of the second pattern, the second piece
    let places = |mode: u64, bytes| {
        let descriptor = Descriptor::decode(mode << 62 | stride(bytes)).unwrap();
        [3, 13].map(|row| descriptor.address(row, 1))
    };
    let exchanged = |piece: u64, by: u64| (piece ^ by) * 16;
    assert_eq!(
        places(1, 1024),
        [384 + exchanged(1, 3), 1024 + 640 + exchanged(1, 5)]
    );
    // rows of 64 bytes are exchanged by their pairs, those of 32 by their fours
    assert_eq!(
        places(2, 512),
        [192 + exchanged(1, 1), 512 + 320 + exchanged(1, 2)]
    );
    assert_eq!(
        places(3, 256),
        [96 + exchanged(1, 0), 256 + 160 + exchanged(1, 1)]
    );
    // without one, 8 rows of 16 bytes follow one another
    let plain = Descriptor::decode(stride(128) | (2048 >> 4) << 16).unwrap();
    assert_eq!(
        [3, 13].map(|row| plain.address(row, 1)),
        [2048 + 48, 2048 + 128 + 80]
    );
}

#[test]
fn products_that_are_not_known_are_refused() {
    let lines = lines();
    let product = &lines.iter().find(|(name, _)| *name == "product").unwrap().1;
    for (from, to) in [
        ("%d1, 1, 1, 1, 0;", "%d1, 1, 1, 1, 1;"),
        ("%d1, 1, 1, 1, 0;", "%d1, 1, -1, 1, 0;"),
        ("m64n16k16", "m64n24k16"),
        ("bf16.bf16", "f16.f16"),
        ("{%r10,%r11,%r12,%r13}", "%d1"),
    ] {
        let source = kernel("", &body_with("product", &product.replace(from, to)));
        assert!(Module::parse(&source, &mut Memory::new(1024)).is_err(), "{to}");
    }
}
