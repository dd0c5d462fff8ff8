use super::{kernel, run};
use crate::{Fault, Problem};

/// Fails, with the report's own words, where it is on something else.
macro_rules! assert_problem {
    ($fault:expr, $problem:pat) => {{
        let fault = &$fault;
        assert!(matches!(fault.problem, $problem), "{fault}");
    }};
}

/// The report on `body`, run by 64 threads with 256 bytes of shared memory, 256 of input and 256 of output.
fn report(body: &str) -> Fault {
    let source = kernel("", body);
    run(&source, [2, 64], 256, &[0; 256], &mut [0; 256]).unwrap_err()
}

/// Fails where there is something to report on `body`, run in the same way.
fn assert_clean(body: &str) {
    run(&kernel("", body), [2, 64], 256, &[0; 256], &mut [0; 256]).unwrap();
}

/// The line of `text` in a kernel of that body.
fn line_of(body: &str, text: &str) -> u32 {
    let source = kernel("", body);
    source.lines().position(|line| line.contains(text)).unwrap() as u32 + 1
}

#[test]
fn an_access_past_the_end_is_reported_with_its_line() {
    let body = "	mad.wide.u32 %at, %tid, 4, %in;\n	ld.global.u32 %r1, [%at+4];\n";
    let fault = report(body);
    assert_eq!(fault.line, line_of(body, "ld.global.u32 %r1"));
    assert_eq!((fault.thread, fault.block), (63, [0; 3]));
    assert_problem!(
        fault,
        Problem::OutOfBounds {
            space: "global",
            n_bytes: 4,
            ..
        }
    );
    let fault = report("	mov.u64 %d1, 64;\n	st.global.u8 [%d1], 1;\n");
    assert_problem!(fault, Problem::OutOfBounds { address: 64, .. });
    let fault = report("	mov.u32 %r1, dynamic;\n	st.shared.u32 [%r1+256], %tid;\n");
    assert_problem!(
        fault,
        Problem::OutOfBounds {
            space: "shared",
            address: 256,
            ..
        }
    );
}

#[test]
fn a_misaligned_access_is_reported() {
    let fault = report("	ld.global.u32 %r1, [%in+2];\n");
    assert_problem!(
        fault,
        Problem::Misaligned {
            space: "global",
            n_bytes: 4,
            ..
        }
    );
    // a vector must be aligned as a whole
    let fault = report("	ld.global.v4.u32 {%r1,%r2,%r3,%r4}, [%in+8];\n");
    assert_problem!(fault, Problem::Misaligned { n_bytes: 16, .. });
    let fault = report("	mov.u32 %r1, dynamic;\n	st.shared.u32 [%r1+2], %tid;\n");
    assert_problem!(
        fault,
        Problem::Misaligned {
            space: "shared",
            address: 2,
            ..
        }
    );
}

#[test]
fn memory_that_nobody_wrote_is_reported() {
    let fault = report("	mov.u32 %r1, dynamic;\n	ld.shared.u32 %r2, [%r1+8];\n");
    assert_eq!(
        fault.problem,
        Problem::Uninitialised {
            space: "shared",
            address: 8
        }
    );
    let mut memory = crate::Memory::new(1024);
    let address = memory.allocate(16).unwrap();
    assert_eq!(
        memory.read(address, &mut [0; 4]),
        Err(Problem::Uninitialised {
            space: "global",
            address
        })
    );
}

#[test]
fn what_one_block_leaves_in_shared_memory_is_not_the_next_ones() {
    let body = "	mov.u32 %r1, %ctaid.x;
	mov.u32 %r2, dynamic;
	setp.eq.u32 %p1, %r1, 0;
	setp.eq.u32 %p2, %tid, 0;
	and.pred %p3, %p1, %p2;
	@%p3 st.shared.u32 [%r2], %r1;
	@%p1 bra $END;
	ld.shared.u32 %r3, [%r2];
$END:
";
    let fault = report(body);
    assert_eq!(fault.block, [1, 0, 0]);
    assert_eq!(
        fault.problem,
        Problem::Uninitialised {
            space: "shared",
            address: 0
        }
    );
}

/// Each thread writes its word, then reads its neighbour's of the same or another warp.
fn exchange(distance: u32, between: &str) -> String {
    format!(
        "	mov.u32 %r1, dynamic;
	shl.b32 %r2, %tid, 2;
	add.s32 %r2, %r2, %r1;
	st.shared.u32 [%r2], %tid;
	{between}
	xor.b32 %r3, %tid, {distance};
	shl.b32 %r3, %r3, 2;
	add.s32 %r3, %r3, %r1;
	ld.shared.u32 %r4, [%r3];
"
    )
}

#[test]
fn a_missing_barrier_is_a_race() {
    let body = exchange(32, "");
    let fault = report(&body);
    // the second warp has not written yet when the first one reads
    assert_eq!(fault.line, line_of(&body, "ld.shared"));
    assert_problem!(fault, Problem::Uninitialised { .. });
    // a barrier of the warp does not reach another warp
    assert_problem!(
        report(&exchange(32, "bar.warp.sync -1;")),
        Problem::Uninitialised { .. }
    );
    assert_clean(&exchange(32, "bar.sync 0;"));
}

#[test]
fn lanes_of_one_warp_need_a_barrier_too() {
    let fault = report(&exchange(1, ""));
    let race = Problem::Race {
        address: 4,
        now: "a read",
        before: "write",
        other: 1,
    };
    assert_eq!(fault.problem, race);
    assert_clean(&exchange(1, "bar.warp.sync -1;"));
}

#[test]
fn writing_what_others_still_read_is_a_race() {
    // the second warp overwrites the words that the first one reads
    let again = |between: &str| {
        let guard = "setp.ge.u32 %p1, %tid, 32;";
        let body = exchange(32, "bar.sync 0;");
        format!("{body}	{between}\n	{guard}\n	@%p1 st.shared.u32 [%r2], %r4;\n")
    };
    let race = Problem::Race {
        address: 128,
        now: "a write",
        before: "read",
        other: 0,
    };
    assert_eq!(report(&again("")).problem, race);
    assert_clean(&again("bar.sync 0;"));
}

#[test]
fn two_writers_of_one_place_are_a_race() {
    let fault = report("	mov.u32 %r1, dynamic;\n	st.shared.u32 [%r1], %tid;\n");
    assert_eq!(
        fault.problem,
        Problem::Race {
            address: 0,
            now: "a write",
            before: "write",
            other: 0
        }
    );
}

#[test]
fn a_copy_that_was_not_waited_for_is_pending() {
    let copy = |wait: &str| {
        format!(
            "	mov.u32 %r1, dynamic;
	shl.b32 %r2, %tid, 2;
	add.s32 %r2, %r2, %r1;
	mad.wide.u32 %at, %tid, 4, %in;
	cp.async.ca.shared.global [%r2], [%at], 4;
	cp.async.commit_group;
	{wait}
	ld.shared.u32 %r4, [%r2];
"
        )
    };
    assert_eq!(
        report(&copy("")).problem,
        Problem::Pending { address: 0, other: 0 }
    );
    assert_eq!(
        report(&copy("cp.async.wait_group 1;")).problem,
        Problem::Pending { address: 0, other: 0 }
    );
    assert_clean(&copy("cp.async.wait_group 0;"));
}

#[test]
fn blocks_must_not_share_what_one_of_them_writes() {
    let fault = report("	st.global.u32 [%out], %tid;\n");
    assert_problem!(fault, Problem::BlockRace { now: "writes", .. });
    assert_eq!(fault.block, [1, 0, 0]);
    let body = "	mov.u32 %r1, %ctaid.x;
	setp.eq.u32 %p1, %r1, 0;
	@%p1 st.global.u32 [%out], %tid;
	ld.global.u32 %r2, [%out];
";
    assert_problem!(report(body), Problem::BlockRace { now: "reads", .. });
}

#[test]
fn a_collective_needs_its_lanes() {
    let body =
        "	setp.lt.u32 %p1, %tid, 5;\n	@%p1 bra $SKIP;\n	shfl.sync.bfly.b32 %r1, %tid, 1, 31, -1;\n$SKIP:\n";
    let fault = report(body);
    assert_eq!(
        fault.problem,
        Problem::Diverged {
            active: 0xffff_ffe0,
            needed: 0xffff_ffff
        }
    );
    let body = "	setp.lt.u32 %p1, %tid, 5;\n	@%p1 bra $SKIP;\n	bar.sync 0;\n$SKIP:\n";
    assert_problem!(report(body), Problem::Diverged { .. });
}

#[test]
fn a_warp_that_leaves_is_no_longer_waited_for() {
    let body = "	setp.lt.u32 %p1, %tid, 32;\n	@%p1 bra $MEET;\n	bra.uni $END;\n$MEET:\n	bar.sync 0;\n$END:\n";
    run(&kernel("", body), [1, 64], 0, &[0; 4], &mut [0; 4]).unwrap();
}

#[test]
fn a_kernel_without_end_is_stopped() {
    let fault = report("$AGAIN:\n	add.s32 %r1, %r1, 1;\n	bra.uni $AGAIN;\n");
    assert_eq!(fault.problem, Problem::Endless { steps: 1 << 20 });
}

#[test]
fn a_launch_that_no_card_takes_is_refused() {
    let source = kernel("", "");
    for (shape, shared_bytes) in [([1, 1025], 0), ([0, 32], 0), ([1, 0], 0), ([1, 32], 200 << 10)] {
        let fault = run(&source, shape, shared_bytes, &[0; 4], &mut [0; 4]).unwrap_err();
        assert_problem!(fault, Problem::Shape { .. });
    }
}

#[test]
fn a_freed_address_is_out_of_bounds() {
    let mut memory = crate::Memory::new(1024);
    let address = memory.allocate(512).unwrap();
    assert!(memory.allocate(513).is_err());
    assert!(memory.free(address).is_some());
    assert!(memory.free(address).is_none());
    assert_eq!(memory.n_free(), 1024);
    assert!(memory.write(address, &[0]).is_err());
}
