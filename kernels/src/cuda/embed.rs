//! Embedding: `out [M, C] = scale * table[ids]`. The kernel is `kernels/cuda/embed.cu`.
//!
//! Invariant: an id outside the table is an error, never another row.
#![expect(unsafe_code, reason = "launching a kernel")]

use cudarc::driver::CudaView;

use super::launch::{VECTOR, row_threads};
use super::{Cuda, CudaAct, Kernel, check};
use crate::error::{Error, Result};

const OP: &str = "embed";

impl Cuda {
    /// `out [M, C] = scale * table[ids]` with `table [V, C]`.
    ///
    /// The ids come from the host, where they are made: so they can be checked without waiting for the device.
    pub fn embed(
        &self,
        out: &mut CudaAct,
        ids: &[u32],
        table: &CudaAct,
        [n_rows, width]: [usize; 2],
        scale: f32,
    ) -> Result<()> {
        let m = ids.len();
        if let Some(index) = ids.iter().position(|&id| id as usize >= n_rows) {
            return Err(Error::OutOfRange {
                op: OP,
                what: "id",
                index,
                value: ids[index] as usize,
                limit: n_rows,
            });
        }
        check::holds(OP, "out", out, &[m, width])?;
        check::holds(OP, "table", table, &[n_rows, width])?;
        let ids = self.upload_u32(ids)?;
        self.gather(OP, out, &ids.as_view(), table, (m, width), scale)
    }

    /// `out [M, C] = scale * from[rows]`; the caller has checked the rows and the buffers.
    pub(super) fn gather(
        &self,
        op: &'static str,
        out: &mut CudaAct,
        rows: &CudaView<'_, u32>,
        from: &CudaAct,
        (m, width): (usize, usize),
        scale: f32,
    ) -> Result<()> {
        let shape = (check::blocks(op, "rows", m)?, row_threads(width, 256));
        let width_int = check::int(op, "width", width)?;
        let kernel = match width.is_multiple_of(VECTOR) {
            true => Kernel::Embed,
            false => Kernel::EmbedNarrow,
        };
        let launch = self.launch(op, kernel, shape);
        let launch = launch.with(out).with(rows).with(from);
        let launch = launch.with(&scale).with(&width_int);
        // SAFETY: `out` holds m rows, and each of `rows` is one of `from`.
        unsafe { launch.run() }
    }
}
