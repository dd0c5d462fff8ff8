//! Every row of the table on both backends.
//!
//! Invariant: one test, so that its failure lists all rows that fail.

use std::collections::BTreeMap;

use llamaduo_kernels::Cpu;

use crate::{cases, driver};

#[test]
fn the_device_agrees_with_the_cpu() {
    let (cpu, cuda) = (Cpu::new(Some(1)).unwrap(), driver::open().unwrap());
    println!("on {:?}", cuda.info());
    let mut failed = Vec::new();
    let mut worst: BTreeMap<String, f64> = BTreeMap::new();
    for case in cases::all() {
        match case.check(&cpu, &cuda) {
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
