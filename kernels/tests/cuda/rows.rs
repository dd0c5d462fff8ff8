//! Products with weights, row by row: which kernel makes a row, and that those beside it change none of its bits.
//!
//! Invariant: what holds for every card is shown of both kinds that the stand-in plays.

use llamaduo_kernels::cuda::{CudaAct, Kernel};
use llamaduo_kernels::{
    Cuda, DoubleQuant, Dropout, Error, HostWeight, LinearForward, Lora, LoraForward, LoraSlot, Nf4Matrix,
};

use crate::driver;

/// The stand-in as a card with kernels of its own; `None` where the tests are for the machine's own card.
fn open_hopper() -> Option<Cuda> {
    match driver::is_real() {
        true => None,
        false => Some(driver::open_as(driver::HOPPER).unwrap()),
    }
}

#[test]
fn a_kernel_for_other_cards_is_refused_by_name() {
    let cuda = driver::open().unwrap();
    if cuda.info().capability != driver::HOPPER {
        let refusal = cuda.refusal(Kernel::MatmulNf4Hopper).unwrap();
        let said = refusal.to_string();
        assert!(
            said.contains("matmul_nf4_hopper") && said.contains("Hopper"),
            "{said}"
        );
        assert!(!refusal.is_retryable());
    }
    assert!(cuda.refusal(Kernel::MatmulNf4Rows128).is_none());
    if let Some(hopper) = open_hopper() {
        for &kernel in Kernel::ALL {
            assert!(hopper.refusal(kernel).is_none(), "{}", kernel.name());
        }
    }
}

#[test]
fn a_rows_product_does_not_depend_on_the_rows_beside_it() {
    let cuda = driver::open().unwrap();
    check_rows_of_products(&cuda, Cuda::linears);
    check_rows_of_products(&cuda, Cuda::linears_of_documents);
    if let Some(hopper) = open_hopper() {
        check_rows_of_products(&hopper, Cuda::linears_of_documents);
    }
}

#[test]
fn what_is_generated_from_has_the_same_bits_on_hopper() {
    let Some(hopper) = open_hopper() else {
        println!("skipped: the machine's own card is what it is");
        return;
    };
    let ada = driver::open_as(driver::ADA).unwrap();
    let [on_ada, on_hopper] = [&ada, &hopper].map(|cuda| check_rows_of_products(cuda, Cuda::linears));
    assert_eq!(on_ada, on_hopper);
}

type Linears = fn(&Cuda, &CudaAct, &mut [LinearForward<'_, Cuda>], usize) -> Result<(), Error>;

/// Each number of rows against all of them, which it gives.
fn check_rows_of_products(cuda: &Cuda, linears: Linears) -> Vec<f32> {
    let (n, k) = (40, 640);
    let values: Vec<f32> = (0..n * k).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
    let weight = Nf4Matrix::quantize(n, k, &values, DoubleQuant::No).unwrap();
    let weight = cuda.load_weight(HostWeight::Nf4(weight)).unwrap();
    let slot = LoraSlot {
        a_offset: 0,
        b_offset: 20 * k,
        rank: 20,
        n_in: k,
        n_out: n,
        scale: 0.5,
    };
    let params: Vec<f32> = (0..20 * (k + n)).map(|i| (i * 29 % 89) as f32 / 89.0).collect();
    let params = cuda.upload_f32(&params).unwrap();
    let dropout = Some(Dropout { rate: 0.3, key: 5 });
    let x: Vec<f32> = (0..300 * k).map(|i| (i * 53 % 97) as f32 / 97.0).collect();
    let product = |m: usize| {
        let mut y = cuda.alloc_act(m * n).unwrap();
        let linear = LinearForward {
            y: &mut y,
            weight: &weight,
            lora: Some(Lora::One(LoraForward {
                h: &mut cuda.alloc_f32(m * 20).unwrap(),
                params: &params,
                slot,
                dropout,
            })),
        };
        let x = cuda.upload_act(&x[..m * k]).unwrap();
        linears(cuda, &x, &mut [linear], m).unwrap();
        let mut out = vec![0.0; m * n];
        cuda.read_act(&y, 0, &mut out).unwrap();
        out
    };
    let all = product(300);
    for m in [1, 8, 9, 16, 17, 33, 64, 65, 129, 257] {
        assert_eq!(product(m), all[..m * n], "{m} rows");
    }
    all
}

#[test]
fn a_rows_gradient_does_not_depend_on_the_rows_beside_it() {
    check_rows_of_gradients(&driver::open().unwrap());
    if let Some(hopper) = open_hopper() {
        check_rows_of_gradients(&hopper);
    }
}

fn check_rows_of_gradients(cuda: &Cuda) {
    let (n, k) = (96, 320);
    let values: Vec<f32> = (0..n * k).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
    let dy: Vec<f32> = (0..300 * n).map(|i| (i * 53 % 97) as f32 / 97.0).collect();
    let nf4 = Nf4Matrix::quantize(n, k, &values, DoubleQuant::Yes).unwrap();
    for weight in [HostWeight::Nf4(nf4), HostWeight::from_f32(n, k, &values).unwrap()] {
        let weight = cuda.load_weight(weight).unwrap();
        let gradient = |m: usize| {
            let mut dx = cuda.alloc_act(m * k).unwrap();
            let dy = cuda.upload_act(&dy[..m * n]).unwrap();
            cuda.matmul_backward(&mut dx, &dy, &weight, m).unwrap();
            let mut out = vec![0.0; m * k];
            cuda.read_act(&dx, 0, &mut out).unwrap();
            out
        };
        let all = gradient(300);
        for m in [1, 17, 129, 257] {
            assert_eq!(gradient(m), all[..m * k], "{m} rows");
        }
    }
}
