//! An artifact store in a directory, safe to use from many threads and processes at once.
//!
//! ```text
//! ROOT/sha256/ab/abcd…      an artifact, read-only, named by all 64 digits
//! ROOT/incoming/            being written; a rename makes it an artifact
//! ROOT/quarantine/abcd…     bytes found not to hash to their name
//! ```
//!
//! Invariant: a name appears under `sha256/` only by renaming a file whose bytes are all on disk, and the rename
//! itself is on disk before `put` returns.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use crate::{Digest, Error};

/// Bytes moved at a time when streaming: large enough that hashing, not calls, takes the time.
const CHUNK_BYTES: usize = 1 << 18;

/// After this long a file in `incoming/` belongs to a writer that died.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// A store in a directory. A clone is the same store.
#[derive(Debug, Clone)]
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// Opens the store at `root`, making the directory if there is none.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let directory = Self { root: root.into() };
        for path in [
            directory.root.join("sha256"),
            directory.incoming(),
            directory.quarantine(),
        ] {
            fs::create_dir_all(&path).map_err(|source| Error::io("create", &path, source))?;
        }
        directory.remove_abandoned();
        Ok(directory)
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Stores `bytes`. When it returns they are on disk; storing the same bytes again changes nothing.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        if !self.holds_intact(&digest)? {
            let mut file = self.begin()?;
            file.write_all(bytes)
                .map_err(|source| Error::io("write", file.path(), source))?;
            self.commit(file, &digest)?;
        }
        self.sync_name(&digest)?;
        Ok(digest)
    }

    /// Stores all that `reader` gives, without holding it in memory. Returns its digest and length.
    pub fn put_reader(&self, mut reader: impl Read) -> Result<(Digest, u64), Error> {
        let mut file = self.begin()?;
        let mut hash = Sha256::new();
        let mut length = 0;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let filled = match reader.read(&mut chunk) {
                Ok(0) => break,
                Ok(filled) => filled,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(Error::Source { source }),
            };
            // A reader that claims more than the buffer holds is broken; its claim is cut to what can be true.
            let bytes = &chunk[..filled.min(CHUNK_BYTES)];
            hash.update(bytes);
            file.write_all(bytes)
                .map_err(|source| Error::io("write", file.path(), source))?;
            length += bytes.len() as u64;
        }
        let digest = Digest::finish(hash);
        if !self.holds_intact(&digest)? {
            self.commit(file, &digest)?;
        }
        self.sync_name(&digest)?;
        Ok((digest, length))
    }

    /// The bytes of an artifact, verified.
    pub fn get(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let path = self.path_of(digest);
        let bytes = fs::read(&path).map_err(|source| self.read_error(digest, &path, source))?;
        let actual = Digest::of(&bytes);
        if actual == *digest {
            Ok(bytes)
        } else {
            Err(self.quarantine_damaged(digest, actual))
        }
    }

    /// An artifact as an open file at its start, after all of it was read once and verified.
    pub fn open_verified(&self, digest: &Digest) -> Result<File, Error> {
        let path = self.path_of(digest);
        let read_error = |source| self.read_error(digest, &path, source);
        let mut file = File::open(&path).map_err(read_error)?;
        let actual = hash_reader(&mut file).map_err(read_error)?;
        if actual != *digest {
            return Err(self.quarantine_damaged(digest, actual));
        }
        file.rewind().map_err(read_error)?;
        Ok(file)
    }

    /// Removes an artifact that nothing names any more; whether it was there. Whoever stores the same bytes at the same
    /// moment may find them gone, so this is only for bytes that are made once, such as checkpoints.
    pub fn remove(&self, digest: &Digest) -> Result<bool, Error> {
        let path = self.path_of(digest);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(Error::io("remove", &path, source)),
        }
    }

    /// Whether an artifact is there. Its bytes are verified when they are read.
    pub fn contains(&self, digest: &Digest) -> Result<bool, Error> {
        let path = self.path_of(digest);
        path.try_exists()
            .map_err(|source| Error::io("look for", &path, source))
    }

    /// The digests of all artifacts, sorted.
    pub fn list(&self) -> Result<Vec<Digest>, Error> {
        let mut digests = Vec::new();
        let root = self.root.join("sha256");
        for shard in entries(&root)? {
            if !shard.is_dir() {
                continue;
            }
            for path in entries(&shard)? {
                let name = path.file_name().and_then(|name| name.to_str());
                // A name that is no digest was not put there by a store.
                digests.extend(name.and_then(|name| name.parse::<Digest>().ok()));
            }
        }
        digests.sort_unstable();
        Ok(digests)
    }

    fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    fn shard_of(&self, digest: &Digest) -> PathBuf {
        self.root
            .join("sha256")
            .join(format!("{:02x}", digest.as_bytes()[0]))
    }

    fn path_of(&self, digest: &Digest) -> PathBuf {
        self.shard_of(digest).join(digest.to_string())
    }

    fn begin(&self) -> Result<NamedTempFile, Error> {
        let incoming = self.incoming();
        NamedTempFile::new_in(&incoming).map_err(|source| Error::io("create a file in", &incoming, source))
    }

    /// Makes a written file the artifact `digest`.
    fn commit(&self, file: NamedTempFile, digest: &Digest) -> Result<(), Error> {
        let path = file.path().to_owned();
        let write_error = |source| Error::io("write", &path, source);
        let mut permissions = file.as_file().metadata().map_err(write_error)?.permissions();
        permissions.set_readonly(true);
        file.as_file().set_permissions(permissions).map_err(write_error)?;
        file.as_file().sync_all().map_err(write_error)?;
        let shard = self.shard_of(digest);
        fs::create_dir_all(&shard).map_err(|source| Error::io("create", &shard, source))?;
        let target = self.path_of(digest);
        file.persist(&target)
            .map_err(|error| Error::io("rename a file to", &target, error.error))?;
        Ok(())
    }

    /// Puts the artifact's name on disk. Also done when the artifact was there already: another writer may have
    /// renamed it and not come so far yet.
    fn sync_name(&self, digest: &Digest) -> Result<(), Error> {
        let shard = self.shard_of(digest);
        for path in [shard.as_path(), &self.root.join("sha256")] {
            sync_directory(path).map_err(|source| Error::io("sync", path, source))?;
        }
        Ok(())
    }

    /// Whether the artifact is there and undamaged. A damaged one is moved aside, so that storing it again heals it.
    fn holds_intact(&self, digest: &Digest) -> Result<bool, Error> {
        match self.open_verified(digest) {
            Ok(_) => Ok(true),
            Err(Error::Missing { .. } | Error::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn read_error(&self, digest: &Digest, path: &Path, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::NotFound => Error::Missing { digest: *digest },
            _ => Error::io("read", path, source),
        }
    }

    fn quarantine_damaged(&self, digest: &Digest, actual: Digest) -> Error {
        let path = self.path_of(digest);
        let moved_to = self.quarantine().join(digest.to_string());
        match fs::rename(&path, &moved_to) {
            Ok(()) => Error::Damaged {
                digest: *digest,
                actual,
                moved_to,
            },
            // Another reader found it first and moved it.
            Err(source) if source.kind() == io::ErrorKind::NotFound => Error::Damaged {
                digest: *digest,
                actual,
                moved_to,
            },
            Err(source) => Error::io("move aside the damaged", &path, source),
        }
    }

    /// Removes what writers that died left in `incoming/`. Failing to is no reason to refuse work: the next open
    /// tries again.
    fn remove_abandoned(&self) {
        for path in entries(&self.incoming()).unwrap_or_default() {
            let modified = fs::metadata(&path).and_then(|metadata| metadata.modified());
            let age = modified.ok().and_then(|modified| modified.elapsed().ok());
            if age.is_some_and(|age| age > ABANDONED_AFTER) {
                let _ = fs::remove_file(&path);
            }
        }
    }
}

fn hash_reader(reader: &mut impl Read) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => return Ok(Digest::finish(hash)),
            Ok(filled) => hash.update(&chunk[..filled.min(CHUNK_BYTES)]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn entries(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let list_error = |source| Error::io("list", path, source);
    fs::read_dir(path)
        .map_err(list_error)?
        .map(|entry| Ok(entry.map_err(list_error)?.path()))
        .collect()
}

/// A rename is durable only when the directory that holds the name is.
#[cfg(unix)]
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Directories cannot be opened for syncing here; the file system orders renames itself.
#[cfg(not(unix))]
fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests;
