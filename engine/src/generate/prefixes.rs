//! Whole pages of prompts, found again by the tokens they hold, so that prompts which begin alike share them.
//!
//! Invariant: a page is listed from when it is handed out for a prompt until its last holder lets go, and holds the
//! keys and values of just the tokens it is listed under, after those of the pages before it, by the adapter it is listed
//! under: another's keys and values differ.

use std::collections::HashMap;

/// The adapter, the page before, and the tokens.
type Key = (Option<usize>, Option<u32>, Box<[u32]>);

/// The pages that hold prompts.
#[derive(Debug)]
pub(crate) struct Prefixes {
    page_len: usize,
    pages: HashMap<Key, u32>,
    keys: HashMap<u32, Key>,
}

impl Prefixes {
    /// None yet, of `page_len` tokens each.
    pub(crate) fn new(page_len: usize) -> Self {
        Self {
            page_len,
            pages: HashMap::new(),
            keys: HashMap::new(),
        }
    }

    /// The pages that hold the beginning of `ids` by an adapter; only whole pages count.
    pub(crate) fn find(&self, adapter: Option<usize>, ids: &[u32]) -> Vec<u32> {
        let mut found: Vec<u32> = Vec::new();
        for tokens in ids.chunks_exact(self.page_len) {
            match self.pages.get(&(adapter, found.last().copied(), tokens.into())) {
                Some(page) => found.push(*page),
                None => break,
            }
        }
        found
    }

    /// Lists `pages`, which hold the whole pages of `ids` by an adapter from the first on.
    pub(crate) fn list(&mut self, adapter: Option<usize>, ids: &[u32], pages: &[u32]) {
        let mut before = None;
        for (tokens, &page) in ids.chunks_exact(self.page_len).zip(pages) {
            let key: Key = (adapter, before, tokens.into());
            if self.pages.insert(key.clone(), page).is_none() {
                self.keys.insert(page, key);
            }
            before = Some(page);
        }
    }

    /// Takes pages that nobody holds any more off the list.
    pub(crate) fn forget(&mut self, pages: &[u32]) {
        for page in pages {
            if let Some(key) = self.keys.remove(page) {
                self.pages.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_share_pages_as_far_as_they_begin_alike() {
        let mut prefixes = Prefixes::new(2);
        prefixes.list(None, &[1, 2, 3, 4, 5], &[7, 8]);
        assert_eq!(prefixes.find(None, &[1, 2, 3, 4, 9, 9]), [7, 8]);
        assert_eq!(prefixes.find(None, &[1, 2, 9, 9]), [7]);
        // By an adapter they are others, and so are the same tokens elsewhere.
        assert!(prefixes.find(Some(0), &[1, 2]).is_empty());
        assert!(prefixes.find(None, &[3, 4]).is_empty());
        prefixes.list(None, &[1, 2, 9, 9], &[7, 3]);
        prefixes.forget(&[8]);
        assert_eq!(prefixes.find(None, &[1, 2, 3, 4]), [7]);
        assert_eq!(prefixes.find(None, &[1, 2, 9, 9]), [7, 3]);
        prefixes.forget(&[3, 7]);
        assert!(prefixes.find(None, &[1, 2]).is_empty());
    }
}
