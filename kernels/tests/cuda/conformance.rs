//! Every row of the table on both backends.
//!
//! Invariant: a test's failure lists all rows that fail.

use std::collections::BTreeMap;

use llamaduo_kernels::{Cpu, Cuda};

use crate::case::Case;
use crate::{cases, driver};

#[test]
fn the_device_agrees_with_the_cpu() {
    let cuda = driver::open().unwrap();
    assert_eq!(cuda.left_out(), None);
    println!("{}", check(&cuda, cases::all()));
}

#[test]
fn so_does_hopper_with_its_own_kernels() {
    if driver::is_real() {
        println!("skipped: the machine's own card is what it is");
        return;
    }
    let cuda = driver::open_as(driver::HOPPER).unwrap();
    assert_eq!(cuda.info().capability, driver::HOPPER);
    println!("{}", check(&cuda, cases::of_products()));
}

/// What it was checked on, and how large the errors were.
fn check(cuda: &Cuda, cases: Vec<Case>) -> String {
    let cpu = Cpu::new(Some(1)).unwrap();
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
    assert!(
        failed.is_empty(),
        "{} rows fail:\n{}",
        failed.len(),
        failed.join("\n")
    );
    let worst = worst
        .iter()
        .map(|(op, part)| format!("{op}: largest error {part:.2} of its bound"));
    let lines: Vec<String> = [format!("on {:?}", cuda.info())]
        .into_iter()
        .chain(worst)
        .collect();
    lines.join("\n")
}
