use super::{kernel, run, words};

fn outputs(source: &str, shape: [u32; 2], n_words: usize) -> Vec<u32> {
    let mut out = vec![0; 4 * n_words];
    run(source, shape, 1024, &[0; 4], &mut out).unwrap();
    words(&out)
}

#[test]
fn lanes_that_part_join_again() {
    // Collatz steps to 1 differ from lane to lane; the shuffle at the end needs all of them.
    let body = "	add.s32 %r1, %tid, 1;
	mov.u32 %r2, 0;
$LOOP:
	setp.eq.s32 %p1, %r1, 1;
	@%p1 bra $DONE;
	and.b32 %r3, %r1, 1;
	setp.eq.s32 %p2, %r3, 0;
	@%p2 bra $EVEN;
	mad.lo.s32 %r1, %r1, 3, 1;
	bra.uni $NEXT;
$EVEN:
	shr.u32 %r1, %r1, 1;
$NEXT:
	add.s32 %r2, %r2, 1;
	bra.uni $LOOP;
$DONE:
	shfl.sync.bfly.b32 %r4|%p3, %r2, 1, 31, -1;
	mad.wide.u32 %at, %tid, 4, %out;
	st.global.u32 [%at], %r4;
";
    let steps = |mut n: u32| {
        let mut steps = 0;
        while n != 1 {
            n = if n.is_multiple_of(2) { n / 2 } else { 3 * n + 1 };
            steps += 1;
        }
        steps
    };
    let expected: Vec<u32> = (0..32).map(|lane| steps((lane ^ 1) + 1)).collect();
    assert_eq!(outputs(&kernel("", body), [1, 32], 32), expected);
}

#[test]
fn a_guard_leaves_other_lanes_alone() {
    let body = "	mov.u32 %r1, 7;
	setp.lt.u32 %p1, %tid, 10;
	@%p1 mov.u32 %r1, 8;
	@!%p1 add.s32 %r1, %r1, %tid;
	mad.wide.u32 %at, %tid, 4, %out;
	st.global.u32 [%at], %r1;
";
    let expected: Vec<u32> = (0..32).map(|lane| if lane < 10 { 8 } else { 7 + lane }).collect();
    assert_eq!(outputs(&kernel("", body), [1, 32], 32), expected);
}

#[test]
fn a_predicate_takes_a_constant() {
    let body = "	mov.u32 %r1, 0;
	setp.lt.u32 %p1, %tid, 10;
	mov.pred %p2, 0;
	@%p1 mov.pred %p2, -1;
	mov.pred %p3, -1;
	@%p1 mov.pred %p3, 0;
	@%p2 add.s32 %r1, %r1, 1;
	@%p3 add.s32 %r1, %r1, 2;
	mad.wide.u32 %at, %tid, 4, %out;
	st.global.u32 [%at], %r1;
";
    let expected: Vec<u32> = (0..32).map(|lane| if lane < 10 { 1 } else { 2 }).collect();
    assert_eq!(outputs(&kernel("", body), [1, 32], 32), expected);
}

#[test]
fn blocks_warps_and_lanes_know_their_place() {
    let body = "	mov.u32 %r1, %ctaid.x;
	mov.u32 %r2, %ntid.x;
	mad.lo.s32 %r3, %r1, %r2, %tid;
	mov.u32 %r4, %nctaid.x;
	mov.u32 %r5, %laneid;
	mad.lo.s32 %r6, %r4, 1000, %r5;
	mad.wide.u32 %at, %r3, 4, %out;
	st.global.u32 [%at], %r6;
";
    let expected: Vec<u32> = (0..120).map(|thread| 3000 + thread % 40 % 32).collect();
    assert_eq!(outputs(&kernel("", body), [3, 40], 120), expected);
}

#[test]
fn shuffles_read_the_lane_they_name() {
    for (kind, operands, from) in [
        (
            "up",
            "3, 0",
            (|lane| if lane < 3 { lane } else { lane - 3 }) as fn(u32) -> u32,
        ),
        (
            "down",
            "5, 31",
            |lane| if lane + 5 > 31 { lane } else { lane + 5 },
        ),
        ("bfly", "16, 31", |lane| lane ^ 16),
        ("idx", "9, 31", |_| 9),
        // segments of 8: clamp 7 within mask 0x18
        (
            "down",
            "2, 6151",
            |lane| if lane % 8 + 2 > 7 { lane } else { lane + 2 },
        ),
    ] {
        let body = format!(
            "	mad.lo.s32 %r1, %tid, 10, 1;
	shfl.sync.{kind}.b32 %r2|%p1, %r1, {operands}, -1;
	selp.u32 %r3, 1000, 0, %p1;
	add.s32 %r2, %r2, %r3;
	mad.wide.u32 %at, %tid, 4, %out;
	st.global.u32 [%at], %r2;
"
        );
        let got = outputs(&kernel("", &body), [1, 32], 32);
        for lane in 0..32u32 {
            let from = from(lane);
            assert_eq!(
                got[lane as usize] % 1000,
                10 * from + 1,
                "{kind} {operands} lane {lane}"
            );
            let in_range = from != lane || (kind == "idx" && lane == 9);
            assert_eq!(
                got[lane as usize] >= 1000,
                in_range,
                "{kind} {operands} lane {lane}"
            );
        }
    }
}

#[test]
fn votes_count_the_lanes_that_are_here() {
    let body = "	setp.lt.u32 %p1, %tid, 5;
	vote.sync.ballot.b32 %r1, %p1, -1;
	vote.sync.any.pred %p2, %p1, -1;
	vote.sync.all.pred %p3, %p1, -1;
	selp.u32 %r2, 256, 0, %p2;
	selp.u32 %r3, 512, 0, %p3;
	add.s32 %r1, %r1, %r2;
	add.s32 %r1, %r1, %r3;
	mad.wide.u32 %at, %tid, 4, %out;
	st.global.u32 [%at], %r1;
";
    assert_eq!(outputs(&kernel("", body), [1, 32], 32), vec![31 + 256; 32]);
}

#[test]
fn a_barrier_lets_warps_exchange() {
    // 64 threads reverse their numbers through dynamic shared memory.
    let body = "	mov.u32 %r1, dynamic;
	shl.b32 %r2, %tid, 2;
	add.s32 %r2, %r2, %r1;
	st.shared.u32 [%r2], %tid;
	bar.sync 0;
	sub.s32 %r3, 63, %tid;
	shl.b32 %r3, %r3, 2;
	add.s32 %r3, %r3, %r1;
	ld.shared.u32 %r4, [%r3];
	mad.wide.u32 %at, %tid, 4, %out;
	st.global.u32 [%at], %r4;
";
    let expected: Vec<u32> = (0..64).rev().collect();
    assert_eq!(outputs(&kernel("", body), [1, 64], 64), expected);
}

#[test]
fn an_asynchronous_copy_lands_when_it_is_waited_for() {
    let body = "	mov.u32 %r1, dynamic;
	shl.b32 %r2, %tid, 4;
	add.s32 %r2, %r2, %r1;
	mad.wide.u32 %at, %tid, 16, %in;
	cp.async.cg.shared.global [%r2], [%at], 16, 8;
	cp.async.commit_group;
	cp.async.wait_group 0;
	ld.shared.v4.u32 {%r4,%r5,%r6,%r7}, [%r2];
	mad.wide.u32 %at, %tid, 16, %out;
	st.global.v4.u32 [%at], {%r4,%r5,%r6,%r7};
";
    let input: Vec<u8> = (1..=128u32).flat_map(u32::to_le_bytes).collect();
    let mut out = vec![0; 512];
    run(&kernel("", body), [1, 32], 512, &input, &mut out).unwrap();
    // the upper half of each 16 bytes is filled with zeros
    let expected: Vec<u32> = (0..128)
        .map(|index| if index % 4 < 2 { index + 1 } else { 0 })
        .collect();
    assert_eq!(words(&out), expected);
}

#[test]
fn a_thread_has_memory_of_its_own() {
    let body = "	mov.u64 %d1, depot;
	cvta.local.u64 %d2, %d1;
	st.local.u32 [%d1+4], %tid;
	ld.u32 %r1, [%d2+4];
	mad.wide.u32 %at, %tid, 4, %out;
	st.global.u32 [%at], %r1;
";
    let source = kernel(".local .align 16 .b8 depot[16];", body);
    assert_eq!(outputs(&source, [1, 32], 32), (0..32).collect::<Vec<_>>());
}

#[test]
fn narrow_loads_are_extended_by_their_sign() {
    let body = "	ld.global.s8 %r1, [%in];
	ld.global.u8 %r2, [%in];
	ld.global.s16 %r3, [%in+2];
	st.global.u32 [%out], %r1;
	st.global.u32 [%out+4], %r2;
	st.global.u32 [%out+8], %r3;
";
    let mut out = vec![0; 12];
    run(&kernel("", body), [1, 1], 0, &[0x80, 0, 0xfe, 0xff], &mut out).unwrap();
    assert_eq!(words(&out), [0xffff_ff80, 0x80, 0xffff_fffe]);
}
