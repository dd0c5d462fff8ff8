//! Every row of the table on both backends.
//!
//! Invariant: a test's failure lists all rows that fail.

use std::collections::BTreeMap;

use llamaduo_kernels::{Cpu, Cuda};

use crate::case::Case;
use crate::{cases, driver};

#[test]
fn the_device_agrees_with_the_cpu() {
    check(&driver::open().unwrap(), cases::all());
}

#[test]
fn so_does_hopper_with_its_own_kernels() {
    if driver::is_real() {
        println!("skipped: the machine's own card is what it is");
        return;
    }
    check(&driver::open_as(driver::HOPPER).unwrap(), cases::of_products());
}

fn check(cuda: &Cuda, cases: Vec<Case>) {
    let cpu = Cpu::new(Some(1)).unwrap();
    println!("on {:?}", cuda.info());
    let mut failed = Vec::new();
    let mut worst: BTreeMap<String, f64> = BTreeMap::new();
    for case in cases {
        match case.check(&cpu, cuda) {
            Ok(part) => {
                let op = case.name.split(':').next().unwrap_or_default().to_owned();
                let worst = worst.entry(op).or_default();
                *worst = worst.max(part);
            }
            Err(wrong) => failed.push(format!("{}: {wrong}", case.name)),
        }
    }
    for (op, part) in worst {
        println!("{op}: largest error {part:.2} of its bound");
    }
    assert!(
        failed.is_empty(),
        "{} rows fail:\n{}",
        failed.len(),
        failed.join("\n")
    );
}
