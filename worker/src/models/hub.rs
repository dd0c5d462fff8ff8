//! Fetches a model from the hub over HTTPS into the product's own cache.
//!
//! ```text
//! CACHE/hub/models--org--name/COMMIT/           a whole model
//! CACHE/hub/models--org--name/COMMIT.partial/   being fetched; goes on where it stopped
//! ```
//!
//! Invariant: a directory loses its `.partial` only when every file of the model is in it, checked.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Client, Url};
use serde::Deserialize;
use tempfile::NamedTempFile;

use super::download::{self, RemoteFile};
use super::reference::{HubModel, is_name};
use super::{Error, Miss, Places, Waiting, hub_cache, lock};
use crate::http::{self, Redirects};

/// A hub that does not list a model's files within this time is given up.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest listing: models have some dozens of files.
const LIST_BYTES_MAX: usize = 8 << 20;

/// Files beside the weights that the engine reads.
const SIDE_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// What the hub says of a revision.
#[derive(Debug, Deserialize)]
struct Listing {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

/// The model's files, fetched if they are not in the product's cache.
pub(super) async fn fetch(model: &HubModel, places: &Places, waiting: Waiting<'_>) -> Result<PathBuf, Miss> {
    let root = places.cache.join("hub").join(model.directory_name());
    if let Some(path) = fetched_before(&root, model) {
        return Ok(path);
    }
    if places.offline {
        return Err(Miss::Away("HF_HUB_OFFLINE is set".to_owned()));
    }
    let endpoint = places.hub_endpoint.trim_end_matches('/');
    let url = http::parse_url(endpoint).map_err(|error| Miss::Absent(error.to_string()))?;
    let client = http::client(&url, Redirects::Followed).map_err(|error| Miss::Absent(error.to_string()))?;
    let hub = Hub {
        endpoint,
        client,
        places,
    };
    let listing = hub.list(model).await?;
    if !is_name(&listing.sha) {
        return Err(Miss::Absent("it names a commit that is none".to_owned()));
    }
    let wanted = wanted(model, &listing)?;
    let whole = root.join(&listing.sha);
    let _lock = lock::acquire(&root.with_extension("lock"), waiting).await?;
    let partial = root.join(format!("{}.partial", listing.sha));
    let directory = if whole.is_dir() { &whole } else { &partial };
    fs::create_dir_all(directory).map_err(Error::cache("create", directory))?;
    for sibling in wanted {
        let target = directory.join(&sibling.rfilename);
        if target.is_file() {
            continue;
        }
        let address = hub.url(&format!(
            "{}/resolve/{}/{}",
            model.id, listing.sha, sibling.rfilename
        ))?;
        let lfs = sibling.lfs.as_ref();
        let file = RemoteFile {
            url: address,
            token: places.hub_token.as_ref(),
            size: lfs.and_then(|lfs| lfs.size).or(sibling.size),
            sha256: lfs.and_then(|lfs| lfs.sha256.as_deref()),
        };
        download::fetch(&hub.client, &file, &target, waiting).await?;
    }
    if model.file.is_none() && directory == &partial {
        hub_cache::check(&partial).map_err(Miss::Absent)?;
        fs::rename(&partial, &whole).map_err(Error::cache("rename a directory to", &whole))?;
        remember(&root, model, &listing.sha)?;
        return Ok(whole);
    }
    remember(&root, model, &listing.sha)?;
    Ok(model
        .file
        .as_ref()
        .map_or(whole.clone(), |file| directory.join(file)))
}

struct Hub<'a> {
    endpoint: &'a str,
    client: Client,
    places: &'a Places,
}

impl Hub<'_> {
    fn url(&self, path: &str) -> Result<Url, Miss> {
        http::parse_url(&format!("{}/{path}", self.endpoint)).map_err(|error| Miss::Absent(error.to_string()))
    }

    async fn list(&self, model: &HubModel) -> Result<Listing, Miss> {
        let revision = model.revision.replace('/', "%2F");
        let url = self.url(&format!("api/models/{}/revision/{revision}?blobs=true", model.id))?;
        let request = download::request(&self.client, url, self.places.hub_token.as_ref());
        let listed = async {
            let mut response = request.send().await.map_err(download::away)?;
            download::check_status(response.status())?;
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(download::away)? {
                if body.len() + chunk.len() > LIST_BYTES_MAX {
                    return Err(Miss::Absent("its list of files is too long".to_owned()));
                }
                body.extend_from_slice(&chunk);
            }
            serde_json::from_slice(&body)
                .map_err(|error| Miss::Absent(format!("its list of files cannot be read: {error}")))
        };
        match tokio::time::timeout(LIST_TIMEOUT, listed).await {
            Ok(listing) => listing,
            Err(_) => Err(Miss::Away(format!(
                "it did not answer within {} s",
                LIST_TIMEOUT.as_secs()
            ))),
        }
    }
}

/// The files to fetch: one named file, or the side files with the weights.
fn wanted<'a>(model: &HubModel, listing: &'a Listing) -> Result<Vec<&'a Sibling>, Miss> {
    let siblings = || {
        listing
            .siblings
            .iter()
            .filter(|sibling| is_name(&sibling.rfilename))
    };
    let with = |extension: &str| {
        siblings()
            .filter(|sibling| sibling.rfilename.ends_with(extension))
            .collect::<Vec<_>>()
    };
    if let Some(file) = &model.file {
        let found = siblings().find(|sibling| sibling.rfilename == *file);
        return found
            .map(|sibling| vec![sibling])
            .ok_or_else(|| Miss::Absent(format!("it has no {file}")));
    }
    let side = siblings().filter(|sibling| SIDE_FILES.contains(&sibling.rfilename.as_str()));
    let tensors: Vec<&Sibling> = siblings()
        .filter(|sibling| is_weights(&sibling.rfilename))
        .collect();
    if !tensors.is_empty() {
        return Ok(side.chain(tensors).collect());
    }
    match with(".gguf").as_slice() {
        [only] => Ok(vec![only]),
        [] => Err(Miss::Absent(
            "it has neither safetensors nor a .gguf file".to_owned(),
        )),
        several => Err(Miss::Absent(format!(
            "it has {} .gguf files; name one, as in {}/FILE.gguf",
            several.len(),
            model.id
        ))),
    }
}

/// `model.safetensors`, its shards and their index; not the consolidated copies that some models carry as well.
fn is_weights(name: &str) -> bool {
    name.starts_with("model") && (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json"))
}

/// What an earlier fetch of this revision left, if it is whole. A branch may have moved on since; a run must not.
fn fetched_before(root: &Path, model: &HubModel) -> Option<PathBuf> {
    let commit = fs::read_to_string(root.join("refs").join(reference_name(model))).ok()?;
    // Of an empty file the root of the cache itself would be taken for the model.
    let commit = Some(commit.trim()).filter(|commit| is_name(commit))?;
    let whole = root.join(commit);
    if let Some(file) = &model.file {
        let partial = root.join(format!("{commit}.partial"));
        return [whole, partial]
            .into_iter()
            .map(|directory| directory.join(file))
            .find(|path| path.is_file());
    }
    whole.is_dir().then_some(whole)
}

fn remember(root: &Path, model: &HubModel, commit: &str) -> Result<(), Error> {
    let directory = root.join("refs");
    fs::create_dir_all(&directory).map_err(Error::cache("create", &directory))?;
    let path = directory.join(reference_name(model));
    // Written aside and renamed: a file cut short would name nothing, or another commit.
    let mut file = NamedTempFile::new_in(&directory).map_err(Error::cache("write into", &directory))?;
    file.write_all(commit.as_bytes())
        .map_err(Error::cache("write", &path))?;
    file.as_file().sync_all().map_err(Error::cache("write", &path))?;
    file.persist(&path)
        .map_err(|error| Error::cache("write", &path)(error.error))?;
    Ok(())
}

/// A revision as a file name: `refs/pr/1` has slashes.
fn reference_name(model: &HubModel) -> String {
    model.revision.replace('/', "--")
}
