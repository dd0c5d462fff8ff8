//! Numbers drawn from names: jitter and seeds that are the same wherever and whenever they are computed.

/// FNV-1a over the parts, then the finalizer of SplitMix64, so that names differing in one digit give unrelated numbers.
pub(super) fn hash(seed: u64, parts: &[&str]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325_u64 ^ seed;
    for part in parts {
        // The zero byte keeps ("ab", "c") apart from ("a", "bc").
        for byte in part.bytes().chain([0]) {
            state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}
