//! The CPU's operations under the names of the contract.
//!
//! Invariant: one line each; what an operation means is in the file of its name.

use super::rope::Turn;
use super::{
    Cpu, CpuChoices, CpuKvCache, CpuWeight, adamw, attention, attention_paged, check, choose, cross_entropy,
    elementwise, embed, gated, linear, lora, rms_norm, rope,
};
use crate::backend::{
    AdamwSpec, AttentionSpec, Backend, Dropout, GateActivation, LinearForward, LoraSlot, RmsNormSpec,
};
use crate::dims::{Documents, HeadDims, SequenceSpan};
use crate::error::{Error, Result};
use crate::sampling::SampleRow;
use crate::weight::HostWeight;

impl Backend for Cpu {
    type Act = Vec<f32>;
    type F32 = Vec<f32>;
    type U32 = Vec<u32>;
    type Weight = CpuWeight;
    type KvCache = CpuKvCache;
    type Sequences = Vec<SequenceSpan>;
    type LoraPairs = Vec<Option<LoraSlot>>;
    type Choices = CpuChoices;
    type Recordings = ();

    fn step<R: Send>(&self, run: impl FnOnce() -> R + Send) -> R {
        // On a thread of the pool, so that the others are its team.
        self.pool.install(|| self.team.step(self.n_threads(), run))
    }

    fn replay<E: From<Error>>(
        &self,
        (): &mut (),
        mut run: impl FnMut(&Self) -> Result<(), E>,
    ) -> Result<(), E> {
        run(self)
    }

    fn alloc_act(&self, len: usize) -> Result<Vec<f32>> {
        // what the address space cannot hold is refused here, where vec! would panic
        check::size("alloc", "buffer", &[len, 16])?;
        Ok(vec![0.0; len])
    }

    fn alloc_f32(&self, len: usize) -> Result<Vec<f32>> {
        self.alloc_act(len)
    }

    fn upload_f32(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn upload_u32(&self, values: &[u32]) -> Result<Vec<u32>> {
        Ok(values.to_vec())
    }

    fn write_f32(&self, target: &mut Vec<f32>, offset: usize, values: &[f32]) -> Result<()> {
        check::window_mut("write_f32", "target", target, offset, values.len())?.copy_from_slice(values);
        Ok(())
    }

    fn write_u32(&self, target: &mut Vec<u32>, values: &[u32]) -> Result<()> {
        target.clear();
        target.extend_from_slice(values);
        Ok(())
    }

    fn zero_f32(&self, target: &mut Vec<f32>) -> Result<()> {
        target.fill(0.0);
        Ok(())
    }

    fn zero_act(&self, target: &mut Vec<f32>, len: usize) -> Result<()> {
        check::part_mut("zero_act", "target", target, &[len])?.fill(0.0);
        Ok(())
    }

    fn copy_act(&self, target: &mut Vec<f32>, source: &Vec<f32>, len: usize) -> Result<()> {
        let source = check::part("copy_act", "source", source, &[len])?;
        check::part_mut("copy_act", "target", target, &[len])?.copy_from_slice(source);
        Ok(())
    }

    fn read_f32(&self, source: &Vec<f32>, offset: usize, out: &mut [f32]) -> Result<()> {
        out.copy_from_slice(check::window("read_f32", "source", source, offset, out.len())?);
        Ok(())
    }

    fn read_act(&self, source: &Vec<f32>, offset: usize, out: &mut [f32]) -> Result<()> {
        out.copy_from_slice(check::window("read_act", "source", source, offset, out.len())?);
        Ok(())
    }

    fn load_weight(&self, weight: HostWeight) -> Result<CpuWeight> {
        Ok(CpuWeight::from(weight))
    }

    fn alloc_kv_cache(&self, heads: HeadDims, n_pages: usize, page_len: usize) -> Result<CpuKvCache> {
        CpuKvCache::new(heads, n_pages, page_len, self.holds_integers())
    }

    fn embed(
        &self,
        out: &mut Vec<f32>,
        ids: &Vec<u32>,
        table: &CpuWeight,
        scale: f32,
        m: usize,
    ) -> Result<()> {
        embed::forward(self, out, ids, table, scale, m)
    }

    fn rms_norm(
        &self,
        out: &mut Vec<f32>,
        rstd: &mut Vec<f32>,
        x: &Vec<f32>,
        weight: &Vec<f32>,
        spec: RmsNormSpec,
        m: usize,
    ) -> Result<()> {
        rms_norm::forward(self, out, rstd, x, weight, spec, m)
    }

    fn rms_norm_backward(
        &self,
        dx: &mut Vec<f32>,
        dy: &Vec<f32>,
        x: &Vec<f32>,
        rstd: &Vec<f32>,
        weight: &Vec<f32>,
        spec: RmsNormSpec,
        m: usize,
    ) -> Result<()> {
        rms_norm::backward(self, dx, [dy, x], rstd, weight, spec, m)
    }

    fn rope(
        &self,
        x: &mut Vec<f32>,
        positions: &Vec<u32>,
        frequencies: &Vec<f32>,
        n_heads: usize,
        head_dim: usize,
        m: usize,
    ) -> Result<()> {
        rope::rotate(
            self,
            x,
            positions,
            frequencies,
            [n_heads, head_dim, m],
            Turn::Forward,
        )
    }

    fn rope_backward(
        &self,
        dx: &mut Vec<f32>,
        positions: &Vec<u32>,
        frequencies: &Vec<f32>,
        n_heads: usize,
        head_dim: usize,
        m: usize,
    ) -> Result<()> {
        rope::rotate(
            self,
            dx,
            positions,
            frequencies,
            [n_heads, head_dim, m],
            Turn::Back,
        )
    }

    fn upload_pairs(&self, pairs: &[Option<LoraSlot>]) -> Result<Vec<Option<LoraSlot>>> {
        Ok(pairs.to_vec())
    }

    fn linears(&self, x: &Vec<f32>, linears: &mut [LinearForward<'_, Self>], m: usize) -> Result<()> {
        linear::forward(self, x, linears, m)
    }

    fn matmul_backward(&self, dx: &mut Vec<f32>, dy: &Vec<f32>, weight: &CpuWeight, m: usize) -> Result<()> {
        linear::backward(self, dx, dy, weight, m)
    }

    fn logits(&self, logits: &mut Vec<f32>, x: &Vec<f32>, head: &CpuWeight, m: usize) -> Result<()> {
        linear::logits(self, logits, x, head, m)
    }

    fn add_bias(&self, y: &mut Vec<f32>, bias: &Vec<f32>, n: usize, m: usize) -> Result<()> {
        elementwise::add_bias(self, y, bias, n, m)
    }

    fn lora_backward(
        &self,
        dx: Option<&mut Vec<f32>>,
        grads: &mut Vec<f32>,
        dy: &Vec<f32>,
        x: &Vec<f32>,
        h: &Vec<f32>,
        params: &Vec<f32>,
        slot: LoraSlot,
        dropout: Option<Dropout>,
        m: usize,
    ) -> Result<()> {
        let inputs = lora::Inputs { dy, x, h, params };
        lora::backward(self, dx.map(Vec::as_mut_slice), grads, inputs, slot, dropout, m)
    }

    fn attention(
        &self,
        out: &mut Vec<f32>,
        lse: &mut Vec<f32>,
        q: &Vec<f32>,
        k: &Vec<f32>,
        v: &Vec<f32>,
        documents: &Documents,
        spec: AttentionSpec,
    ) -> Result<()> {
        attention::forward(self, out, lse, [q, k, v], documents, spec)
    }

    fn attention_backward(
        &self,
        dq: &mut Vec<f32>,
        dk: &mut Vec<f32>,
        dv: &mut Vec<f32>,
        dout: &Vec<f32>,
        out: &Vec<f32>,
        lse: &Vec<f32>,
        q: &Vec<f32>,
        k: &Vec<f32>,
        v: &Vec<f32>,
        documents: &Documents,
        spec: AttentionSpec,
    ) -> Result<()> {
        let inputs = attention::Inputs {
            dout,
            out,
            lse,
            q,
            k,
            v,
        };
        attention::backward(self, [dq, dk, dv], inputs, documents, spec)
    }

    fn alloc_sequences(
        &self,
        _n_pages: usize,
        _page_len: usize,
        _specs: &[AttentionSpec],
    ) -> Result<Vec<SequenceSpan>> {
        Ok(Vec::new())
    }

    fn write_sequences(&self, target: &mut Vec<SequenceSpan>, sequences: &[SequenceSpan]) -> Result<()> {
        target.clear();
        target.extend_from_slice(sequences);
        Ok(())
    }

    fn write_kv(
        &self,
        cache: &mut CpuKvCache,
        k: &Vec<f32>,
        v: &Vec<f32>,
        sequences: &Vec<SequenceSpan>,
    ) -> Result<()> {
        cache.write(self.isa, k, v, sequences)
    }

    fn attention_paged(
        &self,
        out: &mut Vec<f32>,
        q: &Vec<f32>,
        cache: &CpuKvCache,
        sequences: &Vec<SequenceSpan>,
        spec: AttentionSpec,
    ) -> Result<()> {
        attention_paged::forward(self, out, q, cache, sequences, spec)
    }

    fn gated(
        &self,
        out: &mut Vec<f32>,
        gate: &Vec<f32>,
        up: &Vec<f32>,
        activation: GateActivation,
        len: usize,
    ) -> Result<()> {
        gated::forward(self, out, gate, up, activation, len)
    }

    fn gated_backward(
        &self,
        gate: &mut Vec<f32>,
        up: &mut Vec<f32>,
        dout: &Vec<f32>,
        activation: GateActivation,
        len: usize,
    ) -> Result<()> {
        gated::backward(self, [gate, up], dout, activation, len)
    }

    fn add(&self, y: &mut Vec<f32>, x: &Vec<f32>, len: usize) -> Result<()> {
        elementwise::add(self, y, x, len)
    }

    fn alloc_choices(&self, n_rows_max: usize) -> Result<CpuChoices> {
        Ok(CpuChoices::new(n_rows_max))
    }

    fn write_choices(&self, choices: &mut CpuChoices, rows: &[SampleRow<'_>], n_vocab: usize) -> Result<()> {
        choices.write(rows, n_vocab)
    }

    fn choose(&self, choices: &mut CpuChoices, logits: &mut Vec<f32>) -> Result<()> {
        choose::forward(self, choices, logits)
    }

    fn read_choices(&self, choices: &CpuChoices, ids: &mut [u32]) -> Result<()> {
        choices.read(ids)
    }

    fn cross_entropy(
        &self,
        losses: &mut Vec<f32>,
        dx: Option<&mut Vec<f32>>,
        x: &Vec<f32>,
        head: &CpuWeight,
        labels: &Vec<u32>,
        loss_scale: f32,
        m: usize,
    ) -> Result<()> {
        let inputs = cross_entropy::Inputs {
            x,
            head,
            labels,
            loss_scale,
        };
        cross_entropy::forward_backward(self, losses, dx.map(Vec::as_mut_slice), inputs, m)
    }

    fn sum_squares(&self, values: &Vec<f32>, len: usize) -> Result<f64> {
        adamw::sum_squares(self, values, len)
    }

    fn adamw(
        &self,
        params: &mut Vec<f32>,
        grads: &Vec<f32>,
        first_moment: &mut Vec<f32>,
        second_moment: &mut Vec<f32>,
        spec: AdamwSpec,
        len: usize,
    ) -> Result<()> {
        adamw::step(self, params, grads, [first_moment, second_moment], spec, len)
    }
}
