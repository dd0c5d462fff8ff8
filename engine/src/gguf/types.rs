//! GGML's element types: their numbers, names and block sizes.
//!
//! Invariant: a type that the kernels cannot read is still known here, so that a file which holds one is checked
//! whole and refused by name.

use llamaduo_kernels::Format;

/// `(number, name, elements of a block, bytes of a block)`, from `ggml.h` and `ggml-common.h`.
const TYPES: [(u32, &str, usize, usize); 33] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
];

/// `(elements, bytes)` of a block, or `None` for a number that is no type.
pub(super) fn block(type_id: u32) -> Option<(usize, usize)> {
    TYPES
        .iter()
        .find(|entry| entry.0 == type_id)
        .map(|entry| (entry.2, entry.3))
}

/// The type's name.
pub(super) fn name(type_id: u32) -> &'static str {
    TYPES
        .iter()
        .find(|entry| entry.0 == type_id)
        .map_or("an unknown type", |entry| entry.1)
}

/// The number of a format.
pub(super) fn id(format: Format) -> u32 {
    match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Q4_0 => 2,
        Format::Q4_1 => 3,
        Format::Q5_0 => 6,
        Format::Q5_1 => 7,
        Format::Q8_0 => 8,
        Format::Q2K => 10,
        Format::Q3K => 11,
        Format::Q4K => 12,
        Format::Q5K => 13,
        Format::Q6K => 14,
        Format::Iq4Nl => 20,
        Format::Bf16 => 30,
    }
}

/// What the kernels call it, if they can read it.
pub(super) fn format(type_id: u32) -> Option<Format> {
    Some(match type_id {
        0 => Format::F32,
        1 => Format::F16,
        2 => Format::Q4_0,
        3 => Format::Q4_1,
        6 => Format::Q5_0,
        7 => Format::Q5_1,
        8 => Format::Q8_0,
        10 => Format::Q2K,
        11 => Format::Q3K,
        12 => Format::Q4K,
        13 => Format::Q5K,
        14 => Format::Q6K,
        20 => Format::Iq4Nl,
        30 => Format::Bf16,
        _ => return None,
    })
}
