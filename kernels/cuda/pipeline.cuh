// Copies from global to shared memory that go on while a kernel computes.
//
// Invariant: a thread sees what it has copied after `copies_wait`; other threads see it after a barrier that follows.
#pragma once
#include "common.cuh"

DEVICE u32 shared_address(const void *at) { return (u32)__cvta_generic_to_shared(at); }

// 16 bytes past L1, or 16 zeros without reading `from` where not `there`; `from` is aligned in any case.
DEVICE void copy_async(uint4 *to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}

// The same of 4 bytes.
DEVICE void copy_async(u32 *to, const void *from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 4 : 0)
                 : "memory");
}

// Ends a group: what this thread has begun to copy since the last one.
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most the newest `N` groups of this thread are under way.
template <int N> DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
