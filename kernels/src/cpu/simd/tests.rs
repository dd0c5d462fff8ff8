use super::*;

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

#[test]
fn tiles_of_every_width_are_chains() {
    let k = 37;
    let number = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0;
    for isa in Isa::all() {
        for width in 1..=TILE_ROWS {
            let a: Vec<f32> = (0..k * width).map(number).collect();
            let b: Vec<TileRow> = (0..k)
                .map(|p| std::array::from_fn(|j| number(7 + 32 * p + j)))
                .collect();
            let mut c = vec![[0.5f32; TILE_COLUMNS]; width];
            multiply_tile(isa, &a, &b, &mut c);
            for (i, row) in c.iter().enumerate() {
                for (j, got) in row.iter().enumerate() {
                    let chain = (0..k).fold(0.5f32, |sum, p| a[p * width + i].mul_add(b[p][j], sum));
                    assert_eq!(
                        got.to_bits(),
                        chain.to_bits(),
                        "{isa:?}, width {width}, [{i}][{j}]"
                    );
                }
            }
        }
    }
}
