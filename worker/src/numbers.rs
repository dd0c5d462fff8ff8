//! Numbers that were written by people and travelled as `f32`.

/// The number as it was written: 0.4, not 0.4000000059604645.
pub(crate) fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or_else(|_| f64::from(number))
}
