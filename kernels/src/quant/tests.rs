use half::{bf16, f16};

use super::*;
use crate::golden::{Golden, assert_same_bits};

#[test]
fn blocks_decode_as_the_reference_reader_has_them() {
    let golden = Golden::open("quant/blocks.safetensors");
    let formats = [
        ("Q8_0", Format::Q8_0),
        ("Q4_0", Format::Q4_0),
        ("Q4_1", Format::Q4_1),
        ("Q4_K", Format::Q4K),
        ("Q6_K", Format::Q6K),
        ("Q5_0", Format::Q5_0),
        ("Q5_1", Format::Q5_1),
        ("Q2_K", Format::Q2K),
        ("Q3_K", Format::Q3K),
        ("Q5_K", Format::Q5K),
        ("IQ4_NL", Format::Iq4Nl),
    ];
    for (name, format) in formats {
        let (bytes, expected) = (
            golden.u8(&format!("{name}.bytes")),
            golden.f32(&format!("{name}.values")),
        );
        assert_eq!(bytes.len(), format.bytes_for(expected.len()).unwrap());
        let mut values = vec![0.0; expected.len()];
        decode_row(format, &bytes, 0, &mut values);
        assert_same_bits(&values, &expected);
        // from the middle of a row, as panels are packed
        for first in (0..expected.len()).step_by(RUN_LEN) {
            let mut run = [0.0; RUN_LEN];
            decode_row(format, &bytes, first, &mut run);
            assert_same_bits(&run, &expected[first..first + RUN_LEN]);
        }
    }
}

#[test]
fn plain_formats_decode_to_their_values() {
    let numbers = [0.0f32, -1.5, 3.140625, 65504.0];
    let halves: Vec<u8> = numbers
        .iter()
        .flat_map(|&x| f16::from_f32(x).to_le_bytes())
        .collect();
    let mut values = [0.0; 4];
    decode_row(Format::F16, &halves, 0, &mut values);
    assert_eq!(values, numbers);
    let wide: Vec<u8> = numbers
        .iter()
        .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
        .collect();
    decode_row(Format::Bf16, &wide, 1, &mut values[..3]);
    assert_eq!(values[..2], numbers[1..3]);
    let full: Vec<u8> = numbers.iter().flat_map(|&x| x.to_le_bytes()).collect();
    decode_row(Format::F32, &full, 0, &mut values);
    assert_eq!(values, numbers);
}

#[test]
fn every_half_is_read_as_the_library_reads_it() {
    for bits in 0..=u16::MAX {
        let (got, expected) = (f16_of(bits.to_le_bytes()), f16::from_bits(bits).to_f32());
        assert!(
            got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(),
            "{bits:#x}"
        );
    }
}
