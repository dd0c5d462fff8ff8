//! Kernels made wrong on purpose: each must be noticed by some row of the table.
//!
//! Invariant: the list is made from the PTX itself: each barrier and wait removed, each access to memory off by one
//! element. A kernel that gets a new barrier is covered without a word.

use llamaduo_kernels::Cpu;
use llamaduo_kernels::cuda::Source;

use crate::case::Case;
use crate::{cases, driver};

/// Lines of `ptx` with `change` made to the one of that index.
fn changed(ptx: &str, index: usize, line: &str) -> String {
    let lines = ptx
        .lines()
        .enumerate()
        .map(|(i, original)| if i == index { line } else { original });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

/// How many lines `mutate` changes, and those where no row notices it.
fn survivors(mutate: impl Fn(&str) -> Option<String>) -> (usize, Vec<String>) {
    let cpu = Cpu::new(Some(1)).unwrap();
    let cases = cases::all();
    let (mut n_mutants, mut survivors) = (0, Vec::new());
    for source in Source::ALL {
        let rows: Vec<&Case> = cases.iter().filter(|case| case.source == *source).collect();
        for (index, line) in source.ptx().lines().enumerate() {
            let Some(mutant) = mutate(line) else { continue };
            n_mutants += 1;
            let cuda = driver::open_with(source.ptx(), &changed(source.ptx(), index, &mutant)).unwrap();
            if rows.iter().all(|case| case.check(&cpu, &cuda).is_ok()) {
                survivors.push(format!("{}.ptx:{}: {}", source.name(), index + 1, line.trim()));
            }
        }
    }
    (n_mutants, survivors)
}

/// A real driver runs only the kernels as they are.
const SKIPPED: &str = "skipped: only the stand-in driver runs kernels that are wrong on purpose";

#[test]
fn every_removed_barrier_is_reported() {
    if driver::is_real() {
        println!("{SKIPPED}");
        return;
    }
    let barriers = ["bar.sync", "bar.warp.sync", "cp.async.wait", "barrier.sync"];
    let (n_mutants, survivors) = survivors(|line| {
        let is_barrier = barriers.iter().any(|name| line.trim_start().starts_with(name));
        is_barrier.then(String::new)
    });
    assert!(n_mutants >= 7, "only {n_mutants} barriers were found");
    assert!(
        survivors.is_empty(),
        "removed unnoticed, of {n_mutants}:\n{}",
        survivors.join("\n")
    );
}

#[test]
fn every_index_off_by_one_is_noticed() {
    if driver::is_real() {
        println!("{SKIPPED}");
        return;
    }
    let (n_mutants, survivors) = survivors(|line| {
        let (mnemonic, _) = line.trim_start().split_once([' ', '\t'])?;
        let parts: Vec<&str> = mnemonic.split('.').collect();
        if !matches!(parts[0], "ld" | "st") || !matches!(parts[1], "global" | "shared") {
            return None;
        }
        let element_bits: usize = parts
            .last()?
            .trim_start_matches(|c: char| c.is_alphabetic())
            .parse()
            .ok()?;
        let n_elements = if parts.contains(&"v4") {
            4
        } else if parts.contains(&"v2") {
            2
        } else {
            1
        };
        let (before, address) = line.split_once('[')?;
        let (address, after) = address.split_once(']')?;
        let (base, offset) = address.split_once('+').unwrap_or((address, "0"));
        let offset = offset.parse::<usize>().ok()? + n_elements * element_bits / 8;
        Some(format!("{before}[{base}+{offset}]{after}"))
    });
    assert!(n_mutants >= 100, "only {n_mutants} accesses were found");
    assert!(
        survivors.is_empty(),
        "unnoticed, of {n_mutants}:\n{}",
        survivors.join("\n")
    );
}
