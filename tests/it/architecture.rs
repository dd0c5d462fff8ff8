//! House rules that a compiler cannot see: which crate may build on which, and how large a file may grow.
//!
//! Invariant: dependencies flow one way; the table below is the whole list of allowed edges.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Room → the rooms it may use. `cli` and `tests` see all.
const EDGES: &[(&str, &[&str])] = &[
    ("artifacts", &[]),
    ("kernels", &[]),
    ("kernels/ptx", &[]),
    ("kernels/stand_in_driver", &["ptx"]),
    ("prompts", &[]),
    ("data", &[]),
    ("proto", &["artifacts"]),
    ("engine", &["kernels"]),
    ("worker", &["proto", "engine", "data", "artifacts", "prompts"]),
    ("coordinator", &["proto", "data", "artifacts"]),
];

/// Crates that no program is made of, and who may test with them.
const TEST_ONLY: &[(&str, &[&str])] = &[
    ("ptx", &["kernels"]),
    ("stand-in-driver", &["kernels", "engine", "worker", "tests"]),
];

/// A file that grows past this holds more than one idea.
const FILE_LINES_MAX: usize = 800;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn dependencies(room: &str, section: &str) -> BTreeSet<String> {
    let path = workspace().join(room).join("Cargo.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let manifest: toml::Table = text
        .parse()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let Some(toml::Value::Table(table)) = manifest.get(section) else {
        return BTreeSet::new();
    };
    table.keys().cloned().collect()
}

fn may_test_with(room: &str, crate_name: &str) -> bool {
    TEST_ONLY
        .iter()
        .any(|(name, rooms)| crate_name == format!("llamaduo-{name}") && rooms.contains(&room))
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let rooms = EDGES.iter().map(|(room, _)| *room).chain(["cli", "tests"]);
    for room in rooms {
        rust_files(&workspace().join(room), &mut found);
    }
    found
}

#[test]
fn rooms_use_only_the_rooms_they_may() {
    for (room, allowed) in EDGES {
        let allowed: BTreeSet<String> = allowed.iter().map(|name| format!("llamaduo-{name}")).collect();
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let used: BTreeSet<String> = dependencies(room, section)
                .into_iter()
                .filter(|name| name.starts_with("llamaduo-"))
                .filter(|name| section != "dev-dependencies" || !may_test_with(room, name))
                .collect();
            let extra: Vec<_> = used.difference(&allowed).collect();
            assert!(
                extra.is_empty(),
                "{room} must not depend on {extra:?} ({section})"
            );
        }
    }
}

#[test]
fn the_program_holds_no_stand_in() {
    for room in ["cli", "worker", "engine", "kernels"] {
        let used = dependencies(room, "dependencies");
        for (name, _) in TEST_ONLY {
            assert!(
                !used.contains(&format!("llamaduo-{name}")),
                "{name} is for tests, yet {room} is built on it"
            );
        }
    }
}

#[test]
fn rooms_that_must_not_wait_cannot() {
    let banned = ["tokio", "tonic", "reqwest", "axum", "prost"];
    for room in ["kernels", "engine", "data", "artifacts", "prompts"] {
        let used = dependencies(room, "dependencies");
        let found: Vec<_> = banned.iter().filter(|name| used.contains(**name)).collect();
        assert!(
            found.is_empty(),
            "{room} is synchronous and knows no network, yet depends on {found:?}"
        );
    }
}

#[test]
fn the_coordinator_calls_no_service_llm() {
    let used = dependencies("coordinator", "dependencies");
    assert!(
        !used.contains("reqwest"),
        "the coordinator must not depend on an HTTP client"
    );
}

#[test]
fn the_pure_machine_never_awaits_or_reads_a_clock() {
    let mut files = Vec::new();
    rust_files(&workspace().join("coordinator/src/machine"), &mut files);
    assert!(!files.is_empty(), "coordinator/src/machine holds the pure core");
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        for banned in ["async ", ".await", "Instant::now", "SystemTime::now", "tokio::"] {
            assert!(
                !text.contains(banned),
                "{} is pure, yet holds `{banned}`",
                path.display()
            );
        }
    }
}

#[test]
fn unsafe_code_stays_in_kernels() {
    for path in sources() {
        let relative = path
            .strip_prefix(workspace())
            .unwrap()
            .to_string_lossy()
            .into_owned();
        if relative.starts_with("kernels") || relative == "tests/it/architecture.rs" {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            !text.contains("unsafe "),
            "{relative}: unsafe code belongs in kernels"
        );
    }
}

#[test]
fn files_hold_one_idea() {
    let mut long = BTreeMap::new();
    for path in sources() {
        let n_lines = fs::read_to_string(&path).unwrap().lines().count();
        if n_lines > FILE_LINES_MAX {
            long.insert(path, n_lines);
        }
    }
    assert!(
        long.is_empty(),
        "split these files, they are over {FILE_LINES_MAX} lines: {long:#?}"
    );
}

#[test]
fn every_file_says_what_it_is() {
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        let in_room: PathBuf = path
            .strip_prefix(workspace())
            .unwrap()
            .components()
            .skip(1)
            .collect();
        let is_test_body =
            in_room.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs");
        // A README may be included before it.
        let opening = text.lines().find(|line| !line.starts_with("#!["));
        assert!(
            is_test_body || opening.is_some_and(|line| line.starts_with("//!")),
            "{} must open with `//!`: what it is and its invariant",
            path.display()
        );
    }
}
