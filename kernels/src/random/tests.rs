use super::*;

#[test]
fn philox_gives_the_published_numbers() {
    // kat_vectors of the authors' Random123 distribution: philox4x32-10
    assert_eq!(
        philox([0; 2], [0; 4]),
        [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]
    );
    assert_eq!(
        philox([u32::MAX; 2], [u32::MAX; 4]),
        [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]
    );
    assert_eq!(
        philox(
            [0xa4093822, 0x299f31d0],
            [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344]
        ),
        [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
    );
}

#[test]
fn uniform_numbers_fill_the_unit_interval_evenly() {
    let n = 100_000;
    let mut tenths = [0u32; 10];
    for i in 0..n {
        let x = uniform(key(&[7, 1]), i);
        assert!((0.0..1.0).contains(&x));
        tenths[(x * 10.0) as usize] += 1;
    }
    // six standard deviations of a binomial with p = 0.1 are 570
    assert!(
        tenths.iter().all(|&count| count.abs_diff(10_000) < 570),
        "{tenths:?}"
    );
}

#[test]
fn keys_depend_on_every_part_and_on_their_order() {
    let keys = [
        key(&[]),
        key(&[0]),
        key(&[1]),
        key(&[0, 1]),
        key(&[1, 0]),
        key(&[0, 0]),
    ];
    for (i, a) in keys.iter().enumerate() {
        assert!(keys[..i].iter().all(|b| a != b));
    }
}
