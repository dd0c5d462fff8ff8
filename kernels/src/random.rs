//! Random numbers as a pure function of a key and a counter: Philox4x32-10 (Salmon et al., SC 2011).
//!
//! Invariant: number `i` of a stream never depends on which numbers were asked for before, so a resumed run, another
//! batch or another backend draws the same ones.

#[cfg(test)]
mod tests;

pub(crate) const MULTIPLIER_A: u32 = 0xD251_1F53;
pub(crate) const MULTIPLIER_B: u32 = 0xCD9E_8D57;
pub(crate) const WEYL_A: u32 = 0x9E37_79B9;
pub(crate) const WEYL_B: u32 = 0xBB67_AE85;
/// As the paper recommends.
pub(crate) const N_ROUNDS: usize = 10;

/// The four words of `counter` in the stream of `key`.
#[inline(always)]
pub fn block(key: u64, counter: u64) -> [u32; 4] {
    philox(
        [key as u32, (key >> 32) as u32],
        [counter as u32, (counter >> 32) as u32, 0, 0],
    )
}

/// Word `index` of the stream of `key`.
pub fn word(key: u64, index: u64) -> u32 {
    block(key, index / 4)[(index % 4) as usize]
}

/// Number `index` of the stream of `key`, uniform in `[0, 1)` with 24 bits.
pub fn uniform(key: u64, index: u64) -> f32 {
    uniform_of(word(key, index))
}

/// `word` as a number uniform in `[0, 1)` with 24 bits.
#[inline(always)]
pub fn uniform_of(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// A key for the stream that `parts` name, in their order: distinct parts give unrelated streams.
pub fn key(parts: &[u64]) -> u64 {
    parts.iter().fold(parts.len() as u64, |key, &part| {
        let [a, b, ..] = block(key, part);
        u64::from(a) | u64::from(b) << 32
    })
}

#[inline(always)]
fn philox(mut key: [u32; 2], mut counter: [u32; 4]) -> [u32; 4] {
    for _ in 0..N_ROUNDS {
        let a = u64::from(MULTIPLIER_A) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIER_B) * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL_A), key[1].wrapping_add(WEYL_B)];
    }
    counter
}
