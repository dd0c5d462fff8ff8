//! The whole stack: embedding, blocks, final norm, head; its passes over packed documents.
//!
//! Invariant: gradients of a step are a function of its micro-batches alone, whatever was kept and what made again.

use llamaduo_kernels::{AttentionSpec, Backend, Documents};

use super::activations::{ActivationPlan, Activations, Keep, LayerActivations, Scratch};
use super::attention_block::{AttentionBlock, HeadNorms};
use super::feed_forward::{FeedForwardBlock, add_norm_stream, norm_spec, norm_stream};
use super::linear::{DropoutStream, Linear};
use super::post_norm::PostNorm;
use super::{AdapterOnDevice, Context, Pass, PassAdapters};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::local_model::BaseQuant;
use crate::lora::LinearName;
use crate::weights::{LayerTensor, TensorName, Weights};

/// A base model in a backend's memory.
#[derive(Debug)]
pub(crate) struct Model<B: Backend> {
    pub(crate) backend: B,
    pub(crate) config: ModelConfig,
    embedding: B::Weight,
    /// `None` where the head is the embedding.
    head: Option<B::Weight>,
    layers: Vec<Layer<B>>,
    final_norm: B::F32,
}

#[derive(Debug)]
struct Layer<B: Backend> {
    attention: AttentionBlock<B>,
    feed_forward: FeedForwardBlock<B>,
}

/// Rows of one forward and backward.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MicroBatch {
    /// `[M]`.
    pub(crate) ids: Vec<u32>,
    /// `[M]`: the token after each, or `NO_LABEL`.
    pub(crate) labels: Vec<u32>,
    pub(crate) documents: Documents,
}

impl<B: Backend> Model<B> {
    /// Takes in a model's tensors one at a time, each linear of the blocks as `quant` holds it.
    pub(crate) fn load(
        backend: B,
        config: &ModelConfig,
        weights: &Weights,
        quant: BaseQuant,
    ) -> Result<Self> {
        let embedding = backend.load_weight(weights.matrix(TensorName::Embedding)?)?;
        let head = match config.tied_head {
            true => None,
            false => Some(backend.load_weight(weights.matrix(TensorName::Head)?)?),
        };
        let layer = |layer| Layer::load(&backend, config, weights, layer, quant);
        let layers = backend.step(|| (0..config.n_layers).map(layer).collect::<Result<_>>())?;
        let final_norm = backend.upload_f32(&weights.vector(TensorName::FinalNorm)?)?;
        Ok(Self {
            backend,
            config: config.clone(),
            embedding,
            head,
            layers,
            final_norm,
        })
    }

    /// How each layer attends.
    pub(crate) fn attention_specs(&self) -> Vec<AttentionSpec> {
        self.layers.iter().map(|layer| layer.attention.spec).collect()
    }

    pub(crate) fn head(&self) -> &B::Weight {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// A pass of whole documents on `backend`: the model's own, or that of a step which is replayed.
    pub(crate) fn pass<'a>(
        &'a self,
        backend: &'a B,
        positions: &'a B::U32,
        adapters: PassAdapters<'a, B>,
        dropout: Option<DropoutStream>,
        m: usize,
    ) -> Pass<'a, B> {
        Pass {
            backend,
            config: &self.config,
            positions,
            adapters,
            dropout: dropout.filter(|stream| stream.rate > 0.0),
            m,
            is_of_documents: true,
        }
    }

    /// Runs all blocks and the final norm; `context` says where each layer's keys are. Leaves `[M, C]` in
    /// `activations.hidden`.
    pub(crate) fn forward<'c>(
        &self,
        pass: &Pass<'_, B>,
        ids: &B::U32,
        activations: &mut Activations<B>,
        mut context: impl FnMut(usize) -> Context<'c, B>,
    ) -> Result<()> {
        let Activations {
            streams,
            layers,
            scratch,
            hidden,
            ..
        } = activations;
        let (n_streams, n_kept) = (streams.len(), layers.len());
        pass.backend.embed(
            &mut streams[0],
            ids,
            &self.embedding,
            self.config.embedding_scale,
            pass.m,
        )?;
        if let Some(first) = self.layers.first() {
            norm_stream(pass, scratch, &streams[0], &first.attention.norm)?;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let kept = &mut layers[index % n_kept];
            let (x, out) = neighbours(streams, index % n_streams, (index + 1) % n_streams);
            layer.forward(pass, &mut context(index), kept, scratch, out, x)?;
            // what the layer adds, and the norm that follows: the next layer's, or the final one
            match self.layers.get(index + 1) {
                Some(next) => add_norm_stream(pass, scratch, out, &kept.middle, &next.attention.norm)?,
                None => pass.backend.add_rms_norm(
                    out,
                    hidden,
                    &mut scratch.rstd,
                    &kept.middle,
                    &self.final_norm,
                    norm_spec(pass),
                    pass.m,
                )?,
            }
        }
        Ok(())
    }

    /// Logits `[T, V]` of one document.
    pub(crate) fn logits(&self, ids: &[u32], adapter: Option<&AdapterOnDevice<B>>) -> Result<Vec<f32>> {
        let backend = &self.backend;
        let m = ids.len();
        let lora_rank = adapter.map_or(0, |adapter| adapter.layout.rank());
        let plan = ActivationPlan {
            m_max: m,
            lora_rank,
            keep: Keep::Nothing,
        };
        let mut activations = Activations::new(backend, &self.config, plan)?;
        let documents = Documents::of_lengths([m]);
        let device_ids = backend.upload_u32(ids)?;
        let positions = backend.upload_u32(&documents.positions())?;
        let pass = self.pass(backend, &positions, adapter.into(), None, m);
        self.forward(&pass, &device_ids, &mut activations, |_| {
            Context::Packed(&documents)
        })?;
        let mut logits = backend.alloc_f32(m * self.config.vocab_size)?;
        backend.logits(&mut logits, &activations.hidden, self.head(), m)?;
        let mut values = vec![0.0; m * self.config.vocab_size];
        backend.read_f32(&logits, 0, &mut values)?;
        Ok(values)
    }

    /// Losses of a micro-batch's rows, summed. With `grads`, also adds the adapter's gradients of
    /// `loss_scale * sum` to them.
    pub(crate) fn loss(
        &self,
        batch: &MicroBatch,
        activations: &mut Activations<B>,
        adapter: Option<&AdapterOnDevice<B>>,
        dropout: Option<DropoutStream>,
        grads: Option<(&mut B::F32, f32)>,
    ) -> Result<f64> {
        let backend = &self.backend;
        let m = batch.ids.len();
        let ids = backend.upload_u32(&batch.ids)?;
        let labels = backend.upload_u32(&batch.labels)?;
        let positions = backend.upload_u32(&batch.documents.positions())?;
        let pass = self.pass(backend, &positions, adapter.into(), dropout, m);
        self.forward(&pass, &ids, activations, |_| Context::Packed(&batch.documents))?;

        let Activations {
            hidden,
            losses,
            gradients,
            ..
        } = &mut *activations;
        match (grads, gradients) {
            (Some((grads, loss_scale)), Some(gradients)) => {
                let dx = Some(&mut gradients.normed);
                backend.cross_entropy(losses, dx, hidden, self.head(), &labels, loss_scale, m)?;
                self.backward(&pass, &batch.documents, activations, grads)?;
            }
            _ => backend.cross_entropy(losses, None, hidden, self.head(), &labels, 0.0, m)?,
        }
        let mut row_losses = vec![0.0; m];
        backend.read_f32(&activations.losses, 0, &mut row_losses)?;
        Ok(row_losses.iter().map(|&loss| f64::from(loss)).sum())
    }

    /// From the gradient of the final norm's output, in `gradients.normed`, to the adapter's, `+=` in `grads`.
    fn backward(
        &self,
        pass: &Pass<'_, B>,
        documents: &Documents,
        activations: &mut Activations<B>,
        grads: &mut B::F32,
    ) -> Result<()> {
        let Activations {
            keep,
            streams,
            layers,
            scratch,
            gradients,
            ..
        } = activations;
        let (keep, n_kept) = (*keep, layers.len());
        let Some(gradients) = gradients else { return Ok(()) };
        let backend = &self.backend;
        let last = &streams[self.layers.len()];
        backend.zero_act(&mut gradients.stream, pass.m * self.config.hidden)?;
        // The forward left the final norm's row statistics in the scratch.
        let spec = norm_spec(pass);
        let (stream, dy) = (&mut gradients.stream, &gradients.normed);
        backend.rms_norm_backward(stream, dy, last, &scratch.rstd, &self.final_norm, spec, pass.m)?;
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let kept = &mut layers[index % n_kept];
            let (x, out) = neighbours(streams, index, index + 1);
            if keep == Keep::Inputs {
                // leaves in `out` what the layer adds, without its input; no one reads that stream any more
                norm_stream(pass, scratch, x, &layer.attention.norm)?;
                layer.forward(pass, &mut Context::Packed(documents), kept, scratch, out, x)?;
            }
            layer.feed_forward.backward(
                pass,
                &mut kept.feed_forward,
                scratch,
                gradients,
                grads,
                &kept.middle,
            )?;
            layer
                .attention
                .backward(pass, documents, &kept.attention, scratch, gradients, grads, x)?;
        }
        Ok(())
    }
}

impl<B: Backend> Layer<B> {
    fn load(
        backend: &B,
        config: &ModelConfig,
        weights: &Weights,
        layer: usize,
        quant: BaseQuant,
    ) -> Result<Self> {
        let vector = |tensor| -> Result<B::F32> {
            Ok(backend.upload_f32(&weights.vector(TensorName::Layer(layer, tensor))?)?)
        };
        let linear = |name: LinearName, bias: Option<LayerTensor>| -> Result<Linear<B>> {
            let host = weights.matrix(TensorName::Layer(layer, name.tensor()))?;
            let weight = match quant.double_quant() {
                Some(double_quant) => backend.load_weight_nf4(host, double_quant)?,
                None => backend.load_weight(host)?,
            };
            let bias = bias.filter(|_| config.attention_bias).map(vector).transpose()?;
            Ok(Linear {
                layer,
                name,
                weight,
                bias,
                n_out: name.shape(config).1,
            })
        };
        let head_norms = match config.qk_norm {
            true => Some(HeadNorms {
                query: vector(LayerTensor::QueryNorm)?,
                key: vector(LayerTensor::KeyNorm)?,
            }),
            false => None,
        };
        let post_norm = |tensor| -> Result<Option<PostNorm<B>>> {
            let weight = config.post_norms.then(|| vector(tensor)).transpose()?;
            Ok(weight.map(|weight| PostNorm { weight }))
        };
        let feed_forward_norm = match config.post_norms {
            true => LayerTensor::FeedForwardPreNorm,
            false => LayerTensor::FeedForwardNorm,
        };
        Ok(Self {
            attention: AttentionBlock {
                norm: vector(LayerTensor::AttentionNorm)?,
                post_norm: post_norm(LayerTensor::AttentionPostNorm)?,
                rope_frequencies: backend.upload_f32(&config.rope_frequencies(layer))?,
                query: linear(LinearName::Query, Some(LayerTensor::QueryBias))?,
                key: linear(LinearName::Key, Some(LayerTensor::KeyBias))?,
                value: linear(LinearName::Value, Some(LayerTensor::ValueBias))?,
                output: linear(LinearName::Output, None)?,
                head_norms,
                spec: AttentionSpec {
                    heads: config.heads,
                    scale: config.attention_scale,
                    window: config.windows.get(layer).copied().flatten(),
                },
            },
            feed_forward: FeedForwardBlock {
                norm: vector(feed_forward_norm)?,
                post_norm: post_norm(LayerTensor::FeedForwardPostNorm)?,
                gate: linear(LinearName::Gate, None)?,
                up: linear(LinearName::Up, None)?,
                down: linear(LinearName::Down, None)?,
            },
        })
    }

    /// `out [M, C] =` what the layer adds to the stream `kept.middle`, which it makes of its input `x [M, C]`, whose norm is
    /// in `scratch.normed`.
    fn forward(
        &self,
        pass: &Pass<'_, B>,
        context: &mut Context<'_, B>,
        kept: &mut LayerActivations<B>,
        scratch: &mut Scratch<B>,
        out: &mut B::Act,
        x: &B::Act,
    ) -> Result<()> {
        let LayerActivations {
            attention,
            middle,
            feed_forward,
        } = kept;
        self.attention
            .forward(pass, context, attention, scratch, middle)?;
        add_norm_stream(pass, scratch, middle, x, &self.feed_forward.norm)?;
        self.feed_forward.forward(pass, feed_forward, scratch, out)
    }
}

/// Two different elements, one to read and one to write.
fn neighbours<T>(items: &mut [T], read: usize, write: usize) -> (&T, &mut T) {
    if read < write {
        let (low, high) = items.split_at_mut(write);
        (&low[read], &mut high[0])
    } else {
        let (low, high) = items.split_at_mut(read);
        (&high[0], &mut low[write])
    }
}
