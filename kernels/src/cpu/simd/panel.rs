//! The right operand of a tile as it lies in memory: 32 columns in two halves of 16, each half row after row.
//!
//! Invariant: both halves have the same rows. A half lies by itself since AVX2's tile goes over one after the other:
//! between the rows of the other it would fill but every second set of the first cache.

/// Columns of a half: one AVX-512 register, two of AVX2.
pub(crate) const HALF_COLUMNS: usize = 16;

/// One row of a half.
pub(crate) type HalfRow = [f32; HALF_COLUMNS];

/// A packed operand `[K, 32]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel<'a> {
    /// Columns 0 to 15.
    pub low: &'a [HalfRow],
    /// Columns 16 to 31.
    pub high: &'a [HalfRow],
}

/// A panel that is being packed.
#[derive(Debug)]
pub(crate) struct PanelMut<'a> {
    /// Columns 0 to 15.
    pub low: &'a mut [HalfRow],
    /// Columns 16 to 31.
    pub high: &'a mut [HalfRow],
}

impl<'a> Panel<'a> {
    /// Rows `first..first + len` of a panel that lies `[2][K][16]`.
    pub(crate) fn rows_of(halves: &'a [HalfRow], first: usize, len: usize) -> Self {
        let (low, high) = halves.split_at(halves.len() / 2);
        Self {
            low: &low[first..first + len],
            high: &high[first..first + len],
        }
    }
}

impl<'a> PanelMut<'a> {
    /// Memory `[2][K][16]` as a panel.
    pub(crate) fn of(halves: &'a mut [HalfRow]) -> Self {
        let (low, high) = halves.split_at_mut(halves.len() / 2);
        Self { low, high }
    }

    /// Rows of the panel, K.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.low.len()
    }

    /// Its rows, in two halves each.
    #[inline(always)]
    pub(crate) fn rows(&mut self) -> impl Iterator<Item = [&mut HalfRow; 2]> {
        self.low
            .iter_mut()
            .zip(self.high.iter_mut())
            .map(|(low, high)| [low, high])
    }

    /// Runs of `len` rows, the last perhaps shorter.
    #[inline(always)]
    pub(crate) fn chunks(&mut self, len: usize) -> impl Iterator<Item = PanelMut<'_>> {
        self.low
            .chunks_mut(len)
            .zip(self.high.chunks_mut(len))
            .map(|(low, high)| PanelMut { low, high })
    }

    /// `panel[i][..] = row[..]`, 0 beyond the row's end; `row` has at most 32 elements.
    #[inline(always)]
    pub(crate) fn set_row(&mut self, i: usize, row: &[f32]) {
        let (low, high) = row.split_at(row.len().min(HALF_COLUMNS));
        set_half(&mut self.low[i], low);
        set_half(&mut self.high[i], high);
    }
}

#[inline(always)]
fn set_half(out: &mut HalfRow, values: &[f32]) {
    match values.first_chunk() {
        Some(full) => *out = *full,
        None => {
            out[values.len()..].fill(0.0);
            out[..values.len()].copy_from_slice(values);
        }
    }
}
