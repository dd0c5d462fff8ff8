// Matrix products of a warpgroup, four warps whose first is a multiple of four: Hopper's own (compute_90a).
//
// Invariant: between `products_begin` and the `products_wait` that ends them, nothing touches the registers of a product, and
// nothing writes what it reads in shared memory. What ordinary instructions (asynchronous copies of `pipeline.cuh` among
// them) have written there is seen by a product after `fence_for_products` of the writer and a barrier that follows.
#pragma once
#include "pipeline.cuh"

// The right operand of a product: rows of 64 bf16, one after the other, whose piece p (of 8) lies at `p ^ row % 8` of its row.
// That is the 128-byte swizzle of the PTX ISA with the contraction along the rows; the first row is at a multiple of 1024 bytes.
DEVICE u64 right_operand(const void *rows) {
    const u64 leading = 1;          // not used by this layout
    const u64 stride = 1024 >> 4;   // bytes from 8 rows to the next 8
    const u64 swizzle_128 = 1;
    return (u64)((shared_address(rows) & 0x3ffff) >> 4) | leading << 16 | stride << 32 | swizzle_128 << 62;
}

// What the descriptor grows by for the next 16 columns.
#define RIGHT_STEP (16 * 2 >> 4)

// The writes of this thread to shared memory come before products that follow a barrier.
DEVICE void fence_for_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The registers of the products that follow have been written.
DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Ends a group: the products since the last one.
DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most the newest `N` groups of the warpgroup are under way.
template <int N> DEVICE void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

#define SUMS_4(i) "+f"(sum[i]), "+f"(sum[(i) + 1]), "+f"(sum[(i) + 2]), "+f"(sum[(i) + 3])
#define SUMS_8(i) SUMS_4(i), SUMS_4((i) + 4)

// Begins `sum += left · right`: 64 by 16 times 16 by 256. A warp's 16 rows of `left` and of the sums are fragments as
// `multiply_add` of `product.cuh` has them: `sum[4j..]` is that of rows 8j.. of the right operand.
DEVICE void multiply_add_async(float (&sum)[128], const u32 (&left)[4], u64 right) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "{%128, %129, %130, %131}, %132, 1, 1, 1, 0;"
        : SUMS_8(0), SUMS_8(8), SUMS_8(16), SUMS_8(24),
          SUMS_8(32), SUMS_8(40), SUMS_8(48), SUMS_8(56),
          SUMS_8(64), SUMS_8(72), SUMS_8(80), SUMS_8(88),
          SUMS_8(96), SUMS_8(104), SUMS_8(112), SUMS_8(120)
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right));
}
