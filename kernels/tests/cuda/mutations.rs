//! Kernels made wrong on purpose: each must be noticed by some row of the table.
//!
//! Invariant: the list is made from the PTX itself: each barrier, fence and wait removed, each access to memory off by one
//! element, each matrix descriptor by one piece. A kernel that gets a new barrier is covered without a word.

use std::collections::{BTreeMap, BTreeSet};

use llamaduo_kernels::Cpu;
use llamaduo_kernels::cuda::{Architecture, Source};

use crate::case::Case;
use crate::{cases, driver};

/// The rows that launch a kernel, those of the fewest instructions first, and all kernels that these rows launch.
#[derive(Default)]
struct Rows<'a> {
    rows: Vec<(u64, &'a Case)>,
    kernels: BTreeSet<String>,
}

/// The rows of each kernel, on a card of this compute capability.
fn rows_by_kernel<'a>(cpu: &Cpu, cases: &'a [Case], capability: (i32, i32)) -> BTreeMap<String, Rows<'a>> {
    let cuda = driver::open_as(capability).unwrap();
    let mut by_kernel: BTreeMap<String, Rows<'a>> = BTreeMap::new();
    for case in cases {
        driver::take_launched();
        case.check(cpu, &cuda)
            .unwrap_or_else(|wrong| panic!("{} is wrong as it is: {wrong}", case.name));
        // a row may launch a kernel many times
        let mut n_by_kernel: BTreeMap<String, u64> = BTreeMap::new();
        for (kernel, n_instructions) in driver::take_launched() {
            *n_by_kernel.entry(kernel).or_default() += n_instructions;
        }
        for (kernel, &n_instructions) in &n_by_kernel {
            let rows = by_kernel.entry(kernel.clone()).or_default();
            rows.rows.push((n_instructions, case));
            rows.kernels.extend(n_by_kernel.keys().cloned());
        }
    }
    for rows in by_kernel.values_mut() {
        rows.rows.sort_by_key(|(n_instructions, _)| *n_instructions);
    }
    by_kernel
}

/// The name of the kernel that begins in a line.
fn entry(line: &str) -> Option<&str> {
    Some(line.strip_prefix(".visible .entry ")?.trim_end_matches('('))
}

/// `ptx` with the body of every kernel but `kept` empty, as it costs time to read them; each line keeps its number.
fn only(ptx: &str, kept: &BTreeSet<String>) -> Vec<String> {
    let (mut skipped, mut within) = (false, false);
    ptx.lines()
        .map(|line| {
            skipped = entry(line).map_or(skipped, |kernel| !kept.contains(kernel));
            let (begins, ends) = (line == "{", line == "}");
            within = (within || begins) && !ends;
            match skipped && within {
                true if begins => "{ ret;".to_owned(),
                true => String::new(),
                false => line.to_owned(),
            }
        })
        .collect()
}

/// A table, the card it is run on, and its rows by kernel.
struct Table<'a> {
    capability: (i32, i32),
    by_kernel: BTreeMap<String, Rows<'a>>,
}

/// How many lines `mutate` makes something else of, given the whole PTX too, and those where no row notices it.
fn survivors(mutate: impl Fn(&str, &str) -> Option<String>) -> (usize, Vec<String>) {
    let cpu = Cpu::new(Some(1)).unwrap();
    let (cases, documents) = (cases::all(), cases::of_documents());
    let table = |cases, capability| Table {
        capability,
        by_kernel: rows_by_kernel(&cpu, cases, capability),
    };
    let [on_ada, on_hopper] = [table(&cases, driver::ADA), table(&documents, driver::HOPPER)];
    let unlaunched = Rows::default();
    let (mut n_mutants, mut survivors) = (0, Vec::new());
    for source in Source::ALL {
        let table = match source.architecture() {
            Architecture::Baseline => &on_ada,
            Architecture::Hopper => &on_hopper,
        };
        let (mut rows, mut lines) = (&unlaunched, only(source.ptx(), &unlaunched.kernels));
        for (index, line) in source.ptx().lines().enumerate() {
            if let Some(kernel) = entry(line) {
                rows = table.by_kernel.get(kernel).unwrap_or(&unlaunched);
                lines = only(source.ptx(), &rows.kernels);
            }
            let Some(mutant) = mutate(source.ptx(), line) else {
                continue;
            };
            n_mutants += 1;
            let original = std::mem::replace(&mut lines[index], mutant);
            let mutated = lines.join("\n") + "\n";
            let cuda = driver::open_with(table.capability, source.ptx(), &mutated).unwrap();
            lines[index] = original;
            if rows.rows.iter().all(|(_, case)| case.check(&cpu, &cuda).is_ok()) {
                survivors.push(format!("{}.ptx:{}: {}", source.name(), index + 1, line.trim()));
            }
        }
    }
    (n_mutants, survivors)
}

/// Bytes of the element that an access to memory is about; `None` for another instruction.
fn shift_of(mnemonic: &str) -> Option<usize> {
    let parts: Vec<&str> = mnemonic.split('.').collect();
    match parts[..] {
        ["ldmatrix", ..] | ["cp", "async", "cg" | "ca", ..] => Some(16),
        ["ld" | "st", "global" | "shared", ..] => {
            let bits: usize = parts
                .last()?
                .trim_start_matches(char::is_alphabetic)
                .parse()
                .ok()?;
            let n_elements = match () {
                () if parts.contains(&"v4") => 4,
                () if parts.contains(&"v2") => 2,
                () => 1,
            };
            Some(n_elements * bits / 8)
        }
        _ => None,
    }
}

/// A real driver runs only the kernels as they are.
const SKIPPED: &str = "skipped: only the stand-in driver runs kernels that are wrong on purpose";

#[test]
fn every_removed_barrier_is_reported() {
    if driver::is_real() {
        println!("{SKIPPED}");
        return;
    }
    let barriers = [
        "bar.sync",
        "bar.warp.sync",
        "barrier.sync",
        "cp.async.wait",
        "fence.proxy.async",
        "wgmma.fence",
        "wgmma.commit_group",
        "wgmma.wait_group",
    ];
    let (n_mutants, survivors) = survivors(|_, line| {
        let is_barrier = barriers.iter().any(|name| line.trim_start().starts_with(name));
        is_barrier.then(String::new)
    });
    assert!(n_mutants >= 70, "only {n_mutants} barriers were found");
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
    let (n_mutants, survivors) = survivors(|_, line| {
        let (mnemonic, _) = line.trim_start().split_once([' ', '\t'])?;
        let n_bytes = shift_of(mnemonic)?;
        let (before, address) = line.split_once('[')?;
        let (address, after) = address.split_once(']')?;
        let (base, offset) = address.split_once('+').unwrap_or((address, "0"));
        let offset = offset.parse::<usize>().ok()? + n_bytes;
        Some(format!("{before}[{base}+{offset}]{after}"))
    });
    assert!(n_mutants >= 5_000, "only {n_mutants} accesses were found");
    assert!(
        survivors.is_empty(),
        "unnoticed, of {n_mutants}:\n{}",
        survivors.join("\n")
    );
}

#[test]
fn every_descriptor_off_by_a_piece_is_noticed() {
    if driver::is_real() {
        println!("{SKIPPED}");
        return;
    }
    let (n_mutants, survivors) = survivors(|ptx, line| {
        // the constant in the instruction that makes a product's descriptor
        let (_, operands) = line.trim_start().split_once(char::is_whitespace)?;
        let (descriptor, rest) = operands.trim().split_once(", ")?;
        let constant: u64 = rest.rsplit_once(", ")?.1.strip_suffix(';')?.parse().ok()?;
        let products = ptx
            .lines()
            .filter(|line| line.trim_start().starts_with("wgmma.mma_async"));
        let mut descriptors = products.filter_map(|line| line.rsplit_once("}, ")?.1.split_once(','));
        let is_descriptor = descriptors.any(|(register, _)| register == descriptor);
        let mutant = line.replace(&format!("{constant};"), &format!("{};", constant + 1));
        is_descriptor.then_some(mutant)
    });
    assert!(n_mutants >= 8, "only {n_mutants} descriptors were found");
    assert!(
        survivors.is_empty(),
        "unnoticed, of {n_mutants}:\n{}",
        survivors.join("\n")
    );
}
