//! The set of operations a model is made of, on buffers that the backend owns.
//!
//! Invariant: the CPU backend defines what every operation means; another backend is right when it agrees with
//! it within the bound its storage type allows.
//!
//! An operation checks its shapes, enqueues its work and returns; only `read_*` waits. Names that end in
//! `_backward` take the gradient of the output and produce the gradients of the inputs. What is written is said by
//! the memory contract in each doc comment: `=` overwrites, `+=` accumulates.
//!
//! Every row of an output depends only on its own inputs, in an order of additions that does not depend on how
//! many other rows the step holds: a request's text is the same whatever the batch.

mod linear;

use std::fmt::Debug;

pub use linear::{Dropout, LinearForward, Lora, LoraByRow, LoraForward, LoraSlot, NO_PAIR};

use crate::dims::{Documents, HeadDims, SequenceSpan};
use crate::error::{Error, Result};
use crate::nf4::DoubleQuant;
use crate::sampling::SampleRow;
use crate::weight::HostWeight;

/// Gate activation of the feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateActivation {
    /// `x * sigmoid(x)`: Llama, Mistral, Qwen.
    Silu,
    /// The tanh approximation of GELU: Gemma.
    GeluTanh,
}

/// How a row is normalised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNormSpec {
    /// Width of a row: `C`, or `D` for per-head norms.
    pub width: usize,
    /// Added to the mean square before the root.
    pub epsilon: f32,
    /// 1 where the stored weight means `1 + w` (Gemma), else 0.
    pub weight_offset: f32,
}

/// How attention scores are made and which keys a query may see.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Heads.
    pub heads: HeadDims,
    /// Factor on `q·k`, usually `1/sqrt(D)`.
    pub scale: f32,
    /// A query at position `t` sees keys in `(t - window, t]`; `None` sees `[0, t]`.
    pub window: Option<usize>,
}

/// AdamW's settings for one step (Loshchilov & Hutter 2019, as `torch.optim.AdamW`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwSpec {
    /// Learning rate of this step. Like the other settings a double, as Python's floats are: `1 - 0.999` of a single
    /// is 1.3e-5 too small.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number of this step, from 1: bias correction.
    pub step: u32,
    /// Factor on the gradients before use: clipping and averaging in one.
    pub gradient_scale: f32,
}

/// What a label of the cross-entropy means when no loss is taken at that row.
pub const NO_LABEL: u32 = u32::MAX;

/// The operations.
pub trait Backend: Debug + Send + Sync + Sized + 'static {
    /// Activations in the backend's storage type: f32 on the CPU, bf16 on CUDA.
    type Act: Debug + Send + Sync;
    /// 32-bit floats: adapters, gradients, optimizer state, norms' weights, losses, row statistics, logits.
    type F32: Debug + Send + Sync;
    /// 32-bit unsigned integers: token ids, positions, labels.
    type U32: Debug + Send + Sync;
    /// A frozen matrix `[N, K]` in whatever packed form the backend reads fastest.
    type Weight: Debug + Send + Sync;
    /// One layer's paged keys and values.
    type KvCache: Debug + Send + Sync;
    /// A step's sequences, as paged attention takes them: made once for all layers.
    type Sequences: Debug + Send + Sync;
    /// Where the pairs of several adapters beside one linear are.
    type LoraPairs: Debug + Send + Sync;
    /// What the next tokens of a step's rows are chosen by, and the tokens.
    type Choices: Debug + Send + Sync;
    /// Steps that were run by [`Backend::replay`].
    type Recordings: Debug + Default + Send + Sync;

    /// Runs a step of many operations where each of them begins fastest.
    fn step<R: Send>(&self, run: impl FnOnce() -> R + Send) -> R {
        run()
    }

    /// Runs a step that comes again and again, of operations on the backend that `run` is given. A backend may keep what
    /// they come to, in `recordings`, and give it to its device at once when a step comes to the same. It pays where the
    /// step makes, writes and reads no buffer, drops none, and finds in those that it uses what was written there before.
    /// `run` may be called twice; what it is given is of no use afterwards.
    fn replay<E: From<Error>>(
        &self,
        recordings: &mut Self::Recordings,
        run: impl FnMut(&Self) -> Result<(), E>,
    ) -> Result<(), E>;

    // ---- memory ----

    /// `len` zeros.
    fn alloc_act(&self, len: usize) -> Result<Self::Act>;
    /// `len` zeros.
    fn alloc_f32(&self, len: usize) -> Result<Self::F32>;
    /// A copy of `values`.
    fn upload_f32(&self, values: &[f32]) -> Result<Self::F32>;
    /// A copy of `values`.
    fn upload_u32(&self, values: &[u32]) -> Result<Self::U32>;
    /// Overwrites `target[offset..offset + values.len()]`.
    fn write_f32(&self, target: &mut Self::F32, offset: usize, values: &[f32]) -> Result<()>;
    /// `target = values`, in the memory that it has where they fit.
    fn write_u32(&self, target: &mut Self::U32, values: &[u32]) -> Result<()>;
    /// `target[..] = 0`.
    fn zero_f32(&self, target: &mut Self::F32) -> Result<()>;
    /// `target[..len] = 0`.
    fn zero_act(&self, target: &mut Self::Act, len: usize) -> Result<()>;
    /// `target[..len] = source[..len]`.
    fn copy_act(&self, target: &mut Self::Act, source: &Self::Act, len: usize) -> Result<()>;
    /// Waits, then copies `source[offset..offset + out.len()]`.
    fn read_f32(&self, source: &Self::F32, offset: usize, out: &mut [f32]) -> Result<()>;
    /// Waits, then converts `source[offset..offset + out.len()]`.
    fn read_act(&self, source: &Self::Act, offset: usize, out: &mut [f32]) -> Result<()>;
    /// Takes a host matrix into the backend's own form. NF4 stays NF4; other formats keep the file's own
    /// values, as far as [`Backend::Act`]'s type holds them.
    fn load_weight(&self, weight: HostWeight) -> Result<Self::Weight>;
    /// The same of the matrix quantized to NF4; one that is in NF4 already stays as it is.
    fn load_weight_nf4(&self, weight: HostWeight, double_quant: DoubleQuant) -> Result<Self::Weight> {
        self.load_weight(HostWeight::Nf4(weight.into_nf4(double_quant)?))
    }
    /// A cache of `n_pages` pages of `page_len` tokens each for one layer.
    fn alloc_kv_cache(&self, heads: HeadDims, n_pages: usize, page_len: usize) -> Result<Self::KvCache>;

    // ---- embedding ----

    /// `out [M, C] = scale * table[ids]` with `table [V, C]`.
    fn embed(
        &self,
        out: &mut Self::Act,
        ids: &Self::U32,
        table: &Self::Weight,
        scale: f32,
        m: usize,
    ) -> Result<()>;

    // ---- norm ----

    /// `out [M, W] = x * rstd * (weight + weight_offset)`, `rstd [M] = 1/sqrt(mean(x²) + epsilon)`.
    fn rms_norm(
        &self,
        out: &mut Self::Act,
        rstd: &mut Self::F32,
        x: &Self::Act,
        weight: &Self::F32,
        spec: RmsNormSpec,
        m: usize,
    ) -> Result<()>;

    /// `y [M, W] += x`, then [`Backend::rms_norm`] of `y`: the residual stream and the norm that follows.
    #[expect(clippy::too_many_arguments, reason = "one buffer per tensor of the formula")]
    fn add_rms_norm(
        &self,
        y: &mut Self::Act,
        out: &mut Self::Act,
        rstd: &mut Self::F32,
        x: &Self::Act,
        weight: &Self::F32,
        spec: RmsNormSpec,
        m: usize,
    ) -> Result<()> {
        self.add(y, x, m * spec.width)?;
        self.rms_norm(out, rstd, y, weight, spec, m)
    }

    /// `dx [M, W] += ` the gradient through [`Backend::rms_norm`]; the weight is frozen and gets none.
    #[expect(clippy::too_many_arguments, reason = "one buffer per tensor of the formula")]
    fn rms_norm_backward(
        &self,
        dx: &mut Self::Act,
        dy: &Self::Act,
        x: &Self::Act,
        rstd: &Self::F32,
        weight: &Self::F32,
        spec: RmsNormSpec,
        m: usize,
    ) -> Result<()>;

    // ---- rotary embedding ----

    /// Rotates `x [M, heads, D]` in place by `positions [M]`, pairing element `i` with `i + D/2`.
    /// `frequencies [D/2]` are radians per position, any scaling already in them.
    fn rope(
        &self,
        x: &mut Self::Act,
        positions: &Self::U32,
        frequencies: &Self::F32,
        n_heads: usize,
        head_dim: usize,
        m: usize,
    ) -> Result<()>;

    /// Rotates back, in place: the gradient of [`Backend::rope`].
    fn rope_backward(
        &self,
        dx: &mut Self::Act,
        positions: &Self::U32,
        frequencies: &Self::F32,
        n_heads: usize,
        head_dim: usize,
        m: usize,
    ) -> Result<()>;

    /// [`Backend::rope`] of the queries `q [M, H, D]` and of the keys `k [M, KV, D]`.
    fn rope_both(
        &self,
        q: &mut Self::Act,
        k: &mut Self::Act,
        positions: &Self::U32,
        frequencies: &Self::F32,
        heads: HeadDims,
        m: usize,
    ) -> Result<()> {
        self.rope(q, positions, frequencies, heads.n_heads, heads.head_dim, m)?;
        self.rope(k, positions, frequencies, heads.n_kv_heads, heads.head_dim, m)
    }

    /// Rotates both back, in place: the gradient of [`Backend::rope_both`].
    fn rope_both_backward(
        &self,
        dq: &mut Self::Act,
        dk: &mut Self::Act,
        positions: &Self::U32,
        frequencies: &Self::F32,
        heads: HeadDims,
        m: usize,
    ) -> Result<()> {
        self.rope_backward(dq, positions, frequencies, heads.n_heads, heads.head_dim, m)?;
        self.rope_backward(dk, positions, frequencies, heads.n_kv_heads, heads.head_dim, m)
    }

    // ---- matrix products ----

    /// Takes in where the pairs of several adapters beside one linear are, for [`LoraByRow`]; `None` of one that has no
    /// pair there, whose rows are those of the weight alone.
    fn upload_pairs(&self, pairs: &[Option<LoraSlot>]) -> Result<Self::LoraPairs>;

    /// All linears that read `x [M, K]`, at once: see [`LinearForward`].
    ///
    /// A row's result has the same bits for any `M`, so that what a prompt is answered does not depend on those beside it.
    fn linears(&self, x: &Self::Act, linears: &mut [LinearForward<'_, Self>], m: usize) -> Result<()>;

    /// The same of whole documents, as training has them: a row's bits do not depend on `M` here either, but may be others
    /// than those of [`Backend::linears`], where a device has a faster way that adds in another order.
    fn linears_of_documents(
        &self,
        x: &Self::Act,
        linears: &mut [LinearForward<'_, Self>],
        m: usize,
    ) -> Result<()> {
        self.linears(x, linears, m)
    }

    /// `dx [M, K] += dy [M, N] · W`.
    fn matmul_backward(
        &self,
        dx: &mut Self::Act,
        dy: &Self::Act,
        weight: &Self::Weight,
        m: usize,
    ) -> Result<()>;

    /// `logits [M, V] = x [M, C] · headᵀ`, always in f32.
    fn logits(&self, logits: &mut Self::F32, x: &Self::Act, head: &Self::Weight, m: usize) -> Result<()>;

    /// `y [M, N] += bias [N]` in every row.
    fn add_bias(&self, y: &mut Self::Act, bias: &Self::F32, n: usize, m: usize) -> Result<()>;

    /// With `dh = scale * dy · B`: `dB += scale * dyᵀ · h`, `dA += dhᵀ · drop(x)` inside the flat `grads`,
    /// and `dx += drop'(dh · A)` unless `dx` is `None`.
    #[expect(clippy::too_many_arguments, reason = "one buffer per tensor of the formula")]
    fn lora_backward(
        &self,
        dx: Option<&mut Self::Act>,
        grads: &mut Self::F32,
        dy: &Self::Act,
        x: &Self::Act,
        h: &Self::F32,
        params: &Self::F32,
        slot: LoraSlot,
        dropout: Option<Dropout>,
        m: usize,
    ) -> Result<()>;

    // ---- attention ----

    /// Causal grouped-query attention within each document: `out [M, H, D] = softmax(scale q·k) v`.
    /// `lse [M, H]` keeps each row's log-sum-exp for the backward.
    #[expect(clippy::too_many_arguments, reason = "one buffer per tensor of the formula")]
    fn attention(
        &self,
        out: &mut Self::Act,
        lse: &mut Self::F32,
        q: &Self::Act,
        k: &Self::Act,
        v: &Self::Act,
        documents: &Documents,
        spec: AttentionSpec,
    ) -> Result<()>;

    /// `dq [M, H, D] =`, `dk [M, KV, D] =`, `dv [M, KV, D] =` the gradients of [`Backend::attention`].
    #[expect(clippy::too_many_arguments, reason = "one buffer per tensor of the formula")]
    fn attention_backward(
        &self,
        dq: &mut Self::Act,
        dk: &mut Self::Act,
        dv: &mut Self::Act,
        dout: &Self::Act,
        out: &Self::Act,
        lse: &Self::F32,
        q: &Self::Act,
        k: &Self::Act,
        v: &Self::Act,
        documents: &Documents,
        spec: AttentionSpec,
    ) -> Result<()>;

    /// Room for the sequences of steps over caches of `n_pages` pages of `page_len` tokens, whose layers attend as one of
    /// `specs` says.
    fn alloc_sequences(
        &self,
        n_pages: usize,
        page_len: usize,
        specs: &[AttentionSpec],
    ) -> Result<Self::Sequences>;

    /// `target = sequences`, in the memory that it has where they fit.
    fn write_sequences(&self, target: &mut Self::Sequences, sequences: &[SequenceSpan]) -> Result<()>;

    /// Stores the step's `k, v [M, KV, D]` at each sequence's last `n_rows` positions.
    fn write_kv(
        &self,
        cache: &mut Self::KvCache,
        k: &Self::Act,
        v: &Self::Act,
        sequences: &Self::Sequences,
    ) -> Result<()>;

    /// Attention of the step's `q [M, H, D]` over the cache: row `j` of a sequence sees its first
    /// `n_context - n_rows + j + 1` tokens (fewer with a window).
    fn attention_paged(
        &self,
        out: &mut Self::Act,
        q: &Self::Act,
        cache: &Self::KvCache,
        sequences: &Self::Sequences,
        spec: AttentionSpec,
    ) -> Result<()>;

    // ---- feed-forward ----

    /// `out [M, F] = activation(gate) * up`.
    fn gated(
        &self,
        out: &mut Self::Act,
        gate: &Self::Act,
        up: &Self::Act,
        activation: GateActivation,
        len: usize,
    ) -> Result<()>;

    /// The gradients of [`Backend::gated`], each in the place of what it is the gradient of: these are a block's widest
    /// buffers, and nothing reads `gate` and `up` once more.
    fn gated_backward(
        &self,
        gate: &mut Self::Act,
        up: &mut Self::Act,
        dout: &Self::Act,
        activation: GateActivation,
        len: usize,
    ) -> Result<()>;

    /// `y[..len] += x[..len]`: the residual stream.
    fn add(&self, y: &mut Self::Act, x: &Self::Act, len: usize) -> Result<()>;

    // ---- sampling ----

    /// Room for the choices of at most `n_rows_max` rows.
    fn alloc_choices(&self, n_rows_max: usize) -> Result<Self::Choices>;

    /// What the rows of the next steps are chosen by, one after another; their logits have `n_vocab` columns.
    fn write_choices(
        &self,
        choices: &mut Self::Choices,
        rows: &[SampleRow<'_>],
        n_vocab: usize,
    ) -> Result<()>;

    /// Chooses a token for each of the rows of `logits [M, V]`, by the rule of [`sampling`](crate::sampling). The logits
    /// are afterwards as they were.
    fn choose(&self, choices: &mut Self::Choices, logits: &mut Self::F32) -> Result<()>;

    /// Waits, then copies the tokens. Fails where the largest logit of a row was not finite.
    fn read_choices(&self, choices: &Self::Choices, ids: &mut [u32]) -> Result<()>;

    // ---- loss ----

    /// Chunked linear cross-entropy: `losses [M] = -log softmax(x · headᵀ)[labels]`, 0 where the label is
    /// [`NO_LABEL`]; with `dx`, also `dx [M, C] = loss_scale * d(sum of losses)/dx`. Never holds all logits.
    #[expect(clippy::too_many_arguments, reason = "one buffer per tensor of the formula")]
    fn cross_entropy(
        &self,
        losses: &mut Self::F32,
        dx: Option<&mut Self::Act>,
        x: &Self::Act,
        head: &Self::Weight,
        labels: &Self::U32,
        loss_scale: f32,
        m: usize,
    ) -> Result<()>;

    // ---- optimizer ----

    /// Sum of squares of `values[..len]`, in a fixed order. Waits.
    fn sum_squares(&self, values: &Self::F32, len: usize) -> Result<f64>;

    /// One AdamW step on the flat buffers `[len]`.
    fn adamw(
        &self,
        params: &mut Self::F32,
        grads: &Self::F32,
        first_moment: &mut Self::F32,
        second_moment: &mut Self::F32,
        spec: AdamwSpec,
        len: usize,
    ) -> Result<()>;
}
