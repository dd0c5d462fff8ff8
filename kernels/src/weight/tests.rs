use super::*;

fn zeros(len: usize) -> SharedBytes {
    Arc::new(vec![0u8; len])
}

#[test]
fn a_matrix_must_lie_within_its_bytes() {
    assert!(HostWeight::blocks(3, 32, Format::Q8_0, zeros(102), 0).is_ok());
    assert!(HostWeight::blocks(3, 32, Format::Q8_0, zeros(102), 1).is_err());
    assert!(HostWeight::blocks(3, 32, Format::Q8_0, zeros(101), 0).is_err());
    assert!(HostWeight::blocks(3, 33, Format::Q8_0, zeros(1000), 0).is_err());
    assert!(HostWeight::blocks(usize::MAX, 32, Format::Q8_0, zeros(102), 0).is_err());
    assert!(HostWeight::blocks(1, 32, Format::Q8_0, zeros(102), usize::MAX).is_err());
    assert!(HostWeight::from_f32(2, 3, &[0.0; 5]).is_err());
}

#[test]
fn values_are_read_from_the_offset() {
    let bytes: Vec<u8> = [9.0f32, 1.0, 2.0, 3.0, 4.0]
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    let weight = HostWeight::blocks(2, 2, Format::F32, Arc::new(bytes), 4).unwrap();
    assert_eq!(weight.to_f32(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(weight.shape(), (2, 2));
    assert_eq!(format!("{weight:?}"), "HostWeight[2, 2] F32");
    assert!(
        HostWeight::blocks(5, 0, Format::F32, zeros(0), 0)
            .unwrap()
            .to_f32()
            .is_empty()
    );
}
