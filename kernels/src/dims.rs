//! The letters that name a tensor's dimensions in every doc comment of this workspace.
//!
//! | letter | meaning |
//! |---|---|
//! | `B` | sequences in a batch |
//! | `T` | tokens of one sequence |
//! | `M` | rows of a matrix product: all tokens of a step, whatever sequences they belong to |
//! | `C` | hidden size |
//! | `H` | query heads |
//! | `KV` | key/value heads |
//! | `D` | head dimension |
//! | `F` | feed-forward size |
//! | `V` | vocabulary |
//! | `R` | LoRA rank |
//! | `N`, `K` | output and input features of a weight `[N, K]` |
//!
//! All matrices are row-major and dense. A step's tokens are stored flat, `[M, C]`: sequences follow one
//! another without padding, and what separates them is a [`Documents`] or a list of [`SequenceSpan`]s.

/// Heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadDims {
    /// Query heads, `H`.
    pub n_heads: usize,
    /// Key and value heads, `KV`; divides `H`.
    pub n_kv_heads: usize,
    /// Head dimension, `D`.
    pub head_dim: usize,
}

/// Where the documents of a packed step begin: `starts[i]..starts[i + 1]` are the rows of document `i`.
///
/// Attention never crosses a document and positions restart at 0 in each, so that packing equals one row at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Documents {
    starts: Vec<usize>,
}

impl Documents {
    /// Documents of the given lengths, one after another. Empty documents are dropped.
    pub fn of_lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut starts = vec![0];
        let mut end = 0;
        for length in lengths.into_iter().filter(|&length| length > 0) {
            end += length;
            starts.push(end);
        }
        Self { starts }
    }

    /// All rows together, `M`.
    pub fn n_tokens(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there is no row at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The row ranges, in order.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = std::ops::Range<usize>> + '_ {
        self.starts.windows(2).map(|pair| pair[0]..pair[1])
    }

    /// Position of each row within its own document, `[M]`.
    pub fn positions(&self) -> Vec<u32> {
        self.ranges().flat_map(|rows| 0..rows.len() as u32).collect()
    }
}

/// One sequence's part in a generation step over the paged KV cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceSpan {
    /// First row of the step that belongs to this sequence.
    pub first_row: usize,
    /// Rows of the step that belong to it: its whole prompt at prefill, 1 when decoding.
    pub n_rows: usize,
    /// Tokens in the cache once this step's rows are written; the last row sees all of them.
    pub n_context: usize,
    /// Its cache pages in order: token `t` lives in page `pages[t / page_len]` at slot `t % page_len`.
    pub pages: Vec<u32>,
}
