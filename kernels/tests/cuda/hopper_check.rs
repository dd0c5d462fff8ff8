//! A card whose Hopper kernels do not do what they should opens without them.
//!
//! Invariant: each kernel is made wrong in a way that a card may differ from the interpreter; training then has the bits of a
//! card that has no such kernels.

use llamaduo_kernels::cuda::{Architecture, Kernel, Source};
use llamaduo_kernels::{
    Cuda, DeviceError, DoubleQuant, Error, HostWeight, LinearForward, Lora, LoraForward, LoraSlot, Nf4Matrix,
};

use crate::case::{activations, numbers};
use crate::driver;

const SOURCES: [Source; 2] = [Source::MatmulNf4Hopper, Source::MatmulNf4HopperBackward];

#[expect(clippy::print_stdout, reason = "a skipped test says so")]
fn skip() -> bool {
    if driver::is_real() {
        println!("skipped: the machine's own card is what it is");
    }
    driver::is_real()
}

/// Rows, outputs and inputs of a linear, and a rank beside it.
const SHAPE: [usize; 4] = [40, 72, 128, 8];

/// A linear of documents and its backward.
fn trained(cuda: &Cuda) -> Result<[Vec<f32>; 2], Error> {
    let [m, n, k, rank] = SHAPE;
    let weight = Nf4Matrix::quantize(n, k, &numbers(60, n * k), DoubleQuant::Yes)?;
    let weight = cuda.load_weight(HostWeight::Nf4(weight))?;
    let (mut y, mut h) = (cuda.alloc_act(m * n)?, cuda.alloc_f32(m * rank)?);
    let linear = LinearForward {
        y: &mut y,
        weight: &weight,
        lora: Some(Lora::One(LoraForward {
            h: &mut h,
            params: &cuda.upload_f32(&numbers(61, rank * (n + k)))?,
            slot: LoraSlot {
                a_offset: 0,
                b_offset: rank * k,
                rank,
                n_in: k,
                n_out: n,
                scale: 0.5,
            },
            dropout: None,
        })),
    };
    cuda.linears_of_documents(&cuda.upload_act(&activations(62, m * k))?, &mut [linear], m)?;
    let mut dx = cuda.upload_act(&activations(63, m * k))?;
    cuda.matmul_backward(&mut dx, &cuda.upload_act(&activations(64, m * n))?, &weight, m)?;
    let mut out = [vec![0.0; m * n], vec![0.0; m * k]];
    cuda.read_act(&y, 0, &mut out[0])?;
    cuda.read_act(&dx, 0, &mut out[1])?;
    Ok(out)
}

/// The card opens with this in the place of a module, says why it leaves Hopper's kernels out, and trains without them.
fn opens_without(source: Source, replacement: &str, why: &str) {
    let name = source.name();
    let cuda = driver::open_checked_with(driver::HOPPER, source.ptx(), replacement).unwrap();
    assert_eq!(cuda.info().capability, driver::HOPPER);
    assert_eq!(cuda.architectures(), [Architecture::Baseline], "{name}");
    let said = cuda.left_out().unwrap();
    assert!(said.contains(why), "{name}: {said}");
    for kernel in [Kernel::MatmulNf4Hopper, Kernel::MatmulNf4HopperBackward] {
        let refusal = cuda.refusal(kernel).unwrap();
        assert!(matches!(refusal, DeviceError::LeftOut { .. }), "{refusal}");
        let said = refusal.to_string();
        assert!(said.contains(kernel.name()) && said.contains(why), "{said}");
        assert!(!refusal.is_retryable());
    }
    let ada = driver::open_as(driver::ADA).unwrap();
    assert_eq!(trained(&cuda).unwrap(), trained(&ada).unwrap(), "{name}");
}

#[test]
fn kernels_that_are_right_are_used() {
    if skip() {
        return;
    }
    let cuda = driver::open_as(driver::HOPPER).unwrap();
    assert_eq!(cuda.left_out(), None);
    assert_eq!(cuda.architectures(), Architecture::ALL);
    driver::take_launched();
    trained(&cuda).unwrap();
    let launched = driver::take_launched();
    for kernel in [Kernel::MatmulNf4Hopper, Kernel::MatmulNf4HopperBackward] {
        assert!(launched.iter().any(|(name, _)| name == kernel.name()));
    }
}

/// Two registers of each product's left operand the other way round: as if a card laid fragments out so.
fn with_other_fragments(ptx: &str) -> String {
    let mut n_products = 0;
    let mut turned = |line: &str| {
        let is_product = line.trim_start().starts_with("wgmma.mma_async");
        let (sums, rest) = is_product.then(|| line.rsplit_once("}, {"))??;
        let (left, rest) = rest.split_once('}')?;
        let [a, b, c, d]: [&str; 4] = left.split(", ").collect::<Vec<_>>().try_into().ok()?;
        n_products += 1;
        Some(format!("{sums}}}, {{{a}, {c}, {b}, {d}}}{rest}"))
    };
    let lines: Vec<String> = ptx
        .lines()
        .map(|line| turned(line).unwrap_or_else(|| line.to_owned()))
        .collect();
    assert!(n_products >= 8, "{n_products} products");
    lines.join("\n") + "\n"
}

#[test]
fn kernels_that_differ_are_left_out() {
    if skip() {
        return;
    }
    for (source, product) in SOURCES.into_iter().zip(["forward", "backward"]) {
        opens_without(
            source,
            &with_other_fragments(source.ptx()),
            &format!("of a {product} product"),
        );
    }
}

#[test]
fn kernels_that_do_not_load_are_left_out() {
    if skip() {
        return;
    }
    for source in SOURCES {
        opens_without(source, "no PTX", &format!("{}.ptx: compiling", source.name()));
    }
    // one that every card needs is another matter
    let source = Source::Rope;
    let refused = driver::open_checked_with(driver::HOPPER, source.ptx(), "no PTX").unwrap_err();
    assert!(matches!(refused, DeviceError::Driver { .. }), "{refused}");
}

#[test]
fn kernels_that_bring_the_device_down_are_left_out_when_it_is_opened_again() {
    if skip() {
        return;
    }
    for source in SOURCES {
        let mut n_far = 0;
        let far = source.ptx().lines().map(|line| {
            let is_store = line.trim_start().starts_with("st.global") && !line.contains('+');
            n_far += usize::from(is_store);
            match is_store {
                true => line.replace(']', "+1099511627776]"),
                false => line.to_owned(),
            }
        });
        let far = far.collect::<Vec<_>>().join("\n") + "\n";
        assert!(n_far > 0);
        opens_without(source, &far, "bring the device down");
    }
    // nothing works before the device was opened again; the launches of the kernels for every card are three, and the fifth is
    // of Hopper's forward
    llamaduo_stand_in_driver::load().unwrap();
    llamaduo_stand_in_driver::fail_here("launch", 5, 719);
    let source = Source::MatmulNf4Hopper;
    opens_without(source, source.ptx(), "bring the device down");
    // of those for every card it is a failure like any other
    llamaduo_stand_in_driver::fail_here("launch", 2, 719);
    let refused = driver::open_as(driver::HOPPER).unwrap_err();
    assert!(matches!(refused, DeviceError::Lost { .. }), "{refused}");
    assert_eq!(driver::open_as(driver::HOPPER).unwrap().left_out(), None);
}
