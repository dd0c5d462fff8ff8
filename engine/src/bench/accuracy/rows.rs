//! What goes over rows and elements once.
//!
//! Invariant: a file holds all that its operation read.

use llamaduo_kernels::{AdamwSpec, GateActivation, RmsNormSpec};

use super::Saver;
use crate::error::Result;

impl Saver<'_> {
    /// The norm in both directions, the rotation, the gate in both directions.
    pub(super) fn rows(&mut self) -> Result<()> {
        self.norms()?;
        self.rotation()?;
        self.gate()
    }

    fn norms(&mut self) -> Result<()> {
        let (m, width) = (self.sizes.rows, self.config.hidden);
        let spec = RmsNormSpec {
            width,
            epsilon: self.config.rms_norm_epsilon,
            weight_offset: self.config.norm_weight_offset,
        };
        let (x, x_card) = self.acts(m * width)?;
        // PyTorch's norm has its weight in the type of its input
        let (weight, _) = self.acts(width)?;
        let weight_card = self.cuda.upload_f32(&weight)?;
        let (mut out, mut rstd) = (self.cuda.alloc_act(m * width)?, self.cuda.alloc_f32(m)?);
        self.cuda
            .rms_norm(&mut out, &mut rstd, &x_card, &weight_card, spec, m)?;
        let out = self.read_act(&out, m * width)?;
        let settings = [
            ("epsilon", spec.epsilon.to_string()),
            ("offset", spec.weight_offset.to_string()),
        ];
        let tensors = [
            ("x", vec![m, width], &x[..]),
            ("weight", vec![width], &weight),
            ("out.out", vec![m, width], &out),
        ];
        self.save("rms_norm", &settings, &tensors)?;

        let (dy, dy_card) = self.acts(m * width)?;
        let mut dx = self.cuda.alloc_act(m * width)?;
        self.cuda
            .rms_norm_backward(&mut dx, &dy_card, &x_card, &rstd, &weight_card, spec, m)?;
        let dx = self.read_act(&dx, m * width)?;
        let tensors = [
            ("x", vec![m, width], &x[..]),
            ("dy", vec![m, width], &dy),
            ("weight", vec![width], &weight),
            ("out.dx", vec![m, width], &dx),
        ];
        self.save("rms_norm_backward", &settings, &tensors)
    }

    fn rotation(&mut self) -> Result<()> {
        let (m, heads) = (self.sizes.rows, self.config.heads);
        let (h, d) = (heads.n_heads, heads.head_dim);
        let frequencies = self.config.rope_frequencies(0);
        let positions: Vec<u32> = (0..m).map(|row| (row * 61) as u32).collect();
        let (x, mut x_card) = self.acts(m * h * d)?;
        let positions_card = self.cuda.upload_u32(&positions)?;
        let frequencies_card = self.cuda.upload_f32(&frequencies)?;
        self.cuda
            .rope(&mut x_card, &positions_card, &frequencies_card, h, d, m)?;
        let out = self.read_act(&x_card, m * h * d)?;
        let positions: Vec<f32> = positions.iter().map(|&position| position as f32).collect();
        let tensors = [
            ("x", vec![m, h, d], &x[..]),
            ("positions", vec![m], &positions),
            ("frequencies", vec![d / 2], &frequencies),
            ("out.x", vec![m, h, d], &out),
        ];
        self.save("rope", &[], &tensors)
    }

    fn gate(&mut self) -> Result<()> {
        let (m, f) = (self.sizes.rows, self.config.ffn);
        let activation = self.config.activation;
        let (gate, mut gate_card) = self.acts(m * f)?;
        let (up, mut up_card) = self.acts(m * f)?;
        let mut out = self.cuda.alloc_act(m * f)?;
        self.cuda
            .gated(&mut out, &gate_card, &up_card, activation, m * f)?;
        let out = self.read_act(&out, m * f)?;
        let name = match activation {
            GateActivation::Silu => "silu",
            GateActivation::GeluTanh => "gelu_tanh",
        };
        let settings = [("activation", name.to_owned())];
        let tensors = [
            ("gate", vec![m, f], &gate[..]),
            ("up", vec![m, f], &up),
            ("out.out", vec![m, f], &out),
        ];
        self.save("gated", &settings, &tensors)?;

        let (dout, dout_card) = self.acts(m * f)?;
        self.cuda
            .gated_backward(&mut gate_card, &mut up_card, &dout_card, activation, m * f)?;
        let (dgate, dup) = (self.read_act(&gate_card, m * f)?, self.read_act(&up_card, m * f)?);
        let tensors = [
            ("gate", vec![m, f], &gate[..]),
            ("up", vec![m, f], &up),
            ("dout", vec![m, f], &dout),
            ("out.dgate", vec![m, f], &dgate),
            ("out.dup", vec![m, f], &dup),
        ];
        self.save("gated_backward", &settings, &tensors)
    }

    /// One step of AdamW from moments that are not zero.
    pub(super) fn optimizer(&mut self) -> Result<()> {
        let len = self.sizes.rank * self.config.hidden;
        let spec = AdamwSpec {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            step: 3,
            gradient_scale: 1.0,
        };
        let (params, grads, first) = (self.numbers(len), self.numbers(len), self.numbers(len));
        let second: Vec<f32> = self.numbers(len).iter().map(|value| value * value).collect();
        let grads_card = self.cuda.upload_f32(&grads)?;
        let [mut params_card, mut first_card, mut second_card] = [
            self.cuda.upload_f32(&params)?,
            self.cuda.upload_f32(&first)?,
            self.cuda.upload_f32(&second)?,
        ];
        self.cuda.adamw(
            &mut params_card,
            &grads_card,
            &mut first_card,
            &mut second_card,
            spec,
            len,
        )?;
        let out = self.read_f32(&params_card, len)?;
        let settings = [
            ("learning_rate", spec.learning_rate.to_string()),
            ("beta1", spec.beta1.to_string()),
            ("beta2", spec.beta2.to_string()),
            ("epsilon", spec.epsilon.to_string()),
            ("weight_decay", spec.weight_decay.to_string()),
            ("step", spec.step.to_string()),
        ];
        let tensors = [
            ("params", vec![len], &params[..]),
            ("grads", vec![len], &grads),
            ("first", vec![len], &first),
            ("second", vec![len], &second),
            ("out.params", vec![len], &out),
        ];
        self.save("adamw", &settings, &tensors)
    }
}
