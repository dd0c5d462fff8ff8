//! Embedding: `out [M, C] = scale * table[ids]`. The kernel is `kernels/cuda/embed.cu`.
//!
//! Invariant: an id outside the table is an error, never another row.
#![expect(unsafe_code, reason = "launching a kernel")]

use cudarc::driver::CudaView;

use super::launch::{VECTOR, row_threads};
use super::{Cuda, CudaAct, CudaU32, CudaWeight, Kernel, check};
use crate::error::{Error, Result};

const OP: &str = "embed";

impl Cuda {
    /// See [`Backend::embed`](crate::Backend::embed). The table is in bf16: one in NF4 has no kernel.
    pub fn embed(
        &self,
        out: &mut CudaAct,
        ids: &CudaU32,
        table: &CudaWeight,
        scale: f32,
        m: usize,
    ) -> Result<()> {
        let CudaWeight::Bf16(table) = table else {
            return Err(Error::Setting {
                op: OP,
                what: "the table",
                expected: "in the file's own format, not in NF4, on CUDA",
            });
        };
        let (n_rows, width) = table.shape();
        let values = ids.first(OP, "ids", m)?;
        if let Some(index) = values.iter().position(|&id| id as usize >= n_rows) {
            return Err(Error::OutOfRange {
                op: OP,
                what: "id",
                index,
                value: values[index] as usize,
                limit: n_rows,
            });
        }
        check::holds(OP, "out", out, &[m, width])?;
        let rows = ids.on_device().as_view();
        self.gather(OP, out, &rows, table.values(), (m, width), scale)
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
