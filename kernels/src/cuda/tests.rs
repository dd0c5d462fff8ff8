use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Architecture, Cuda, DeviceError, Kernel, Source};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda")
}

/// The value of `NAME = ...` in the script, one string or a list of them.
fn setting(script: &str, name: &str) -> Vec<String> {
    let line = script
        .lines()
        .find(|line| line.starts_with(&format!("{name} = ")))
        .unwrap();
    line.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The script's name for what it compiles for.
fn constant(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Baseline => "BASELINE",
        Architecture::Hopper => "HOPPER",
    }
}

#[test]
fn committed_ptx_was_made_from_these_sources() {
    let script = fs::read_to_string(folder().join("compile.py")).unwrap();
    let flags_and_packages = [setting(&script, "FLAGS"), setting(&script, "PACKAGES")].concat();
    let mut headers: Vec<PathBuf> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cuh"))
        .collect();
    headers.sort();
    for source in Source::ALL {
        let made_for = setting(&script, constant(source.architecture()));
        let made_by = [made_for, flags_and_packages.clone()].concat();
        let text = fs::read(folder().join(format!("{}.cu", source.name()))).unwrap();
        let mut parts: Vec<Vec<u8>> = headers.iter().map(|header| fs::read(header).unwrap()).collect();
        parts.extend([text, made_by.join(" ").into_bytes()]);
        let parts = parts.join(&0);
        let digest: String = Sha256::digest(parts)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let expected = format!("// made from {digest}");
        let first = source.ptx().lines().next().unwrap();
        assert_eq!(
            first,
            expected,
            "{}.ptx is stale: run kernels/cuda/compile.py",
            source.name()
        );
    }
}

#[test]
fn every_source_and_kernel_is_listed() {
    let sources: BTreeSet<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let listed: BTreeSet<String> = Source::ALL
        .iter()
        .map(|source| source.name().to_owned())
        .collect();
    assert_eq!(listed, sources);
    for source in Source::ALL {
        let entries: BTreeSet<&str> = source
            .ptx()
            .lines()
            .filter_map(|line| line.strip_prefix(".visible .entry ")?.strip_suffix('('))
            .collect();
        let listed: BTreeSet<&str> = Kernel::ALL
            .iter()
            .filter(|kernel| kernel.source() == *source)
            .map(|kernel| kernel.name())
            .collect();
        assert_eq!(listed, entries, "{}", source.name());
    }
}

#[test]
fn the_ptx_is_of_the_version_and_target_that_are_promised() {
    for source in Source::ALL {
        let target = match source.architecture() {
            Architecture::Baseline => "sm_80",
            Architecture::Hopper => "sm_90a",
        };
        let head = format!("\n.version 8.4\n.target {target}\n");
        assert!(source.ptx().contains(&head), "{}", source.name());
    }
}

#[test]
fn hoppers_own_kernels_run_on_hopper_alone() {
    let of = |capability| {
        let runs = |architecture: &&Architecture| architecture.runs_on(capability);
        Architecture::ALL.iter().filter(runs).copied().collect::<Vec<_>>()
    };
    assert_eq!(of((7, 5)), []);
    for capability in [(8, 0), (8, 6), (8, 9), (10, 0), (12, 0)] {
        assert_eq!(of(capability), [Architecture::Baseline], "{capability:?}");
    }
    assert_eq!(of((9, 0)), [Architecture::Baseline, Architecture::Hopper]);
}

#[test]
fn a_machine_without_a_driver_gets_a_sentence() {
    match Cuda::new(0) {
        Err(error @ DeviceError::NoDriver) => {
            let said = error.to_string();
            assert!(
                said.contains("no NVIDIA driver") && said.contains("use the CPU"),
                "{said}"
            );
            assert!(!error.is_retryable());
        }
        other => println!("skipped: this machine has a driver ({other:?})"),
    }
}
