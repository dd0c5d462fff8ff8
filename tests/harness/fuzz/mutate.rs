//! Inputs made from good ones by small changes, the same ones every time.
//!
//! Invariant: input `number` of a target depends on the target's seeds and the number alone.

/// Words that mean something to one of the formats.
const WORDS: [&[u8]; 26] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b":",
    b",",
    b"-1",
    b"0",
    b"1e999",
    b"18446744073709551615",
    b"9223372036854775808",
    b"null",
    b"true",
    b"\\ud800",
    b"\xff",
    b"\n",
    b"\0",
    b"\"shape\":[",
    b"\"data_offsets\":[0,4]",
    b"\"dtype\":\"F32\"",
    b"__metadata__",
    b"{% for a in range(99999999) %}",
    b"{{ [1]*99999999 }}",
    b"\"messages\":[",
    b"[[[[[[[[[[[[[[[[",
];

/// Numbers at which something may change.
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    7,
    32,
    255,
    65_536,
    i32::MAX as u64,
    u32::MAX as u64,
    1 << 40,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 7,
    u64::MAX,
];

/// Most bytes of an input: longer ones only take longer.
const BYTES_MAX: usize = 1 << 17;

/// Where most of what decides is: half of all changes are made there.
const HEAD_BYTES: usize = 8 << 10;

/// All inputs made from some seeds.
#[derive(Debug)]
pub struct Mutations<'s> {
    seeds: &'s [Vec<u8>],
}

impl<'s> Mutations<'s> {
    /// From `seeds`, of which there is at least one.
    pub fn of(seeds: &'s [Vec<u8>]) -> Self {
        assert!(!seeds.is_empty(), "there is something to change");
        Self { seeds }
    }

    /// Input `number`: first the seeds as they are.
    pub fn input(&self, number: usize) -> Vec<u8> {
        if let Some(seed) = self.seeds.get(number) {
            return seed.clone();
        }
        let mut random = Random(number as u64);
        let mut bytes = self.seeds[random.below(self.seeds.len())].clone();
        for _ in 0..=random.below(6) {
            self.change(&mut bytes, &mut random);
        }
        bytes.truncate(BYTES_MAX);
        bytes
    }

    fn change(&self, bytes: &mut Vec<u8>, random: &mut Random) {
        let len = bytes.len();
        let reach = if random.below(2) == 0 {
            len.min(HEAD_BYTES)
        } else {
            len
        };
        let at = random.below(reach + 1);
        let end = (at + random.below(64)).min(len);
        match random.below(10) {
            0 if at < len => bytes[at] ^= 1 << random.below(8),
            1 if at < len => bytes[at] = random.next() as u8,
            // A number over the bytes that are there.
            2..=3 => {
                let number = NUMBERS[random.below(NUMBERS.len())].wrapping_add(random.below(3) as u64);
                let size = [1, 2, 4, 8][random.below(4)];
                let size = size.min(len - at);
                bytes[at..at + size].copy_from_slice(&number.to_le_bytes()[..size]);
            }
            4 => bytes.truncate(at),
            5 => drop(bytes.drain(at..end)),
            6 => {
                let twice = bytes[at..end].to_vec();
                bytes.splice(at..at, twice);
            }
            7..=8 => {
                let word = WORDS[random.below(WORDS.len())];
                let replaced = if random.below(2) == 0 {
                    at
                } else {
                    (at + word.len()).min(len)
                };
                bytes.splice(at..replaced, word.iter().copied());
            }
            // The beginning of this one, the end of another.
            _ => {
                let other = &self.seeds[random.below(self.seeds.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[random.below(other.len() + 1)..]);
            }
        }
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}
