//! One file over HTTPS: goes on where an earlier try stopped, and is checked as a whole.
//!
//! Invariant: the file gets its name only when its length and, where the server tells it, its sha256 are right.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, RANGE};
use reqwest::{Client, RequestBuilder, StatusCode, Url};

use super::pip::hash_of;
use super::{Error, Fetching, Miss, Waiting};
use crate::secret::Secret;

/// A server that sends nothing for this long is given up; what has come stays.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// A file on a server.
#[derive(Debug)]
pub(super) struct RemoteFile<'a> {
    pub(super) url: Url,
    pub(super) token: Option<&'a Secret>,
    pub(super) size: Option<u64>,
    pub(super) sha256: Option<&'a str>,
}

/// A GET, with the token where there is one.
pub(super) fn request(client: &Client, url: Url, token: Option<&Secret>) -> RequestBuilder {
    let request = client.get(url);
    match token.and_then(Secret::bearer) {
        Some(header) => request.header(AUTHORIZATION, header),
        None => request,
    }
}

/// What a broken connection says of a place.
pub(super) fn away(error: reqwest::Error) -> Miss {
    Miss::Away(crate::error::chain(&error.without_url()))
}

/// What a status says of a place.
pub(super) fn check_status(status: StatusCode) -> Result<(), Miss> {
    match status.as_u16() {
        200..=299 => Ok(()),
        401 | 403 => Err(Miss::Absent(format!(
            "HTTP {status}; the model may be gated, set HF_TOKEN to a token that may read it"
        ))),
        404 => Err(Miss::Absent("it has no such model or revision".to_owned())),
        408 | 429 | 500.. => Err(Miss::Away(format!("HTTP {status}"))),
        _ => Err(Miss::Absent(format!("HTTP {status}"))),
    }
}

/// Fetches `file` to `target`.
pub(super) async fn fetch(
    client: &Client,
    file: &RemoteFile<'_>,
    target: &Path,
    waiting: Waiting<'_>,
) -> Result<(), Miss> {
    let partial = with_suffix(target, ".part");
    let n_here = fs::metadata(&partial).map_or(0, |metadata| metadata.len());
    transfer(client, file, &partial, n_here, waiting).await?;
    if let Err(why) = check(&partial, file).await? {
        // What was resumed may not belong together; from the start it must.
        fs::remove_file(&partial).map_err(Error::cache("remove", &partial))?;
        if n_here == 0 {
            return Err(Miss::Away(why));
        }
        transfer(client, file, &partial, 0, waiting).await?;
        if let Err(why) = check(&partial, file).await? {
            fs::remove_file(&partial).map_err(Error::cache("remove", &partial))?;
            return Err(Miss::Away(why));
        }
    }
    fs::rename(&partial, target).map_err(Error::cache("rename a file to", target))?;
    Ok(())
}

async fn transfer(
    client: &Client,
    file: &RemoteFile<'_>,
    partial: &Path,
    n_here: u64,
    waiting: Waiting<'_>,
) -> Result<(), Miss> {
    if n_here > 0 && file.size == Some(n_here) {
        return Ok(());
    }
    let mut request = request(client, file.url.clone(), file.token);
    if n_here > 0 {
        request = request.header(RANGE, format!("bytes={n_here}-"));
    }
    let mut response = heard(request.send(), waiting).await?;
    let goes_on = response.status() == StatusCode::PARTIAL_CONTENT && n_here > 0;
    if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
        // Nothing follows what is here; whether it is right is checked next.
        return Ok(());
    }
    check_status(response.status())?;
    let mut options = File::options();
    options.create(true).write(true);
    let opened = if goes_on {
        options.append(true).open(partial)
    } else {
        options.truncate(true).open(partial)
    };
    let mut output = opened.map_err(Error::cache("write", partial))?;
    let mut n_bytes = if goes_on { n_here } else { 0 };
    let what = format!(
        "downloading {}",
        file.url.path().rsplit('/').next().unwrap_or_default()
    );
    while let Some(chunk) = heard(response.chunk(), waiting).await? {
        output.write_all(&chunk).map_err(Error::cache("write", partial))?;
        n_bytes += chunk.len() as u64;
        if file.size.is_some_and(|size| n_bytes > size) {
            return Err(Miss::Away("it sends more bytes than the file has".to_owned()));
        }
        (waiting.tell)(Fetching {
            what: what.clone(),
            n_bytes,
            n_bytes_total: file.size,
        });
    }
    output.sync_all().map_err(Error::cache("write", partial))?;
    Ok(())
}

/// Waits for a server, but not for ever, and not when nobody waits for the file.
async fn heard<T>(
    answer: impl Future<Output = Result<T, reqwest::Error>>,
    waiting: Waiting<'_>,
) -> Result<T, Miss> {
    tokio::select! {
        answer = tokio::time::timeout(SILENCE_MAX, answer) => match answer {
            Ok(answer) => answer.map_err(away),
            Err(_) => Err(Miss::Away(format!("it sent nothing for {} s", SILENCE_MAX.as_secs()))),
        },
        () = waiting.stopped.cancelled() => Err(Error::Stopped.into()),
    }
}

/// Whether the bytes are right. The inner error says what is not.
async fn check(partial: &Path, file: &RemoteFile<'_>) -> Result<Result<(), String>, Error> {
    let n_bytes = fs::metadata(partial)
        .map_err(Error::cache("read", partial))?
        .len();
    if let Some(size) = file.size.filter(|size| *size != n_bytes) {
        return Ok(Err(format!("it sent {n_bytes} bytes of {size}")));
    }
    let Some(expected) = file.sha256.map(str::to_owned) else {
        return Ok(Ok(()));
    };
    let path = partial.to_owned();
    let hashed = tokio::task::spawn_blocking(move || {
        File::open(&path)
            .and_then(|mut file| hash_of(&mut file))
            .map_err(Error::cache("read", &path))
    });
    let found = hashed.await.unwrap_or(Err(Error::Stopped))?;
    let right = found.eq_ignore_ascii_case(&expected);
    Ok(if right {
        Ok(())
    } else {
        Err(format!("the file's sha256 is {found}, expected {expected}"))
    })
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
