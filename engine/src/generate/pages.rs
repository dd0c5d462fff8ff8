//! Who holds which page of the key/value cache.
//!
//! Invariant: a page is free, or has as many references as there are holders; what is released last is handed out
//! first, so that few pages are ever touched.

/// The pages of a cache.
#[derive(Debug)]
pub(crate) struct Pages {
    free: Vec<u32>,
    references: Vec<u32>,
}

impl Pages {
    pub(crate) fn new(n_pages: usize) -> Self {
        Self {
            free: (0..n_pages as u32).rev().collect(),
            references: vec![0; n_pages],
        }
    }

    pub(crate) fn n_free(&self) -> usize {
        self.free.len()
    }

    /// `n` pages with one reference each, or `None` when there are fewer.
    pub(crate) fn allocate(&mut self, n: usize) -> Option<Vec<u32>> {
        let rest = self.free.len().checked_sub(n)?;
        let mut pages = self.free.split_off(rest);
        pages.reverse();
        for &page in &pages {
            self.references[page as usize] = 1;
        }
        Some(pages)
    }

    /// One more holder of each.
    pub(crate) fn retain(&mut self, pages: &[u32]) {
        for &page in pages {
            self.references[page as usize] += 1;
        }
    }

    /// One holder less of each; gives those that nobody holds any more and that are free now.
    pub(crate) fn release(&mut self, pages: &[u32]) -> &[u32] {
        let n_free = self.free.len();
        for &page in pages.iter().rev() {
            let references = &mut self.references[page as usize];
            *references = references.saturating_sub(1);
            if *references == 0 {
                self.free.push(page);
            }
        }
        &self.free[n_free..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_free_when_its_last_holder_lets_go() {
        let mut pages = Pages::new(3);
        let shared = pages.allocate(2).unwrap();
        assert!(pages.allocate(2).is_none());
        pages.retain(&shared);
        assert!(pages.release(&shared).is_empty());
        assert_eq!(pages.n_free(), 1);
        assert_eq!(pages.release(&shared), [1, 0]);
        assert_eq!(pages.n_free(), 3);
        assert_eq!(pages.allocate(3).unwrap(), [0, 1, 2]);
    }
}
