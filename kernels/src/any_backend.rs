//! A backend that is chosen when the program runs.
//!
//! Invariant: a value made by one device is never given to another: that is an error that names the operation.

mod device;
mod dispatch;
mod either;

use dispatch::{linears, make, on};
pub use either::Either;
use either::mixed;

use crate::backend::{
    AdamwSpec, AttentionSpec, Backend, Dropout, GateActivation, LinearForward, Lora, LoraByRow, LoraForward,
    LoraSlot, RmsNormSpec,
};
use crate::cpu::{Cpu, CpuChoices, CpuKvCache, CpuWeight};
use crate::cuda::{
    Cuda, CudaAct, CudaChoices, CudaF32, CudaKvCache, CudaPairs, CudaRecordings, CudaSequences, CudaU32,
    CudaWeight,
};
use crate::dims::{Documents, HeadDims, SequenceSpan};
use crate::error::{Error, Result};
use crate::nf4::DoubleQuant;
use crate::sampling::SampleRow;
use crate::weight::HostWeight;

/// The CPU or a CUDA device.
#[derive(Debug)]
pub enum AnyBackend {
    /// The CPU.
    Cpu(Cpu),
    /// A CUDA device.
    Cuda(Box<Cuda>),
}

type Act = Either<Vec<f32>, CudaAct>;
type F32 = Either<Vec<f32>, CudaF32>;
type U32 = Either<Vec<u32>, CudaU32>;
type Weight = Either<CpuWeight, CudaWeight>;
type KvCache = Either<CpuKvCache, CudaKvCache>;
type Sequences = Either<Vec<SequenceSpan>, CudaSequences>;
type LoraPairs = Either<Vec<Option<LoraSlot>>, CudaPairs>;
type Choices = Either<CpuChoices, CudaChoices>;

impl Backend for AnyBackend {
    type Act = Act;
    type F32 = F32;
    type U32 = U32;
    type Weight = Weight;
    type KvCache = KvCache;
    type Sequences = Sequences;
    type LoraPairs = LoraPairs;
    type Choices = Choices;
    type Recordings = CudaRecordings;

    fn step<R: Send>(&self, run: impl FnOnce() -> R + Send) -> R {
        match self {
            Self::Cpu(backend) => backend.step(run),
            Self::Cuda(backend) => backend.step(run),
        }
    }

    fn replay<E: From<Error>>(
        &self,
        recordings: &mut CudaRecordings,
        mut run: impl FnMut(&Self) -> Result<(), E>,
    ) -> Result<(), E> {
        match self {
            Self::Cpu(_) => run(self),
            Self::Cuda(backend) => {
                backend.replay_step(recordings, |backend| run(&Self::Cuda(Box::new(backend.share()))))
            }
        }
    }

    fn alloc_act(&self, len: usize) -> Result<Act> {
        make!(self.alloc_act(len))
    }

    fn alloc_f32(&self, len: usize) -> Result<F32> {
        make!(self.alloc_f32(len))
    }

    fn upload_f32(&self, values: &[f32]) -> Result<F32> {
        make!(self.upload_f32(values))
    }

    fn upload_u32(&self, values: &[u32]) -> Result<U32> {
        make!(self.upload_u32(values))
    }

    fn write_f32(&self, target: &mut F32, offset: usize, values: &[f32]) -> Result<()> {
        on!(self.write_f32(target; offset, values))
    }

    fn write_u32(&self, target: &mut U32, values: &[u32]) -> Result<()> {
        on!(self.write_u32(target; values))
    }

    fn zero_f32(&self, target: &mut F32) -> Result<()> {
        on!(self.zero_f32(target; ))
    }

    fn zero_act(&self, target: &mut Act, len: usize) -> Result<()> {
        on!(self.zero_act(target; len))
    }

    fn copy_act(&self, target: &mut Act, source: &Act, len: usize) -> Result<()> {
        on!(self.copy_act(target, source; len))
    }

    fn read_f32(&self, source: &F32, offset: usize, out: &mut [f32]) -> Result<()> {
        on!(self.read_f32(source; offset, out))
    }

    fn read_act(&self, source: &Act, offset: usize, out: &mut [f32]) -> Result<()> {
        on!(self.read_act(source; offset, out))
    }

    fn load_weight(&self, weight: HostWeight) -> Result<Weight> {
        make!(self.load_weight(weight))
    }

    fn load_weight_nf4(&self, weight: HostWeight, double_quant: DoubleQuant) -> Result<Weight> {
        make!(self.load_weight_nf4(weight, double_quant))
    }

    fn alloc_kv_cache(&self, heads: HeadDims, n_pages: usize, page_len: usize) -> Result<KvCache> {
        make!(self.alloc_kv_cache(heads, n_pages, page_len))
    }

    fn embed(&self, out: &mut Act, ids: &U32, table: &Weight, scale: f32, m: usize) -> Result<()> {
        on!(self.embed(out, ids, table; scale, m))
    }

    fn rms_norm(
        &self,
        out: &mut Act,
        rstd: &mut F32,
        x: &Act,
        weight: &F32,
        spec: RmsNormSpec,
        m: usize,
    ) -> Result<()> {
        on!(self.rms_norm(out, rstd, x, weight; spec, m))
    }

    fn add_rms_norm(
        &self,
        y: &mut Act,
        out: &mut Act,
        rstd: &mut F32,
        x: &Act,
        weight: &F32,
        spec: RmsNormSpec,
        m: usize,
    ) -> Result<()> {
        on!(self.add_rms_norm(y, out, rstd, x, weight; spec, m))
    }

    fn rms_norm_backward(
        &self,
        dx: &mut Act,
        dy: &Act,
        x: &Act,
        rstd: &F32,
        weight: &F32,
        spec: RmsNormSpec,
        m: usize,
    ) -> Result<()> {
        on!(self.rms_norm_backward(dx, dy, x, rstd, weight; spec, m))
    }

    fn rope(
        &self,
        x: &mut Act,
        positions: &U32,
        frequencies: &F32,
        n_heads: usize,
        head_dim: usize,
        m: usize,
    ) -> Result<()> {
        on!(self.rope(x, positions, frequencies; n_heads, head_dim, m))
    }

    fn rope_backward(
        &self,
        dx: &mut Act,
        positions: &U32,
        frequencies: &F32,
        n_heads: usize,
        head_dim: usize,
        m: usize,
    ) -> Result<()> {
        on!(self.rope_backward(dx, positions, frequencies; n_heads, head_dim, m))
    }

    fn rope_both(
        &self,
        q: &mut Act,
        k: &mut Act,
        positions: &U32,
        frequencies: &F32,
        heads: HeadDims,
        m: usize,
    ) -> Result<()> {
        on!(self.rope_both(q, k, positions, frequencies; heads, m))
    }

    fn rope_both_backward(
        &self,
        dq: &mut Act,
        dk: &mut Act,
        positions: &U32,
        frequencies: &F32,
        heads: HeadDims,
        m: usize,
    ) -> Result<()> {
        on!(self.rope_both_backward(dq, dk, positions, frequencies; heads, m))
    }

    fn upload_pairs(&self, pairs: &[Option<LoraSlot>]) -> Result<LoraPairs> {
        make!(self.upload_pairs(pairs))
    }

    fn linears(&self, x: &Act, linears: &mut [LinearForward<'_, Self>], m: usize) -> Result<()> {
        match self {
            Self::Cpu(backend) => linears!(backend, linears, x, linears, m, cpu, cpu_mut),
            Self::Cuda(backend) => linears!(&**backend, linears, x, linears, m, cuda, cuda_mut),
        }
    }

    fn linears_of_documents(&self, x: &Act, linears: &mut [LinearForward<'_, Self>], m: usize) -> Result<()> {
        match self {
            Self::Cpu(backend) => linears!(backend, linears_of_documents, x, linears, m, cpu, cpu_mut),
            Self::Cuda(backend) => {
                linears!(&**backend, linears_of_documents, x, linears, m, cuda, cuda_mut)
            }
        }
    }

    fn matmul_backward(&self, dx: &mut Act, dy: &Act, weight: &Weight, m: usize) -> Result<()> {
        on!(self.matmul_backward(dx, dy, weight; m))
    }

    fn logits(&self, logits: &mut F32, x: &Act, head: &Weight, m: usize) -> Result<()> {
        on!(self.logits(logits, x, head; m))
    }

    fn add_bias(&self, y: &mut Act, bias: &F32, n: usize, m: usize) -> Result<()> {
        on!(self.add_bias(y, bias; n, m))
    }

    fn lora_backward(
        &self,
        dx: Option<&mut Act>,
        grads: &mut F32,
        dy: &Act,
        x: &Act,
        h: &F32,
        params: &F32,
        slot: LoraSlot,
        dropout: Option<Dropout>,
        m: usize,
    ) -> Result<()> {
        const OP: &str = "lora_backward";
        match self {
            Self::Cpu(backend) => {
                let dx = dx.map(|dx| dx.cpu_mut(OP)).transpose()?;
                Backend::lora_backward(
                    backend,
                    dx,
                    grads.cpu_mut(OP)?,
                    dy.cpu(OP)?,
                    x.cpu(OP)?,
                    h.cpu(OP)?,
                    params.cpu(OP)?,
                    slot,
                    dropout,
                    m,
                )
            }
            Self::Cuda(backend) => {
                let dx = dx.map(|dx| dx.cuda_mut(OP)).transpose()?;
                Backend::lora_backward(
                    &**backend,
                    dx,
                    grads.cuda_mut(OP)?,
                    dy.cuda(OP)?,
                    x.cuda(OP)?,
                    h.cuda(OP)?,
                    params.cuda(OP)?,
                    slot,
                    dropout,
                    m,
                )
            }
        }
    }

    fn attention(
        &self,
        out: &mut Act,
        lse: &mut F32,
        q: &Act,
        k: &Act,
        v: &Act,
        documents: &Documents,
        spec: AttentionSpec,
    ) -> Result<()> {
        on!(self.attention(out, lse, q, k, v; documents, spec))
    }

    fn attention_backward(
        &self,
        dq: &mut Act,
        dk: &mut Act,
        dv: &mut Act,
        dout: &Act,
        out: &Act,
        lse: &F32,
        q: &Act,
        k: &Act,
        v: &Act,
        documents: &Documents,
        spec: AttentionSpec,
    ) -> Result<()> {
        on!(self.attention_backward(dq, dk, dv, dout, out, lse, q, k, v; documents, spec))
    }

    fn alloc_sequences(&self, n_pages: usize, page_len: usize, specs: &[AttentionSpec]) -> Result<Sequences> {
        make!(self.alloc_sequences(n_pages, page_len, specs))
    }

    fn write_sequences(&self, target: &mut Sequences, sequences: &[SequenceSpan]) -> Result<()> {
        on!(self.write_sequences(target; sequences))
    }

    fn write_kv(&self, cache: &mut KvCache, k: &Act, v: &Act, sequences: &Sequences) -> Result<()> {
        on!(self.write_kv(cache, k, v, sequences;))
    }

    fn attention_paged(
        &self,
        out: &mut Act,
        q: &Act,
        cache: &KvCache,
        sequences: &Sequences,
        spec: AttentionSpec,
    ) -> Result<()> {
        on!(self.attention_paged(out, q, cache, sequences; spec))
    }

    fn gated(
        &self,
        out: &mut Act,
        gate: &Act,
        up: &Act,
        activation: GateActivation,
        len: usize,
    ) -> Result<()> {
        on!(self.gated(out, gate, up; activation, len))
    }

    fn gated_backward(
        &self,
        gate: &mut Act,
        up: &mut Act,
        dout: &Act,
        activation: GateActivation,
        len: usize,
    ) -> Result<()> {
        on!(self.gated_backward(gate, up, dout; activation, len))
    }

    fn add(&self, y: &mut Act, x: &Act, len: usize) -> Result<()> {
        on!(self.add(y, x; len))
    }

    fn alloc_choices(&self, n_rows_max: usize) -> Result<Choices> {
        make!(self.alloc_choices(n_rows_max))
    }

    fn write_choices(&self, choices: &mut Choices, rows: &[SampleRow<'_>], n_vocab: usize) -> Result<()> {
        on!(self.write_choices(choices; rows, n_vocab))
    }

    fn choose(&self, choices: &mut Choices, logits: &mut F32) -> Result<()> {
        on!(self.choose(choices, logits;))
    }

    fn read_choices(&self, choices: &Choices, ids: &mut [u32]) -> Result<()> {
        on!(self.read_choices(choices; ids))
    }

    fn cross_entropy(
        &self,
        losses: &mut F32,
        dx: Option<&mut Act>,
        x: &Act,
        head: &Weight,
        labels: &U32,
        loss_scale: f32,
        m: usize,
    ) -> Result<()> {
        const OP: &str = "cross_entropy";
        match self {
            Self::Cpu(backend) => {
                let dx = dx.map(|dx| dx.cpu_mut(OP)).transpose()?;
                Backend::cross_entropy(
                    backend,
                    losses.cpu_mut(OP)?,
                    dx,
                    x.cpu(OP)?,
                    head.cpu(OP)?,
                    labels.cpu(OP)?,
                    loss_scale,
                    m,
                )
            }
            Self::Cuda(backend) => {
                let dx = dx.map(|dx| dx.cuda_mut(OP)).transpose()?;
                Backend::cross_entropy(
                    &**backend,
                    losses.cuda_mut(OP)?,
                    dx,
                    x.cuda(OP)?,
                    head.cuda(OP)?,
                    labels.cuda(OP)?,
                    loss_scale,
                    m,
                )
            }
        }
    }

    fn sum_squares(&self, values: &F32, len: usize) -> Result<f64> {
        on!(self.sum_squares(values; len))
    }

    fn adamw(
        &self,
        params: &mut F32,
        grads: &F32,
        first_moment: &mut F32,
        second_moment: &mut F32,
        spec: AdamwSpec,
        len: usize,
    ) -> Result<()> {
        on!(self.adamw(params, grads, first_moment, second_moment; spec, len))
    }
}
