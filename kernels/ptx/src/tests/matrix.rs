use half::bf16;

use super::{kernel, run, words};

/// A value that every element of a small matrix has for itself, exact in bf16, f16 and tf32.
fn element(row: usize, column: usize, salt: usize) -> f32 {
    ((row * 7 + column * 13 + salt * 5) % 33) as f32 / 8.0 - 2.0
}

/// The product by its definition.
fn reference(n_k: usize) -> Vec<f32> {
    let product = |row: usize, column: usize| {
        (0..n_k)
            .map(|k| element(row, k, 1) * element(k, column, 2))
            .sum::<f32>()
            + element(row, column, 3)
    };
    (0..16)
        .flat_map(|row| (0..8).map(move |column| product(row, column)))
        .collect()
}

/// Loads fragments element by element as the ISA's tables say, multiplies, stores D.
fn multiply(name: &str, n_k: usize, pack: impl Fn(f32, f32) -> u32, per_register: usize) -> Vec<f32> {
    let mut input = Vec::new();
    for lane in 0..32 {
        let (group, member) = (lane / 4, lane % 4);
        for index in 0..4 {
            let row = group + 8 * (index % 2);
            let k = n_k / 2 * (index / 2) + per_register * member;
            input.push(pack(element(row, k, 1), element(row, k + 1, 1)));
        }
        for index in 0..2 {
            let k = n_k / 2 * index + per_register * member;
            input.push(pack(element(k, group, 2), element(k + 1, group, 2)));
        }
        for index in 0..4 {
            let (row, column) = (group + 8 * (index / 2), 2 * member + index % 2);
            input.push(element(row, column, 3).to_bits());
        }
    }
    let mut body = String::from("	mad.wide.u32 %at, %tid, 40, %in;\n");
    for register in 0..10 {
        body += &format!("	ld.global.u32 %r{register}, [%at+{}];\n", 4 * register);
    }
    body += &format!("	{name} {{%r6,%r7,%r8,%r9}}, {{%r0,%r1,%r2,%r3}}, {{%r4,%r5}}, {{%r6,%r7,%r8,%r9}};\n");
    body += "	mad.wide.u32 %at, %tid, 16, %out;\n	st.global.v4.u32 [%at], {%r6,%r7,%r8,%r9};\n";
    let bytes: Vec<u8> = input.into_iter().flat_map(u32::to_le_bytes).collect();
    let mut out = vec![0; 512];
    run(&kernel("", &body), [1, 32], 0, &bytes, &mut out).unwrap();
    let out = words(&out);
    let mut product = vec![0.0; 128];
    for lane in 0..32 {
        for index in 0..4 {
            let (row, column) = (lane / 4 + 8 * (index / 2), 2 * (lane % 4) + index % 2);
            product[8 * row + column] = f32::from_bits(out[4 * lane + index]);
        }
    }
    product
}

#[test]
fn a_product_of_bf16_is_that_of_its_matrices() {
    let pack = |low: f32, high: f32| {
        u32::from(bf16::from_f32(high).to_bits()) << 16 | u32::from(bf16::from_f32(low).to_bits())
    };
    let got = multiply("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", 16, pack, 2);
    assert_eq!(got, reference(16));
}

#[test]
fn a_product_of_f16_is_that_of_its_matrices() {
    let f16 = |x: f32| u32::from(half::f16::from_f32(x).to_bits());
    let got = multiply(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        16,
        |low, high| f16(high) << 16 | f16(low),
        2,
    );
    assert_eq!(got, reference(16));
}

#[test]
fn a_product_of_tf32_is_that_of_its_matrices() {
    let got = multiply(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
        8,
        |low, _| low.to_bits(),
        1,
    );
    assert_eq!(got, reference(8));
}

/// Four 8×8 matrices in shared memory, one row of 16 bytes after the other.
fn load_matrix(name: &str) -> Vec<u32> {
    let input: Vec<u8> = (0..256u16).flat_map(u16::to_le_bytes).collect();
    let body = format!(
        "	mad.wide.u32 %at, %tid, 16, %in;
	ld.global.v4.u32 {{%r0,%r1,%r2,%r3}}, [%at];
	shl.b32 %r4, %tid, 4;
	mov.u32 %r5, tile;
	add.s32 %r4, %r4, %r5;
	st.shared.v4.u32 [%r4], {{%r0,%r1,%r2,%r3}};
	bar.warp.sync -1;
	{name} {{%r0,%r1,%r2,%r3}}, [%r4];
	mad.wide.u32 %at, %tid, 16, %out;
	st.global.v4.u32 [%at], {{%r0,%r1,%r2,%r3}};
"
    );
    let mut out = vec![0; 512];
    let source = kernel(".shared .align 16 .b8 tile[512];", &body);
    run(&source, [1, 32], 0, &input, &mut out).unwrap();
    words(&out)
}

#[test]
fn a_lane_gets_two_neighbours_of_its_row_or_column() {
    let plain = load_matrix("ldmatrix.sync.aligned.m8n8.x4.shared.b16");
    let turned = load_matrix("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16");
    for lane in 0..32u32 {
        for matrix in 0..4 {
            let index = (4 * lane + matrix) as usize;
            let (major, minor) = (lane / 4, 2 * (lane % 4));
            let at = |row: u32, column: u32| 64 * matrix + 8 * row + column;
            assert_eq!(plain[index], at(major, minor + 1) << 16 | at(major, minor));
            assert_eq!(turned[index], at(minor + 1, major) << 16 | at(minor, major));
        }
    }
}
