use super::*;
use crate::backend::Dropout;
use crate::random;

#[test]
fn bytes_are_transposed() {
    let rows: [[u8; 16]; 16] = std::array::from_fn(|i| std::array::from_fn(|j| (16 * i + j) as u8));
    let columns = transpose_bytes(&rows);
    for (i, column) in columns.iter().enumerate() {
        for (j, value) in column.iter().enumerate() {
            assert_eq!(*value, rows[j][i]);
        }
    }
}

fn number(i: usize) -> f32 {
    ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0
}

#[test]
fn floats_are_transposed() {
    for isa in Isa::all() {
        for (n_rows, len, step) in [(1, 1, 1), (12, 37, 12), (11, 16, 11), (16, 33, 32), (3, 64, 5)] {
            let values: Vec<f32> = (0..n_rows * len).map(number).collect();
            let rows: Vec<&[f32]> = values.chunks(len).collect();
            let mut out = vec![9.0; (len - 1) * step + n_rows];
            transpose_floats(isa, &rows, &mut out, step);
            for (at, value) in out.iter().enumerate() {
                let (p, i) = (at / step, at % step);
                let expected = if i < n_rows { rows[i][p] } else { 9.0 };
                assert_eq!(
                    *value, expected,
                    "{isa:?}, {n_rows} rows of {len}, {step} apart, [{p}][{i}]"
                );
            }
        }
    }
}

#[test]
fn tiles_of_every_size_are_chains() {
    let k = 37;
    for isa in Isa::all() {
        for (width, n) in (1..=TILE_ROWS).flat_map(|width| [1, 8, 15, 16, 17, 31, 32].map(|n| (width, n))) {
            let a: Vec<f32> = (0..k * width).map(number).collect();
            let lefts: Vec<&[f32]> = a.chunks(k).collect();
            let b = |p: usize, j: usize| number(7 + 32 * p + j);
            let halves: Vec<HalfRow> = (0..2 * k)
                .map(|row| std::array::from_fn(|j| b(row % k, HALF_COLUMNS * (row / k) + j)))
                .collect();
            for (start, begin) in [(Start::Zero, 0.0), (Start::Current, 0.5)] {
                let mut c = vec![0.5f32; width * n];
                let mut rows: Vec<&mut [f32]> = c.chunks_mut(n).collect();
                multiply_tile(isa, &lefts, Panel::rows_of(&halves, 0, k), &mut rows, start);
                for (at, got) in c.iter().enumerate() {
                    let (i, j) = (at / n, at % n);
                    let chain = (0..k).fold(begin, |sum: f32, p| lefts[i][p].mul_add(b(p, j), sum));
                    let what = format!("{isa:?}, {width} by {n}, {start:?}, [{i}][{j}]");
                    assert_eq!(got.to_bits(), chain.to_bits(), "{what}");
                }
            }
        }
    }
}

#[test]
fn what_dropout_keeps_is_a_matter_of_key_and_element() {
    for isa in Isa::all() {
        for (first, len, rate) in [
            (0, 1, 0.5),
            (32, 31, 0.05),
            (1 << 35, 100, 0.25),
            (96, 64, 0.0),
            (64, 257, 0.999),
        ] {
            let dropout = Dropout {
                key: 0x1234_5678_9abc_def0,
                rate,
            };
            let mut kept = vec![9; len];
            draw_kept(isa, dropout, first, &mut kept);
            for (i, kept) in kept.iter().enumerate() {
                let uniform = random::uniform(dropout.key, first + i as u64);
                assert_eq!(
                    *kept,
                    u8::from(uniform >= rate),
                    "{isa:?}, rate {rate}, element {i} from {first}"
                );
            }
        }
    }
}
