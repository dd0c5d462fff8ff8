//! Random choices as a pure function of a key: no state outlives a ticket, a request or a fault.
//!
//! Invariant: the same key gives the same choices, in whatever order keys are asked about.

/// splitmix64, begun at a mixed key.
#[derive(Clone, Debug)]
pub(in crate::stand_in) struct Draw(u64);

impl Draw {
    /// The choices of a key; every part of it matters, and so does their order.
    pub(in crate::stand_in) fn new(key: &[u64]) -> Self {
        Self(
            key.iter()
                .fold(0, |state, part| mix(state ^ mix(part.wrapping_add(GOLDEN)))),
        )
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// 0 to `n - 1`, or 0 when `n` is 0. The bias is below n / 2⁶⁴.
    pub(in crate::stand_in) fn below(&mut self, n: usize) -> usize {
        let wide = u128::from(self.next()) * n as u128;
        (wide >> 64) as usize
    }

    /// In [0, 1), with 53 random bits.
    pub(in crate::stand_in) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with this probability.
    pub(in crate::stand_in) fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// One of `items`; `None` of none.
    pub(in crate::stand_in) fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len()))
    }

    /// One of `texts`; nothing of none.
    pub(in crate::stand_in) fn text(&mut self, texts: &[&'static str]) -> &'static str {
        self.pick(texts).copied().unwrap_or_default()
    }

    /// Puts `items` into a random order.
    pub(in crate::stand_in) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// 2⁶⁴ divided by the golden ratio: the step of splitmix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of splitmix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
