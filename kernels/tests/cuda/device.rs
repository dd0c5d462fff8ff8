//! The device itself: what is known of it, what it refuses, memory, graphs.
//!
//! Invariant: every refusal is an error that names the operation.

use llamaduo_kernels::cuda::devices;
use llamaduo_kernels::{
    AttentionSpec, Cuda, Device, DeviceError, DoubleQuant, Dropout, Error, HeadDims, HostWeight,
    LinearForward, Lora, LoraForward, LoraSlot, Nf4Matrix, RmsNormSpec,
};

use crate::driver;

#[test]
fn the_device_is_described() {
    let cuda = driver::open().unwrap();
    let info = cuda.info();
    assert_eq!(devices().unwrap()[0], *info);
    assert!(info.refusal().is_none());
    if !driver::is_real() {
        assert_eq!(info.name, "stand-in (PTX interpreter)");
        assert_eq!((info.capability, info.cuda_version), ((8, 9), 12040));
        assert_eq!(info.memory_bytes, 1 << 30);
    }
}

#[test]
fn a_device_that_is_not_there_is_refused_by_number() {
    driver::open().unwrap();
    let n_devices = devices().unwrap().len();
    let error = Cuda::new(n_devices).unwrap_err();
    assert!(matches!(error, DeviceError::NoDevice { .. }), "{error}");
    assert!(!error.is_retryable());
}

#[test]
fn what_is_too_old_is_refused_with_what_is_needed() {
    let info = driver::open().unwrap().info().clone();
    let old_card = llamaduo_kernels::cuda::DeviceInfo {
        capability: (7, 5),
        ..info.clone()
    };
    let said = old_card.refusal().unwrap().to_string();
    assert!(
        said.contains("compute capability 7.5") && said.contains("8.0"),
        "{said}"
    );
    let old_driver = llamaduo_kernels::cuda::DeviceInfo {
        cuda_version: 12020,
        ..info
    };
    let said = old_driver.refusal().unwrap().to_string();
    assert!(said.contains("CUDA 12.2") && said.contains("550"), "{said}");
}

#[test]
fn buffers_are_copied_and_cleared() {
    let cuda = driver::open().unwrap();
    let mut values = cuda.upload_f32(&[1.0, 2.0, 3.0]).unwrap();
    cuda.write_f32(&mut values, 1, &[5.0]).unwrap();
    let mut out = [0.0; 3];
    cuda.read_f32(&values, 0, &mut out).unwrap();
    assert_eq!(out, [1.0, 5.0, 3.0]);
    cuda.zero_f32(&mut values).unwrap();
    cuda.read_f32(&values, 0, &mut out).unwrap();
    assert_eq!(out, [0.0; 3]);
    let source = cuda.upload_act(&[1.0, -2.0]).unwrap();
    let mut target = cuda.alloc_act(4).unwrap();
    cuda.copy_act(&mut target, &source, 2).unwrap();
    let mut out = [9.0; 4];
    cuda.read_act(&target, 0, &mut out).unwrap();
    assert_eq!(out, [1.0, -2.0, 0.0, 0.0]);
    cuda.zero_act(&mut target, 1).unwrap();
    cuda.read_act(&target, 0, &mut out).unwrap();
    assert_eq!(out, [0.0, -2.0, 0.0, 0.0]);
    assert!(cuda.zero_act(&mut target, 5).is_err());
    assert!(matches!(
        cuda.read_f32(&values, 2, &mut [0.0; 2]),
        Err(Error::TooShort { expected: 4, .. })
    ));
    assert!(cuda.upload_f32(&[]).is_ok());
}

#[test]
fn shapes_that_do_not_fit_are_refused_before_a_launch() {
    let cuda = driver::open().unwrap();
    let (mut out, mut rstd) = (cuda.alloc_act(8).unwrap(), cuda.alloc_f32(1).unwrap());
    let (x, weight) = (cuda.alloc_act(8).unwrap(), cuda.alloc_f32(8).unwrap());
    let spec = RmsNormSpec {
        width: 8,
        epsilon: 1e-5,
        weight_offset: 0.0,
    };
    let refused = cuda.rms_norm(&mut out, &mut rstd, &x, &weight, spec, 2);
    assert!(matches!(
        refused,
        Err(Error::TooShort {
            op: "rms_norm",
            what: "out",
            expected: 16,
            ..
        })
    ));
    let table = HostWeight::from_f32(2, 8, &[1.0; 16]).unwrap();
    let table = cuda.load_weight(table).unwrap();
    let refused = cuda.embed(&mut out, &cuda.upload_u32(&[2]).unwrap(), &table, 1.0, 1);
    assert!(matches!(
        refused,
        Err(Error::OutOfRange {
            op: "embed",
            value: 2,
            limit: 2,
            ..
        })
    ));
    // nothing to do is done
    cuda.rms_norm(&mut out, &mut rstd, &x, &weight, spec, 0).unwrap();
    cuda.add(&mut out, &x, 0).unwrap();
}

#[test]
fn memory_that_is_not_there_is_said_to_be_missing() {
    let cuda = driver::open().unwrap();
    let error = cuda.alloc_f32(cuda.info().memory_bytes).unwrap_err();
    let Error::Device { source, .. } = error else {
        panic!("{error}")
    };
    assert!(matches!(source, DeviceError::OutOfMemory { .. }), "{source}");
    assert!(source.is_retryable());
    assert!(matches!(cuda.alloc_f32(usize::MAX), Err(Error::Overflow { .. })));
    // the device can be used afterwards
    cuda.alloc_f32(1).unwrap();
}

/// The stand-in, unless the driver is a real one, which cannot be made to fail.
#[expect(clippy::print_stdout, reason = "a skipped test says so")]
fn can_fail() -> bool {
    if driver::is_real() {
        println!("skipped: a real device is not made to fail");
        return false;
    }
    llamaduo_stand_in_driver::load().unwrap();
    true
}

#[test]
fn a_device_that_fails_at_its_work_is_lost_until_it_is_opened_anew() {
    if !can_fail() {
        return;
    }
    for (code, name) in [(214, "ECC"), (700, "ILLEGAL_ADDRESS"), (719, "LAUNCH_FAILED")] {
        let cuda = driver::open().unwrap();
        let (mut y, x) = (cuda.alloc_act(8).unwrap(), cuda.upload_act(&[1.0; 8]).unwrap());
        llamaduo_stand_in_driver::fail_here("launch", 1, code);
        let error = cuda.add(&mut y, &x, 8).unwrap_err();
        let lost = error.device().unwrap();
        assert!(matches!(lost, DeviceError::Lost { .. }), "{lost}");
        assert!(lost.is_retryable());
        let said = lost.to_string();
        assert!(said.contains("launching") && said.contains(name), "{said}");
        // whatever comes next fails the same way
        let error = cuda.read_act(&y, 0, &mut [0.0; 8]).unwrap_err();
        assert!(
            matches!(error.device(), Some(DeviceError::Lost { .. })),
            "{error}"
        );
        let error = cuda.alloc_f32(1).unwrap_err();
        assert!(
            matches!(error.device(), Some(DeviceError::Lost { .. })),
            "{error}"
        );
        drop((cuda, x, y));
        Device::Cuda(0).try_open().unwrap();
        let cuda = driver::open().unwrap();
        let mut out = [0.0; 2];
        cuda.read_act(&cuda.upload_act(&[1.0, 2.0]).unwrap(), 0, &mut out)
            .unwrap();
        assert_eq!(out, [1.0, 2.0]);
    }
}

#[test]
fn a_device_that_does_not_open_says_why() {
    if !can_fail() {
        return;
    }
    llamaduo_stand_in_driver::fail_here("open", 1, 46);
    let error = Device::Cuda(0).try_open().unwrap_err();
    assert!(error.is_retryable());
    let said = error.to_string();
    assert!(
        said.contains("opening the device") && said.contains("DEVICE_UNAVAILABLE"),
        "{said}"
    );
    llamaduo_stand_in_driver::fail_here("load", 1, 2);
    let error = driver::open().unwrap_err();
    assert!(
        matches!(error, DeviceError::OutOfMemory { bytes: None }),
        "{error}"
    );
}

#[test]
fn an_operation_without_room_of_its_own_leaves_its_operands() {
    if !can_fail() {
        return;
    }
    let cuda = driver::open().unwrap();
    let values = cuda.upload_f32(&[3.0; 4]).unwrap();
    llamaduo_stand_in_driver::fail_here("allocate", 1, 2);
    let error = cuda.sum_squares(&values, 4).unwrap_err();
    let said = error.device().unwrap().to_string();
    assert!(said.contains("no room for 8 more bytes"), "{said}");
    assert_eq!(cuda.sum_squares(&values, 4).unwrap(), 36.0);
}

#[test]
fn what_an_operation_left_is_given_to_the_next_and_back_to_the_driver_when_that_has_no_room() {
    if !can_fail() {
        return;
    }
    let n_allocated = || llamaduo_stand_in_driver::usage().n_allocations;
    let cuda = driver::open().unwrap().sharing_buffers();
    let values = vec![1.0; 3 << 14];
    let values = cuda.upload_f32(&values).unwrap();
    // one sum for each 2^14 values
    let sum = |n_sums: usize| cuda.sum_squares(&values, n_sums << 14).unwrap();
    let begun = n_allocated();
    assert_eq!(sum(2), f64::from(2 << 14));
    assert_eq!(n_allocated() - begun, 1);
    assert_eq!((sum(2), sum(1)), (f64::from(2 << 14), f64::from(1 << 14)));
    assert_eq!(n_allocated() - begun, 1, "the same one, also for half as many");
    assert_eq!(sum(3), f64::from(3 << 14));
    assert_eq!(n_allocated() - begun, 2);
    let held = llamaduo_stand_in_driver::usage().n_bytes;
    llamaduo_stand_in_driver::fail_here("allocate", 1, 2);
    let more = cuda.alloc_f32(16).unwrap();
    assert_eq!(llamaduo_stand_in_driver::usage().n_bytes, held + 64 - (2 + 3) * 8);
    drop(more);
    let exact = driver::open().unwrap();
    exact.sum_squares(&values, 2 << 14).unwrap();
    let begun = n_allocated();
    exact.sum_squares(&values, 2 << 14).unwrap();
    assert_eq!(n_allocated(), begun);
    exact.sum_squares(&values, 1 << 14).unwrap();
    assert_eq!(
        n_allocated(),
        begun + 1,
        "none that is larger, so that tests see its end"
    );
}

#[test]
fn a_device_that_is_there_can_be_chosen() {
    driver::open().unwrap();
    Device::Cuda(0).check().unwrap();
    Device::Cuda(devices().unwrap().len()).check().unwrap_err();
}

#[test]
fn a_width_that_is_no_multiple_of_64_is_left_to_the_cpu() {
    let cuda = driver::open().unwrap();
    let matrix = Nf4Matrix::quantize(2, 96, &[1.0; 192], DoubleQuant::No).unwrap();
    let said = cuda.load_weight(HostWeight::Nf4(matrix)).unwrap_err().to_string();
    assert!(said.contains("multiple of 64") && said.contains("CPU"), "{said}");
}

#[test]
fn a_pair_that_does_not_fit_its_linear_is_refused_before_a_launch() {
    let cuda = driver::open().unwrap();
    let weight = HostWeight::from_f32(2, 4, &[1.0; 8]).unwrap();
    let weight = cuda.load_weight(weight).unwrap();
    let (x, params) = (cuda.alloc_act(4).unwrap(), cuda.alloc_f32(6).unwrap());
    let slot = LoraSlot {
        a_offset: 0,
        b_offset: 4,
        rank: 1,
        n_in: 4,
        n_out: 2,
        scale: 1.0,
    };
    let refusal = |slot: LoraSlot, rate: f32| {
        let linear = LinearForward {
            y: &mut cuda.alloc_act(2).unwrap(),
            weight: &weight,
            lora: Some(Lora::One(LoraForward {
                h: &mut cuda.alloc_f32(1).unwrap(),
                params: &params,
                slot,
                dropout: Some(Dropout { rate, key: 0 }),
            })),
        };
        cuda.linears(&x, &mut [linear], 1)
            .map_err(|error| error.to_string())
    };
    refusal(slot, 0.5).unwrap();
    for (wrong, part) in [
        (LoraSlot { n_in: 3, ..slot }, "n_in of the pair is 3, expected 4"),
        (
            LoraSlot { n_out: 3, ..slot },
            "n_out of the pair is 3, expected 2",
        ),
        (LoraSlot { rank: 0, ..slot }, "rank must be at least 1"),
        (LoraSlot { b_offset: 5, ..slot }, "params for B holds 6"),
        (
            LoraSlot {
                a_offset: usize::MAX,
                ..slot
            },
            "the size of params for A overflows",
        ),
    ] {
        let said = refusal(wrong, 0.5).unwrap_err();
        assert!(said.contains(part), "{said}");
    }
    for rate in [1.0, -0.1, f32::NAN] {
        let said = refusal(slot, rate).unwrap_err();
        assert!(said.contains("dropout rate must be in [0, 1)"), "{said}");
    }
}

#[test]
fn heads_without_a_kernel_are_left_to_the_cpu() {
    let cuda = driver::open().unwrap();
    let heads = HeadDims {
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 80,
    };
    let said = cuda.alloc_kv_cache(heads, 1, 1).unwrap_err().to_string();
    assert!(said.contains("head_dim") && said.contains("CPU"), "{said}");
    let heads = HeadDims {
        n_heads: 17,
        n_kv_heads: 1,
        head_dim: 64,
    };
    let spec = AttentionSpec {
        heads,
        scale: 1.0,
        window: None,
    };
    let said = cuda.alloc_sequences(1, 1, &[spec]).unwrap_err().to_string();
    assert!(said.contains("n_heads") && said.contains("CPU"), "{said}");
}

#[test]
fn time_passes_on_the_devices_clock() {
    let cuda = driver::open().unwrap();
    let (mut y, x) = (
        cuda.upload_act(&[1.0; 64]).unwrap(),
        cuda.upload_act(&[2.0; 64]).unwrap(),
    );
    let once = cuda.time(|| cuda.add(&mut y, &x, 64)).unwrap();
    let many = cuda
        .time(|| (0..200).try_for_each(|_| cuda.add(&mut y, &x, 64)))
        .unwrap();
    assert!(once > 0.0 && many > once, "{once} s, {many} s");
}

#[test]
fn what_is_recorded_is_done_when_it_is_run() {
    let cuda = driver::open().unwrap();
    let (mut y, x) = (
        cuda.upload_act(&[1.0; 64]).unwrap(),
        cuda.upload_act(&[2.0; 64]).unwrap(),
    );
    {
        let mut three_times = || (0..3).try_for_each(|_| cuda.add(&mut y, &x, 64));
        let recorded = cuda.record(&mut three_times).unwrap();
        cuda.replay(&recorded).unwrap();
        cuda.replay(&recorded).unwrap();
    }
    let mut got = [0.0; 64];
    cuda.read_act(&y, 0, &mut got).unwrap();
    assert_eq!(got, [13.0; 64]);
}

#[test]
fn only_launches_can_be_recorded() {
    let cuda = driver::open().unwrap();
    let x = cuda.upload_act(&[2.0; 64]).unwrap();
    let mut y = cuda.alloc_act(64).unwrap();
    let said = cuda
        .record(&mut || cuda.copy_act(&mut y, &x, 64))
        .unwrap_err()
        .to_string();
    assert!(said.contains("launches and fills alone"), "{said}");
    cuda.record(&mut || Ok(())).unwrap_err();
    cuda.record(&mut || cuda.alloc_act(64).map(|_| ())).unwrap_err();
    // the stream can be used afterwards
    cuda.add(&mut y, &x, 64).unwrap();
    let mut got = [0.0; 64];
    cuda.read_act(&y, 0, &mut got).unwrap();
    assert_eq!(got, [2.0; 64]);
}
