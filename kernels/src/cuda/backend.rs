//! CUDA's operations under the names of the contract.
//!
//! Invariant: one call each; what an operation does is in the file of its name, and there it has the same name, so that
//! `self.add(..)` is that one and not this.

use super::{
    Cuda, CudaAct, CudaChoices, CudaF32, CudaKvCache, CudaPairs, CudaRecordings, CudaSequences, CudaU32,
    CudaWeight, LossInputs,
};
use crate::backend::{
    AdamwSpec, AttentionSpec, Backend, Dropout, GateActivation, LinearForward, LoraSlot, RmsNormSpec,
};
use crate::dims::{Documents, HeadDims, SequenceSpan};
use crate::error::{Error, Result};
use crate::nf4::DoubleQuant;
use crate::sampling::SampleRow;
use crate::weight::HostWeight;

impl Backend for Cuda {
    type Act = CudaAct;
    type F32 = CudaF32;
    type U32 = CudaU32;
    type Weight = CudaWeight;
    type KvCache = CudaKvCache;
    type Sequences = CudaSequences;
    type LoraPairs = CudaPairs;
    type Choices = CudaChoices;
    type Recordings = CudaRecordings;

    fn replay<E: From<Error>>(
        &self,
        recordings: &mut CudaRecordings,
        run: impl FnMut(&Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.replay_step(recordings, run)
    }

    fn alloc_act(&self, len: usize) -> Result<CudaAct> {
        self.alloc_act(len)
    }

    fn alloc_f32(&self, len: usize) -> Result<CudaF32> {
        self.alloc_f32(len)
    }

    fn upload_f32(&self, values: &[f32]) -> Result<CudaF32> {
        self.upload_f32(values)
    }

    fn upload_u32(&self, values: &[u32]) -> Result<CudaU32> {
        self.upload_u32(values)
    }

    fn write_f32(&self, target: &mut CudaF32, offset: usize, values: &[f32]) -> Result<()> {
        self.write_f32(target, offset, values)
    }

    fn write_u32(&self, target: &mut CudaU32, values: &[u32]) -> Result<()> {
        self.write_u32(target, values)
    }

    fn zero_f32(&self, target: &mut CudaF32) -> Result<()> {
        self.zero_f32(target)
    }

    fn zero_act(&self, target: &mut CudaAct, len: usize) -> Result<()> {
        self.zero_act(target, len)
    }

    fn copy_act(&self, target: &mut CudaAct, source: &CudaAct, len: usize) -> Result<()> {
        self.copy_act(target, source, len)
    }

    fn read_f32(&self, source: &CudaF32, offset: usize, out: &mut [f32]) -> Result<()> {
        self.read_f32(source, offset, out)
    }

    fn read_act(&self, source: &CudaAct, offset: usize, out: &mut [f32]) -> Result<()> {
        self.read_act(source, offset, out)
    }

    fn load_weight(&self, weight: HostWeight) -> Result<CudaWeight> {
        self.load_weight(weight)
    }

    fn load_weight_nf4(&self, weight: HostWeight, double_quant: DoubleQuant) -> Result<CudaWeight> {
        self.load_weight_nf4(weight, double_quant)
    }

    fn alloc_kv_cache(&self, heads: HeadDims, n_pages: usize, page_len: usize) -> Result<CudaKvCache> {
        self.alloc_kv_cache(heads, n_pages, page_len)
    }

    fn embed(
        &self,
        out: &mut CudaAct,
        ids: &CudaU32,
        table: &CudaWeight,
        scale: f32,
        m: usize,
    ) -> Result<()> {
        self.embed(out, ids, table, scale, m)
    }

    fn rms_norm(
        &self,
        out: &mut CudaAct,
        rstd: &mut CudaF32,
        x: &CudaAct,
        weight: &CudaF32,
        spec: RmsNormSpec,
        m: usize,
    ) -> Result<()> {
        self.rms_norm(out, rstd, x, weight, spec, m)
    }

    fn add_rms_norm(
        &self,
        y: &mut CudaAct,
        out: &mut CudaAct,
        rstd: &mut CudaF32,
        x: &CudaAct,
        weight: &CudaF32,
        spec: RmsNormSpec,
        m: usize,
    ) -> Result<()> {
        self.add_rms_norm(y, out, rstd, x, weight, spec, m)
    }

    fn rms_norm_backward(
        &self,
        dx: &mut CudaAct,
        dy: &CudaAct,
        x: &CudaAct,
        rstd: &CudaF32,
        weight: &CudaF32,
        spec: RmsNormSpec,
        m: usize,
    ) -> Result<()> {
        self.rms_norm_backward(dx, dy, x, rstd, weight, spec, m)
    }

    fn rope(
        &self,
        x: &mut CudaAct,
        positions: &CudaU32,
        frequencies: &CudaF32,
        n_heads: usize,
        head_dim: usize,
        m: usize,
    ) -> Result<()> {
        self.rope(x, positions, frequencies, n_heads, head_dim, m)
    }

    fn rope_backward(
        &self,
        dx: &mut CudaAct,
        positions: &CudaU32,
        frequencies: &CudaF32,
        n_heads: usize,
        head_dim: usize,
        m: usize,
    ) -> Result<()> {
        self.rope_backward(dx, positions, frequencies, n_heads, head_dim, m)
    }

    fn rope_both(
        &self,
        q: &mut CudaAct,
        k: &mut CudaAct,
        positions: &CudaU32,
        frequencies: &CudaF32,
        heads: HeadDims,
        m: usize,
    ) -> Result<()> {
        self.rope_both(q, k, positions, frequencies, heads, m)
    }

    fn rope_both_backward(
        &self,
        dq: &mut CudaAct,
        dk: &mut CudaAct,
        positions: &CudaU32,
        frequencies: &CudaF32,
        heads: HeadDims,
        m: usize,
    ) -> Result<()> {
        self.rope_both_backward(dq, dk, positions, frequencies, heads, m)
    }

    fn upload_pairs(&self, pairs: &[Option<LoraSlot>]) -> Result<CudaPairs> {
        self.upload_pairs(pairs)
    }

    fn linears(&self, x: &CudaAct, linears: &mut [LinearForward<'_, Self>], m: usize) -> Result<()> {
        self.linears(x, linears, m)
    }

    fn linears_of_documents(
        &self,
        x: &CudaAct,
        linears: &mut [LinearForward<'_, Self>],
        m: usize,
    ) -> Result<()> {
        self.linears_of_documents(x, linears, m)
    }

    fn matmul_backward(&self, dx: &mut CudaAct, dy: &CudaAct, weight: &CudaWeight, m: usize) -> Result<()> {
        self.matmul_backward(dx, dy, weight, m)
    }

    fn logits(&self, logits: &mut CudaF32, x: &CudaAct, head: &CudaWeight, m: usize) -> Result<()> {
        self.logits(logits, x, head, m)
    }

    fn add_bias(&self, y: &mut CudaAct, bias: &CudaF32, n: usize, m: usize) -> Result<()> {
        self.add_bias(y, bias, n, m)
    }

    fn lora_backward(
        &self,
        dx: Option<&mut CudaAct>,
        grads: &mut CudaF32,
        dy: &CudaAct,
        x: &CudaAct,
        h: &CudaF32,
        params: &CudaF32,
        slot: LoraSlot,
        dropout: Option<Dropout>,
        m: usize,
    ) -> Result<()> {
        self.lora_backward(dx, grads, dy, x, h, params, slot, dropout, m)
    }

    fn attention(
        &self,
        out: &mut CudaAct,
        lse: &mut CudaF32,
        q: &CudaAct,
        k: &CudaAct,
        v: &CudaAct,
        documents: &Documents,
        spec: AttentionSpec,
    ) -> Result<()> {
        self.attention(out, lse, q, k, v, documents, spec)
    }

    fn attention_backward(
        &self,
        dq: &mut CudaAct,
        dk: &mut CudaAct,
        dv: &mut CudaAct,
        dout: &CudaAct,
        out: &CudaAct,
        lse: &CudaF32,
        q: &CudaAct,
        k: &CudaAct,
        v: &CudaAct,
        documents: &Documents,
        spec: AttentionSpec,
    ) -> Result<()> {
        self.attention_backward(dq, dk, dv, dout, out, lse, q, k, v, documents, spec)
    }

    fn alloc_sequences(
        &self,
        n_pages: usize,
        page_len: usize,
        specs: &[AttentionSpec],
    ) -> Result<CudaSequences> {
        self.alloc_sequences(n_pages, page_len, specs)
    }

    fn write_sequences(&self, target: &mut CudaSequences, sequences: &[SequenceSpan]) -> Result<()> {
        self.write_sequences(target, sequences)
    }

    fn write_kv(
        &self,
        cache: &mut CudaKvCache,
        k: &CudaAct,
        v: &CudaAct,
        sequences: &CudaSequences,
    ) -> Result<()> {
        self.write_kv(cache, k, v, sequences)
    }

    fn attention_paged(
        &self,
        out: &mut CudaAct,
        q: &CudaAct,
        cache: &CudaKvCache,
        sequences: &CudaSequences,
        spec: AttentionSpec,
    ) -> Result<()> {
        self.attention_paged(out, q, cache, sequences, spec)
    }

    fn gated(
        &self,
        out: &mut CudaAct,
        gate: &CudaAct,
        up: &CudaAct,
        activation: GateActivation,
        len: usize,
    ) -> Result<()> {
        self.gated(out, gate, up, activation, len)
    }

    fn gated_backward(
        &self,
        gate: &mut CudaAct,
        up: &mut CudaAct,
        dout: &CudaAct,
        activation: GateActivation,
        len: usize,
    ) -> Result<()> {
        self.gated_backward(gate, up, dout, activation, len)
    }

    fn add(&self, y: &mut CudaAct, x: &CudaAct, len: usize) -> Result<()> {
        self.add(y, x, len)
    }

    fn alloc_choices(&self, n_rows_max: usize) -> Result<CudaChoices> {
        self.alloc_choices(n_rows_max)
    }

    fn write_choices(&self, choices: &mut CudaChoices, rows: &[SampleRow<'_>], n_vocab: usize) -> Result<()> {
        self.write_choices(choices, rows, n_vocab)
    }

    fn choose(&self, choices: &mut CudaChoices, logits: &mut CudaF32) -> Result<()> {
        self.choose(choices, logits)
    }

    fn read_choices(&self, choices: &CudaChoices, ids: &mut [u32]) -> Result<()> {
        self.read_choices(choices, ids)
    }

    fn cross_entropy(
        &self,
        losses: &mut CudaF32,
        dx: Option<&mut CudaAct>,
        x: &CudaAct,
        head: &CudaWeight,
        labels: &CudaU32,
        loss_scale: f32,
        m: usize,
    ) -> Result<()> {
        let labels = labels.first("cross_entropy", "labels", m)?;
        let inputs = LossInputs {
            x,
            head,
            labels,
            loss_scale,
        };
        self.cross_entropy(losses, dx, inputs)
    }

    fn sum_squares(&self, values: &CudaF32, len: usize) -> Result<f64> {
        self.sum_squares(values, len)
    }

    fn adamw(
        &self,
        params: &mut CudaF32,
        grads: &CudaF32,
        first_moment: &mut CudaF32,
        second_moment: &mut CudaF32,
        spec: AdamwSpec,
        len: usize,
    ) -> Result<()> {
        self.adamw(params, grads, first_moment, second_moment, spec, len)
    }
}
