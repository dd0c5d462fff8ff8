use super::support::*;
use crate::{Backend, Error, GateActivation, HostWeight, RmsNormSpec};

#[test]
fn buffers_hold_what_was_written() {
    let cpu = cpu();
    let mut buffer = cpu.upload_f32(&[1.0, 2.0, 3.0]).unwrap();
    cpu.write_f32(&mut buffer, 1, &[5.0, 6.0]).unwrap();
    let mut out = [0.0; 2];
    cpu.read_f32(&buffer, 1, &mut out).unwrap();
    assert_eq!(out, [5.0, 6.0]);
    let mut copy = cpu.alloc_act(3).unwrap();
    cpu.copy_act(&mut copy, &buffer, 2).unwrap();
    let mut out = [9.0; 3];
    cpu.read_act(&copy, 0, &mut out).unwrap();
    assert_eq!(out, [1.0, 5.0, 0.0]);
    cpu.zero_act(&mut copy, 1).unwrap();
    cpu.read_act(&copy, 0, &mut out).unwrap();
    assert_eq!(out, [0.0, 5.0, 0.0]);
    assert!(cpu.zero_act(&mut copy, 4).is_err());
    cpu.zero_f32(&mut buffer).unwrap();
    assert_eq!(buffer, vec![0.0; 3]);
    assert!(cpu.write_f32(&mut buffer, 2, &[1.0, 2.0]).is_err());
    assert!(cpu.read_f32(&buffer, usize::MAX, &mut out).is_err());
    assert!(cpu.alloc_f32(usize::MAX).is_err());
}

#[test]
fn short_buffers_are_named() {
    let cpu = cpu();
    let error = cpu.add(&mut vec![0.0; 4], &vec![0.0; 3], 4).unwrap_err();
    assert!(
        matches!(
            error,
            Error::TooShort {
                op: "add",
                what: "x",
                expected: 4,
                got: 3
            }
        ),
        "{error}"
    );
    let spec = RmsNormSpec {
        width: 0,
        epsilon: 1e-5,
        weight_offset: 0.0,
    };
    assert!(
        cpu.rms_norm(&mut vec![], &mut vec![], &vec![], &vec![], spec, 0)
            .is_err()
    );
    let weight = cpu
        .load_weight(HostWeight::from_f32(2, 3, &[0.0; 6]).unwrap())
        .unwrap();
    assert!(matmul(&cpu, &mut vec![0.0; 2], &[0.0; 2], &weight, 1).is_err());
    assert!(matmul(&cpu, &mut vec![0.0; 2], &[0.0; 3], &weight, usize::MAX).is_err());
    let empty = vec![];
    let gated = cpu.gated(&mut vec![], &empty, &empty, GateActivation::Silu, 1);
    assert!(
        gated
            .unwrap_err()
            .to_string()
            .contains("gated: out holds 0 elements, expected at least 1")
    );
    assert!(
        cpu.rope(&mut vec![0.0; 3], &vec![0], &vec![0.0; 2], 1, 3, 1)
            .is_err()
    );
}
