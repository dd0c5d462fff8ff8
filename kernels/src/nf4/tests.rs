use proptest::prelude::*;

use super::*;
use crate::golden::{Golden, assert_same_bits};

fn nested(matrix: &Nf4Matrix) -> (&[u8], &[f32], f32) {
    match matrix.scales() {
        Nf4Scales::Nested {
            codes,
            absmax,
            offset,
        } => (codes, absmax, *offset),
        Nf4Scales::Plain(_) => panic!("the scales are not quantized"),
    }
}

#[test]
fn codes_and_scales_are_those_of_bitsandbytes() {
    let golden = Golden::open("nf4.safetensors");
    let shape = golden.shape("weight");
    let matrix = Nf4Matrix::quantize(shape[0], shape[1], &golden.f32("weight"), DoubleQuant::No).unwrap();
    assert!(matrix.codes() == golden.u8("packed"));
    assert_same_bits(&matrix.block_scales(), &golden.f32("absmax"));
    assert_same_bits(&matrix.dequantize(), &golden.f32("dequantized"));
}

#[test]
fn the_dynamic_map_is_that_of_bitsandbytes() {
    let golden = Golden::open("nf4.safetensors");
    assert_same_bits(dynamic_map(), &golden.f32("nested_code"));
}

#[test]
fn nested_scales_dequantize_as_in_bitsandbytes() {
    let golden = Golden::open("nf4.safetensors");
    let scales = Nf4Scales::Nested {
        codes: golden.u8("nested_absmax_u8").into(),
        absmax: golden.f32("nested_absmax").into(),
        offset: golden.f32("nested_offset")[0],
    };
    let shape = golden.shape("weight");
    let matrix = Nf4Matrix::from_parts(shape[0], shape[1], golden.u8("packed"), scales).unwrap();
    assert_same_bits(&matrix.dequantize(), &golden.f32("dequantized_nested"));
}

#[test]
fn double_quantization_takes_the_nearest_code() {
    let golden = Golden::open("nf4.safetensors");
    let shape = golden.shape("weight");
    let matrix = Nf4Matrix::quantize(shape[0], shape[1], &golden.f32("weight"), DoubleQuant::Yes).unwrap();
    let (codes, absmax, offset) = nested(&matrix);
    assert!((offset - golden.f32("nested_offset")[0]).abs() <= 1e-6);
    for (got, expected) in absmax.iter().zip(golden.f32("nested_absmax")) {
        assert!((got - expected).abs() <= 2e-6, "{got} {expected}");
    }
    for (i, (&code, scale)) in codes.iter().zip(golden.f32("absmax")).enumerate() {
        let x = (scale - offset) / absmax[i / SCALE_BLOCK_LEN];
        let distance = |code: usize| (dynamic_map()[code] - x).abs();
        let least = (0..256).map(distance).fold(f32::INFINITY, f32::min);
        assert!(distance(code.into()) <= least + 1e-7);
    }
}

#[test]
fn all_instruction_sets_quantize_alike() {
    let values: Vec<f32> = (0..BLOCK_LEN).map(|i| ((i * 37) as f32).sin()).collect();
    let quantized: Vec<_> = Isa::all()
        .into_iter()
        .map(|isa| {
            let (mut codes, mut scale) = ([0u8; 32], 0.0);
            quantize_block(isa, &values, &mut codes, &mut scale);
            (codes, scale.to_bits())
        })
        .collect();
    assert!(quantized.iter().all(|one| *one == quantized[0]));
}

#[test]
fn odd_values_are_kept_visible() {
    let zero = Nf4Matrix::quantize(1, 3, &[0.0; 3], DoubleQuant::Yes).unwrap();
    assert!(zero.dequantize().iter().all(|&value| value == 0.0));
    let nan = Nf4Matrix::quantize(1, 3, &[1.0, f32::NAN, 2.0], DoubleQuant::No).unwrap();
    assert!(nan.dequantize().iter().all(|value| value.is_nan()));
    let none = Nf4Matrix::quantize(0, 64, &[], DoubleQuant::Yes).unwrap();
    assert!(none.dequantize().is_empty());
}

#[test]
fn parts_of_the_wrong_length_are_refused() {
    let plain = |n: usize| Nf4Scales::Plain(vec![1.0; n].into());
    assert!(Nf4Matrix::from_parts(3, 33, vec![0; 50], plain(2)).is_ok());
    assert!(Nf4Matrix::from_parts(3, 33, vec![0; 49], plain(2)).is_err());
    assert!(Nf4Matrix::from_parts(3, 33, vec![0; 50], plain(1)).is_err());
    assert!(Nf4Matrix::from_parts(usize::MAX, 2, vec![], plain(0)).is_err());
    assert!(Nf4Matrix::quantize(2, 2, &[0.0; 3], DoubleQuant::No).is_err());
}

proptest! {
    /// Each value comes back as the nearest of the 16 levels of its block.
    #[test]
    fn each_value_takes_the_nearest_level(
        values in prop::collection::vec(-4f32..4.0, 1..300),
    ) {
        let matrix = Nf4Matrix::quantize(1, values.len(), &values, DoubleQuant::No).unwrap();
        let scales = matrix.block_scales();
        for (i, (value, got)) in values.iter().zip(matrix.dequantize()).enumerate() {
            let scale = scales[i / BLOCK_LEN];
            let nearest = CODE_VALUES
                .iter()
                .map(|level| (level * scale - value).abs())
                .fold(f32::INFINITY, f32::min);
            prop_assert!((got - value).abs() <= nearest + 1e-6 * scale);
        }
    }

    /// Double quantization moves a scale by at most half the widest step of the map, times the nested scale.
    #[test]
    fn double_quantized_scales_stay_near(values in prop::collection::vec(-4f32..4.0, 64..6000)) {
        let plain = Nf4Matrix::quantize(1, values.len(), &values, DoubleQuant::No).unwrap();
        let double = Nf4Matrix::quantize(1, values.len(), &values, DoubleQuant::Yes).unwrap();
        let (_, absmax, _) = nested(&double);
        prop_assert_eq!(plain.codes(), double.codes());
        for (i, (a, b)) in plain.block_scales().iter().zip(double.block_scales().iter()).enumerate() {
            prop_assert!((a - b).abs() <= absmax[i / SCALE_BLOCK_LEN] * 0.0072 + 1e-6);
        }
    }
}
