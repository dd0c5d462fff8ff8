//! Kernels made wrong on purpose: each must be noticed by some row of the table.
//!
//! Invariant: the list is made from the PTX itself: each barrier, fence and wait removed, each access to memory off by one
//! element, each matrix descriptor by one piece. A kernel that gets a new barrier is covered without a word.
//!
//! A process has one stand-in, which does one launch at a time; so the test begins itself once for each core, and each of
//! these processes tries its share of the list.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};

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

/// A way to make a line of PTX wrong, given the whole text too; `None` where the line is not of its kind.
struct Kind {
    name: &'static str,
    /// How many there are at least, so that a list which has become empty is noticed.
    n_min: usize,
    mutate: fn(&str, &str) -> Option<String>,
}

/// A line is of one kind at most.
const KINDS: [Kind; 3] = [
    Kind {
        name: "barriers",
        n_min: 70,
        mutate: |_, line| is_barrier(line).then(String::new),
    },
    Kind {
        name: "accesses",
        n_min: 5_000,
        mutate: |_, line| shifted_access(line),
    },
    Kind {
        name: "descriptors",
        n_min: 8,
        mutate: shifted_descriptor,
    },
];

/// What a process tries: each `n`-th mutant from the `first`.
#[derive(Clone, Copy)]
struct Share {
    first: usize,
    n: usize,
}

/// The number of mutants of each kind that a process has tried, and those that no row noticed.
#[derive(Default)]
struct Tried {
    n_by_kind: [usize; KINDS.len()],
    survivors: Vec<String>,
}

fn try_mutants(share: Share) -> Tried {
    let cpu = Cpu::new(Some(1)).unwrap();
    let (cases, documents) = (cases::all(), cases::of_documents());
    let table = |cases, capability| Table {
        capability,
        by_kernel: rows_by_kernel(&cpu, cases, capability),
    };
    let [on_ada, on_hopper] = [table(&cases, driver::ADA), table(&documents, driver::HOPPER)];
    let unlaunched = Rows::default();
    let (mut n_mutants, mut tried) = (0, Tried::default());
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
            let mutants = KINDS.iter().map(|kind| (kind.mutate)(source.ptx(), line));
            let Some((kind, mutant)) = mutants
                .enumerate()
                .find_map(|(kind, mutant)| Some((kind, mutant?)))
            else {
                continue;
            };
            n_mutants += 1;
            if n_mutants % share.n != share.first {
                continue;
            }
            tried.n_by_kind[kind] += 1;
            let original = std::mem::replace(&mut lines[index], mutant);
            let mutated = lines.join("\n") + "\n";
            let cuda = driver::open_with(table.capability, source.ptx(), &mutated).unwrap();
            lines[index] = original;
            if rows.rows.iter().all(|(_, case)| case.check(&cpu, &cuda).is_ok()) {
                let survivor = format!("{}.ptx:{}: {}", source.name(), index + 1, line.trim());
                tried.survivors.push(survivor);
            }
        }
    }
    tried
}

fn is_barrier(line: &str) -> bool {
    [
        "bar.sync",
        "bar.warp.sync",
        "barrier.sync",
        "cp.async.wait",
        "fence.proxy.async",
        "wgmma.fence",
        "wgmma.commit_group",
        "wgmma.wait_group",
    ]
    .iter()
    .any(|name| line.trim_start().starts_with(name))
}

/// The access one element further on.
fn shifted_access(line: &str) -> Option<String> {
    let (mnemonic, _) = line.trim_start().split_once([' ', '\t'])?;
    let n_bytes = shift_of(mnemonic)?;
    let (before, address) = line.split_once('[')?;
    let (address, after) = address.split_once(']')?;
    let (base, offset) = address.split_once('+').unwrap_or((address, "0"));
    let offset = offset.parse::<usize>().ok()? + n_bytes;
    Some(format!("{before}[{base}+{offset}]{after}"))
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

/// The constant in the instruction that makes a product's descriptor, one piece further on.
fn shifted_descriptor(ptx: &str, line: &str) -> Option<String> {
    let (_, operands) = line.trim_start().split_once(char::is_whitespace)?;
    let (descriptor, rest) = operands.trim().split_once(", ")?;
    let constant: u64 = rest.rsplit_once(", ")?.1.strip_suffix(';')?.parse().ok()?;
    let products = ptx
        .lines()
        .filter(|line| line.trim_start().starts_with("wgmma.mma_async"));
    let mut descriptors = products.filter_map(|line| line.rsplit_once("}, ")?.1.split_once(','));
    let is_descriptor = descriptors.any(|(register, _)| register == descriptor);
    is_descriptor.then(|| line.replace(&format!("{constant};"), &format!("{};", constant + 1)))
}

/// Names a process's share, as `1/2`; nobody but the test itself sets it.
const SHARE: &str = "LLAMADUO_MUTANTS";
/// What a process of the test prints before the number of its mutants of a kind, and before each survivor.
const COUNT: &str = "mutants: ";
const SURVIVOR: &str = "survivor: ";

impl Share {
    fn parse(text: &str) -> Option<Self> {
        let (first, n) = text.split_once('/')?;
        Some(Self {
            first: first.parse().ok()?,
            n: n.parse().ok()?,
        })
    }
}

impl Tried {
    fn to_lines(&self) -> Vec<String> {
        let counts = self.n_by_kind.iter().map(|n| format!("{COUNT}{n}"));
        let survivors = self.survivors.iter().map(|line| format!("{SURVIVOR}{line}"));
        counts.chain(survivors).collect()
    }

    fn add(&mut self, output: &str) {
        let counts = output.lines().filter_map(|line| line.strip_prefix(COUNT));
        for (sum, n) in self.n_by_kind.iter_mut().zip(counts) {
            *sum += n.parse::<usize>().unwrap();
        }
        let survivors = output.lines().filter_map(|line| line.strip_prefix(SURVIVOR));
        self.survivors.extend(survivors.map(str::to_owned));
    }
}

/// A process for each core, which runs this test again with its share.
fn try_in_processes(test: &str) -> Tried {
    let n = std::thread::available_parallelism().map_or(1, usize::from);
    let processes: Vec<_> = (0..n)
        .map(|first| {
            Command::new(std::env::current_exe().unwrap())
                .args([test, "--exact", "--nocapture"])
                .env(SHARE, format!("{first}/{n}"))
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut tried = Tried::default();
    // all have ended before one's failure is told
    let outputs: Vec<_> = processes
        .into_iter()
        .map(|process| process.wait_with_output().unwrap())
        .collect();
    for output in outputs {
        let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        assert!(output.status.success(), "{out}\n{err}");
        tried.add(&out);
    }
    tried
}

#[test]
fn every_wrong_kernel_is_noticed() {
    if driver::is_real() {
        println!("skipped: only the stand-in driver runs kernels that are wrong on purpose");
        return;
    }
    if let Ok(share) = std::env::var(SHARE) {
        let tried = try_mutants(Share::parse(&share).unwrap());
        // behind the line in which the harness names the test
        println!("\n{}", tried.to_lines().join("\n"));
        return;
    }
    let tried = try_in_processes("mutations::every_wrong_kernel_is_noticed");
    for (kind, n) in KINDS.iter().zip(tried.n_by_kind) {
        assert!(n >= kind.n_min, "only {n} {} were found", kind.name);
    }
    let n_mutants: usize = tried.n_by_kind.iter().sum();
    assert!(
        tried.survivors.is_empty(),
        "unnoticed, of {n_mutants}:\n{}",
        tried.survivors.join("\n")
    );
}
