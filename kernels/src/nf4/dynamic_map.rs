//! bitsandbytes' dynamic 8-bit map: the 256 values that the scales of a double-quantized matrix are rounded to.
//!
//! Invariant: sorted, and equal bit for bit to `create_dynamic_map(signed=True, 7, 8)` of bitsandbytes.

use std::sync::LazyLock;

static MAP: LazyLock<[f32; 256]> = LazyLock::new(make);

/// The map.
pub(crate) fn dynamic_map() -> &'static [f32; 256] {
    &MAP
}

/// Index of the value nearest to `x`; the lower one when two are equally near.
pub(crate) fn nearest(x: f32) -> u8 {
    let map = dynamic_map();
    let upper = map.partition_point(|&value| value < x).min(255);
    let lower = upper.saturating_sub(1);
    let nearest = if (x - map[lower]).abs() <= (map[upper] - x).abs() {
        lower
    } else {
        upper
    };
    nearest as u8 // at most 255
}

/// Seven decades, each with twice the steps of the one below, as `torch.linspace` and Python's `sort` make them.
fn make() -> [f32; 256] {
    let mut values = Vec::with_capacity(256);
    for decade in 0..7 {
        let n_steps = 1usize << decade;
        let power = 10f64.powi(decade - 6) as f32;
        let boundary = |i: usize| -> f32 {
            let step = (1.0f32 - 0.1) / n_steps as f32;
            // torch.linspace counts from the nearer end, with one rounding
            if i < n_steps.div_ceil(2) {
                step.mul_add(i as f32, 0.1)
            } else {
                (-step).mul_add((n_steps - i) as f32, 1.0)
            }
        };
        for i in 0..n_steps {
            let mean = (boundary(i) + boundary(i + 1)) / 2.0;
            let value = power * mean;
            values.extend([value, -value]);
        }
    }
    values.extend([0.0, 1.0]);
    values.sort_by(f32::total_cmp);
    std::array::from_fn(|i| values[i]) // 2 * (1 + 2 + ... + 64) + 2 = 256 values
}
